"""FedDST: sparse training inside masks that clients readjust and the server agrees upon.

Layers have Erdős–Rényi–kernel densities. Every `update_every` rounds t, until `update_until`, each
client ends its training with a readjustment: of every layer it drops the share

    drop_rate / 2 * (1 + cos(pi * t / update_until))

of smallest weights, and grows as many where the gradient of one batch is largest. The server takes
each weight's mean over the clients that have it and keeps the largest, by the layer's density.

Bibikar et al., Federated dynamic sparse training, AAAI 2022, arXiv 2112.09824.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.feddst(sparsity=0.8, update_every=5).hyper.update_every
  5
"""

from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.client import last_batch
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Knob, Method
from sparsyfed_jax.fed.pruning import Masks, apply_masks, first_masks, largest_kept, largest_masks
from sparsyfed_jax.fed.rule import train_client
from sparsyfed_jax.metrics.flops import shares_inside_masks
from sparsyfed_jax.ops import PLAIN, count_one, erk_densities, largest_mask, num_kept
from sparsyfed_jax.types import Batch, ClientData, Key, Memory, Metrics, Params, Variables

# Gradients that are matrix products, which are computed once and written down. Sums of products are
# computed again wherever they are read, rounded another way, and then the entry that sets the
# threshold of a mask may not reach it.
_WRITTEN = PLAIN._replace(dot_general=lax.dot_general)


class Hyper(NamedTuple):
  """The numbers of FedDST."""

  update_every: Annotated[int, Knob("rounds between two readjustments", low=1)] = 10
  update_until: Annotated[
    int | None,
    Knob(
      "round from which on masks stay; default: half of --rounds",
      low=0,
      default=lambda settings: settings.rounds // 2,
    ),
  ] = None
  drop_rate: Annotated[float, Knob("share of the weights exchanged at first", low=0, high=1)] = 0.5


def feddst(setup: Setup) -> Algorithm:
  """Makes FedDST, with any server optimizer."""
  require_prunable("feddst", setup.task)

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> masked.State:
    params = variables["params"]
    densities = _densities(params, hyper)
    if setup.task.is_given:  # maybe sparse, so that zeros have to fill the masks
      masks = first_masks(params, densities, key, is_given=True)
    else:
      masks = largest_masks(params, densities)
    return masked.init(setup, variables, masks, hyper, key)

  def client(
    download: masked.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[masked.Upload, Memory, Metrics]:
    hyper, masks = download.hyper, download.masks
    arguments = setup.task, setup.local, download.rates, download.variables
    trained, _, metrics = train_client(masked.training(masks), *arguments, {}, data, key)

    def readjust() -> tuple[Params, Masks]:
      gradient = _dense_gradient(setup, trained, last_batch(setup.local, data, key), key)
      rate = _drop_rate(hyper, download.round)
      return _exchange(trained["params"], masks, gradient, _densities(gradient, hyper), rate)

    def keep() -> tuple[Params, Masks]:
      return trained["params"], masks

    number = download.round.astype(jnp.float32)
    is_due = (number % hyper.own.update_every == 0) & (number < hyper.own.update_until)
    params, masks = lax.cond(is_due, readjust, keep)
    upload, exchange = masked.send(setup, download, {**trained, "params": params}, masks, data)
    return upload, memory, metrics | exchange

  def server(
    state: masked.State, upload: masked.Upload
  ) -> tuple[masked.State, dict[str, jax.Array]]:
    new = masked.advance(setup, state, masked.mean(upload, state, of_masks=True))
    params, key = new.variables["params"], jax.random.fold_in(state.key, state.round)
    pruned = largest_kept(params, upload.kept, _densities(params, state.hyper), key)
    masks = masked.unless_nobody(upload, pruned, state.masks)
    return masked.finish(setup, state, masked.with_masks(new, masks), upload.weight)

  return Algorithm(
    init=init,
    broadcast=partial(masked.broadcast, setup),
    client=client,
    server=server,
    model=lambda state: state.variables,
    masks=masked.masks_beside,
  )


def _densities(params: Params, hyper: CommonHyper) -> jax.Array:
  kernels, _ = trees.split_prunable(params)
  return erk_densities([leaf.shape for leaf in kernels], hyper.density)


def _drop_rate(hyper: CommonHyper, round_number: jax.Array) -> jax.Array:
  """rho_0 / 2 (1 + cos(pi t / T_end)), the annealing of RigL (arXiv 1911.11134)."""
  share = round_number.astype(jnp.float32) / jnp.maximum(hyper.own.update_until, 1.0)
  return hyper.own.drop_rate / 2 * (1 + jnp.cos(jnp.pi * jnp.minimum(share, 1.0)))


def _dense_gradient(setup: Setup, variables: Variables, batch: Batch, key: Key) -> Params:
  """The gradient of all weights, those outside the mask too; without L2."""

  def loss(params: Params) -> jax.Array:
    model = {**variables, "params": params}
    return setup.task.loss(model, batch, lambda name: _WRITTEN, key)[0]

  return jax.grad(loss)(variables["params"])


def _exchange(
  params: Params, masks: Masks, gradient: Params, densities: jax.Array, rate: jax.Array
) -> tuple[Params, Masks]:
  """Drops a share of each layer's smallest weights, and grows as many where the gradient is large.

  What has just been dropped may grow again, from 0 like the others.
  """
  kernels, _ = trees.split_prunable(params)
  gradients, _ = trees.split_prunable(gradient)
  survivors, grown = [], []
  for w, mask, g, density in zip(kernels, masks, gradients, densities, strict=True):
    kept = largest_mask(jnp.where(mask, w, 0), num_kept(w.size, density * (1 - rate)))
    num_grown = num_kept(w.size, density) - count_one(kept)
    survivors.append(kept)
    grown.append(kept | largest_mask(jnp.where(kept, 0, g), num_grown))
  return apply_masks(params, survivors), grown


# Without the one dense gradient of a readjustment.
METHOD = Method(
  "feddst", "FedDST", feddst, Hyper, reads=("density",), layer_shares=shares_inside_masks
)
