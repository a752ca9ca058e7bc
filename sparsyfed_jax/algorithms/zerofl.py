"""ZeroFL: sparse weights and activations in every step, dense weights between steps.

Qiu et al., ZeroFL: Efficient on-device training for federated learning with local sparsity, ICLR
2022, arXiv 2208.02507; its layers are those of SWAT (Raihan & Aamodt, NeurIPS 2020, arXiv
2001.01969): forward with the largest weights, weight gradients of the largest activations. The
gradient of all weights is used, so that small ones may grow.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import (
  Algorithm,
  Setup,
  require_injected,
  require_one_of,
  require_prunable,
)
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.pruning import apply_masks, global_masks, largest_masks
from sparsyfed_jax.fed.rule import Carry, LocalRule
from sparsyfed_jax.fed.server import Upload
from sparsyfed_jax.fed.task import Layers
from sparsyfed_jax.ops import (
  PLAIN,
  LayerOps,
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

UPLINKS = ("weights", "masked_changes", "changes")
FORMS = ("paper", "comparison")


class Options(NamedTuple):
  """The forms of ZeroFL."""

  # What is sent (section 4.2): the largest weights; the changes of the largest weights; the largest
  # changes. By a share of 1 - sparsity + mask ratio.
  uplink: str = "weights"
  # "paper": weights stay dense between steps, layers are ranked each on its own, and the evaluation
  # is as sparse as training. "comparison", what SparsyFed was compared with: steps set the stored
  # weights to 0, thresholds of convolutions are those of the client's first batch, the upload ranks
  # all layers together, and the evaluation takes what the server has. A layer computes with
  # ceil(share * size) weights in it.
  form: str = "paper"
  # Layers whose names this regular expression finds are plain, as the first one always is.
  exclude: str = ""


DEFAULT = Options()


def zerofl(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes ZeroFL, with any server optimizer."""
  require_one_of("uplink", options.uplink, UPLINKS)
  require_one_of("form", options.form, FORMS)
  is_paper = options.form == "paper"
  is_excluded = trees.name_finder(options.exclude)
  first_layer = setup.task.layer_names[:1]

  def is_plain(name: str) -> bool:
    return name in first_layer or is_excluded(name)

  require_prunable("zerofl", setup.task)
  require_injected("zerofl", setup.task, is_excluded)

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

  def init(variables: Variables, hyper: Hyper, key: Key) -> averaging.State:
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
      def threshold(x: jax.Array, w: jax.Array) -> jax.Array:
        return share_threshold(x, batch.valid, share)

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
      more = jnp.minimum(density + download.hyper.zerofl_mask_ratio, 1.0)
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
