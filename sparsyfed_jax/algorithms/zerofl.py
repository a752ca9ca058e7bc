"""ZeroFL: sparse weights and activations in every step, dense weights between steps.

In a step each layer computes with its 1 - sparsity largest weights, and its weight gradient with
the largest activations; the gradient goes to all weights, so that small ones may grow. A client
uploads the 1 - sparsity + mask_ratio largest weights of each layer, or changes of weights.

Qiu et al., ZeroFL: Efficient on-device training for federated learning with local sparsity, ICLR
2022, arXiv 2208.02507; its layers are those of SWAT (Raihan & Aamodt, NeurIPS 2020, arXiv
2001.01969).

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.zerofl(sparsity=0.9, mask_ratio=0.1).hyper.mask_ratio
  0.1
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import (
  Algorithm,
  Setup,
  require_prunable,
  require_rows,
)
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Choice, Knob, Method, Pattern, check_options
from sparsyfed_jax.fed.pruning import apply_masks, global_masks, largest_masks
from sparsyfed_jax.fed.rule import Carry, LocalRule
from sparsyfed_jax.fed.server import Upload
from sparsyfed_jax.fed.task import Layers
from sparsyfed_jax.metrics.flops import DENSE, LayerShares
from sparsyfed_jax.ops import (
  PLAIN,
  LayerOps,
  Where,
  ceil_of_share,
  first_found,
  is_at_least,
  kth_magnitude,
  largest_mask,
  num_kept,
  residual_layers,
  share_threshold,
)
from sparsyfed_jax.types import Batch, ClientData, Key, Memory, Metrics, Params, Variables


class Hyper(NamedTuple):
  """The numbers of ZeroFL."""

  mask_ratio: Annotated[
    float,
    Knob(
      "extra fraction of weights uploaded beyond the compute density; the paper takes 0, 0.1, 0.2"
    ),
  ] = 0.0


class Options(NamedTuple):
  """The forms of ZeroFL."""

  # Section 4.2; by a share of 1 - sparsity + mask ratio.
  uplink: Annotated[
    str,
    Choice(
      "what clients send: the largest weights, masked_changes (the changes of the largest weights)"
      " or changes (the largest); of changes the server's model stays dense",
      ("weights", "masked_changes", "changes"),
    ),
  ] = "weights"
  # "paper": weights stay dense between steps, layers are ranked each on its own, and the evaluation
  # is as sparse as training. "comparison": steps set the stored weights to 0, thresholds of
  # convolutions are those of the client's first batch, the upload ranks all layers together, and
  # the evaluation takes what the server has. A layer computes with ceil(share * size) weights.
  form: Annotated[
    str, Choice("paper, or comparison: as SparsyFed's authors ran it", ("paper", "comparison"))
  ] = "paper"
  exclude: Annotated[
    str,
    Pattern(
      "a regular expression; layers whose names it finds are plain, as the first layer always is;"
      " empty for none"
    ),
  ] = ""


DEFAULT = Options()


def zerofl(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes ZeroFL, with any server optimizer."""
  check_options(options)
  is_paper = options.form == "paper"
  is_excluded = trees.name_finder(options.exclude)
  first_layer = setup.task.layer_names[:1]

  def is_plain(name: str) -> bool:
    return name in first_layer or is_excluded(name)

  require_prunable("zerofl", setup.task)
  require_rows("zerofl", setup.task, is_plain, [] if is_paper else ["conv_general_dilated"])

  def map_sparse(fn: Callable[[jax.Array], jax.Array], params: Params) -> Params:
    leaves, rebuild = trees.split_prunable(params)
    named = zip(trees.layer_names(params), leaves, strict=True)
    return rebuild([leaf if is_plain(name) else fn(leaf) for name, leaf in named])

  def rank(params: Params, density: jax.Array) -> list[jax.Array]:
    if not is_paper:
      return global_masks(params, density)
    return largest_masks(params, [density] * len(trees.layer_names(params)))

  def select(received: Params, trained: Params, density: jax.Array) -> Params:
    if options.uplink == "weights":
      return apply_masks(trained, rank(trained, density))
    changes = averaging.changes(received, trained)
    ranked = trained if options.uplink == "masked_changes" else changes
    return apply_masks(changes, rank(ranked, density))

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> averaging.State:
    return averaging.init(setup, variables, hyper)

  def client(
    download: averaging.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[Upload, Memory, Metrics]:
    share = averaging.scaled(setup, download.density, data)
    received = averaging.receive(setup, download, data)["params"]
    carry: Carry = {}
    if not is_paper:
      carry = {name: jnp.float32(-1) for name in setup.task.layer_names}

    def layers(batch: Batch, carry: Carry) -> Layers:
      def threshold(x: jax.Array, w: jax.Array, rows: Where) -> jax.Array:
        return share_threshold(x, batch.valid, share, rows)

      anew = residual_layers(threshold)

      def layer(name: str) -> LayerOps:
        if is_plain(name):
          return PLAIN
        if is_paper:
          return anew
        once = residual_layers(first_found(threshold, carry, name))
        return LayerOps(anew.dot_general, once.conv_general_dilated)

      return layer

    def weights(params: Params, carry: Carry) -> Params:
      return map_sparse(lambda w: _active(w, share), params) if is_paper else params

    # A convolution finds the threshold of its weights in the first step, where they are `received`.
    kernels, _ = trees.split_prunable(received)
    starts = [kth_magnitude(w, ceil_of_share(w.size, share)) for w in kernels]

    def before_step(params: Params) -> Params:
      if is_paper:
        return params
      leaves, rebuild = trees.split_prunable(params)
      named = zip(trees.layer_names(params), leaves, starts, strict=True)
      return rebuild([leaf if is_plain(name) else zero(leaf, start) for name, leaf, start in named])

    def zero(w: jax.Array, start: jax.Array) -> jax.Array:
      if w.ndim > 2:
        return jnp.where(is_at_least(w, start), w, 0)
      return jnp.where(largest_mask(w, ceil_of_share(w.size, share)), w, 0)

    def send(received: Params, trained: Params, density: jax.Array) -> Params:
      more = jnp.minimum(density + download.hyper.own.mask_ratio, 1.0)
      return select(received, trained, more)

    rule = LocalRule(weights, layers, before_step)
    return averaging.client(setup, rule, carry, send, download, memory, data, key)

  def model(state: averaging.State) -> Variables:
    if not is_paper:
      return state.variables
    share = averaging.broadcast(setup, state).density
    active = map_sparse(lambda w: _active(w, share), state.variables["params"])
    return {**state.variables, "params": active}

  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=client,
    server=partial(averaging.server, setup, is_change=options.uplink != "weights"),
    model=model,
  )


def _active(w: jax.Array, share: jax.Array) -> jax.Array:
  """The largest weights, whose gradient goes to all of them."""
  is_active = largest_mask(w, num_kept(w.size, share))
  # Exact: w - 0 or w - w.
  return w - lax.stop_gradient(jnp.where(is_active, 0, w))


def _check(hyper: Hyper, sparsity: float) -> tuple[str, str] | None:
  if 0 <= hyper.mask_ratio <= sparsity:
    return None
  return "mask_ratio", (
    f"between 0 and --sparsity={sparsity}, or clients would send more than everything"
  )


def _layer_shares(
  options: Options, hyper: Hyper, name: str, is_first: bool, density: float, target: float
) -> LayerShares:
  """Weights and activations are ranked anew, whatever was received."""
  is_plain = is_first or trees.name_finder(options.exclude)(name)
  return DENSE if is_plain else LayerShares(target, target, target)


METHOD = Method(
  "zerofl",
  "ZeroFL",
  zerofl,
  Hyper,
  Options,
  reads=("density", "ramp_rounds"),
  takes_densities=True,
  layer_shares=_layer_shares,
  check=_check,
)
