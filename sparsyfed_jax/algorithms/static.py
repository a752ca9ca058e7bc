"""Fixed masks: FedAvg inside a mask that is chosen once and never changes.

The mask is random, with the same density in each layer; `erk`, random at Erdős–Rényi–kernel
densities; or of largest `saliency`: in round 1 clients do not train, but send `|gradient * weight|`
of one batch, and the entries whose mean is largest over the whole model are trained from then on.
In a run that starts from given weights, masks that would be random are of the largest of them.

Saliency is SNIP (Lee et al., ICLR 2019, arXiv 1810.02340), federated as in SSFL (Ohib et al., 2024,
arXiv 2405.09037).

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.static(sparsity=0.9, mask="erk").options.mask
  'erk'
"""

from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.data.batches import take_batch
from sparsyfed_jax.data.shuffle import shuffle
from sparsyfed_jax.fed import masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.client import train_metrics
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.method import Choice, Method, check_options
from sparsyfed_jax.fed.pruning import first_masks
from sparsyfed_jax.fed.rule import train_client
from sparsyfed_jax.fed.task import plain_layers
from sparsyfed_jax.metrics.flops import shares_inside_masks
from sparsyfed_jax.ops import erk_densities, topk_mask
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params, Variables

MASKS = ("random", "erk", "saliency")


class Options(NamedTuple):
  """The forms of fixed masks."""

  # "random": the same density in each layer; "erk": random, at Erdős–Rényi–kernel densities;
  # "saliency": in round 1 clients do not train, but send |gradient * weight| of a batch, and the
  # largest of the mean are trained from then on.
  mask: Annotated[
    str, Choice("of the mask: random, erk (random, small layers denser) or saliency (SNIP)", MASKS)
  ] = "random"


DEFAULT = Options()


def static(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes FedAvg inside a fixed mask, with any server optimizer."""
  check_options(options)
  require_prunable("static", setup.task)
  is_by_saliency = options.mask == "saliency"

  def init(variables: Variables, hyper: Hyper, key: Key) -> masked.State:
    mask_key, server_key = jax.random.split(key)
    kernels, _ = trees.split_prunable(variables["params"])
    if is_by_saliency:
      masks = [jnp.ones(leaf.shape, bool) for leaf in kernels]
    else:
      densities = jnp.full(len(kernels), hyper.density)
      if options.mask == "erk":
        densities = erk_densities([leaf.shape for leaf in kernels], hyper.density)
      masks = first_masks(variables["params"], densities, mask_key, setup.task.is_given)
    return masked.init(setup, variables, masks, hyper, server_key)

  def client(
    download: masked.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[masked.Upload, Memory, Metrics]:
    def learn() -> tuple[Variables, Metrics]:
      rule = masked.training(download.masks)
      arguments = setup.task, setup.local, download.rates, download.variables
      trained, _, metrics = train_client(rule, *arguments, {}, data, key)
      return dict(trained), metrics

    def score() -> tuple[Variables, Metrics]:
      return _saliency(setup, download.variables, data, key)

    is_scoring = is_by_saliency & (download.update == 1)
    sent, metrics = lax.cond(is_scoring, score, learn) if is_by_saliency else learn()
    upload, exchange = masked.send(setup, download, sent, download.masks, data)
    return upload, memory, metrics | exchange

  def server(
    state: masked.State, upload: masked.Upload
  ) -> tuple[masked.State, dict[str, jax.Array]]:
    target = masked.mean(upload, state, of_masks=False)

    def follow() -> masked.State:
      return masked.advance(setup, state, target)

    def choose() -> masked.State:
      scores, _ = trees.split_prunable(target["params"])
      masks = topk_mask(scores, state.hyper.density)
      return masked.with_masks(masked.count_round(state), masks)

    new = lax.cond(state.updates == 0, choose, follow) if is_by_saliency else follow()
    return masked.finish(setup, state, new, upload.weight)

  return Algorithm(
    init=init,
    broadcast=partial(masked.broadcast, setup),
    client=client,
    server=server,
    model=lambda state: state.variables,
    masks=masked.masks_beside,
  )


def _saliency(
  setup: Setup, variables: Variables, data: ClientData, key: Key
) -> tuple[Variables, Metrics]:
  """Puts `|gradient * weight|` of one batch in the place of each prunable parameter."""
  batch = take_batch(shuffle(key, data), jnp.int32(0), setup.local.batch_size)

  def loss(params: Params) -> Any:
    value, (_, metrics) = setup.task.loss({**variables, "params": params}, batch, plain_layers, key)
    return value, metrics

  gradient, metrics = jax.grad(loss, has_aux=True)(variables["params"])
  saliency = trees.map_prunable(
    lambda w, g: jnp.abs(w * g), *map(trees.widened, (variables["params"], gradient))
  )
  saliency = trees.cast_like(saliency, variables["params"])
  return {**variables, "params": saliency}, train_metrics(metrics)


METHOD = Method(
  "static",
  "Static mask",
  static,
  options=Options,
  reads=("density",),
  layer_shares=shares_inside_masks,
)
