"""FedMef: masks that the server readjusts by clients' gradients, and clients that prepare for it.

Clients train inside the server's mask. Every `update_every` rounds, until `update_until`, each also
sends the largest gradients of weights outside it, as many of each layer as will be exchanged; the
server drops its smallest weights and grows those of largest mean gradient.

In such a round a client extrudes (section 3.2 of the paper): the weights theta_low that were the
smallest of each layer when it received them, as many as will be dropped, add to its loss

    extrusion * sum(theta_low^2),

so that little is lost with them, and the learning rate of step b of B is multiplied by

    min(boost_limit, max(1, boost * p(b / B) * (2 * sigmoid(sum(abs(theta_low))) - 1))),
    p(z) = 2 * (1 - z) / (2 - z).

In all rounds, layers keep the largest 1 - activation_sparsity of their input alone for the backward
pass (section 3.3).

Huang et al., FedMef: Towards memory-efficient federated dynamic pruning, CVPR 2024, arXiv
2403.14737. The authors' code extrudes in every round, has the norm of each layer in place of the
square (`penalty="norm"`) and no coefficient, lets the rate only rise within a round, and has
boost = 1, with which the rate never rises as neither p nor the other factor is above 1. That it
also standardises the weights of convolutions, in place of batch norm, is a matter of the model.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.fedmef(sparsity=0.9, activation_sparsity=0.3).hyper.drop_rate
  0.2
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed import adjusting, masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable, require_rows
from sparsyfed_jax.fed.client import num_steps
from sparsyfed_jax.fed.method import Choice, Knob, Method, check_options
from sparsyfed_jax.fed.rule import Carry
from sparsyfed_jax.fed.task import Layers
from sparsyfed_jax.metrics.flops import LayerShares
from sparsyfed_jax.ops import (
  Where,
  count_one,
  largest_mask,
  num_kept,
  residual_layers,
  share_threshold,
)
from sparsyfed_jax.types import Batch, ClientData, Key, Memory, Metrics, Params


class Hyper(NamedTuple):
  """The numbers of FedMef."""

  update_every: adjusting.UpdateEvery = 10
  update_until: adjusting.UpdateUntil = None
  drop_rate: adjusting.DropRate = 0.2
  extrusion: Annotated[
    float, Knob("coefficient of the penalty on weights that will be dropped", low=0)
  ] = 0.01
  boost: Annotated[
    float, Knob("factor of the rate by what is left of those weights; to 1 for none", low=0)
  ] = 1.0
  boost_limit: Annotated[float, Knob("largest factor of the rate", low=1)] = 10.0
  activation_sparsity: Annotated[
    float, Knob("share of activations not kept for the backward pass", low=0, below=1)
  ] = 0.5


class Options(NamedTuple):
  """The forms of FedMef."""

  penalty: Annotated[
    str,
    Choice(
      "of what will be dropped: squared (its square) or norm (each layer's norm)",
      ("squared", "norm"),
    ),
  ] = "squared"


DEFAULT = Options()


def fedmef(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes FedMef, with any server optimizer."""
  check_options(options)
  require_prunable("fedmef", setup.task)
  require_rows("fedmef", setup.task, lambda name: False)

  def client(
    download: masked.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[masked.Upload, Memory, Metrics]:
    own = download.hyper.own
    low = _lowest(download)
    is_due = adjusting.is_due(download.hyper, download.round)

    def layers(batch: Batch, carry: Carry) -> Layers:
      def threshold(x: jax.Array, w: jax.Array, rows: Where) -> jax.Array:
        return share_threshold(x, batch.valid, 1 - own.activation_sparsity, rows)

      pruned = residual_layers(threshold)
      return lambda name: pruned

    def penalty(params: Params) -> Params:
      kernels, _ = trees.split_prunable(params)
      _, rebuild = trees.split_prunable(jax.tree.map(jnp.zeros_like, params))
      lowest = [jnp.where(is_low, w, 0) for is_low, w in zip(low, kernels, strict=True)]
      if options.penalty == "squared":
        slopes = [2 * w for w in lowest]
      else:
        slopes = [w / jnp.maximum(jnp.linalg.norm(w.reshape(-1)), 1e-12) for w in lowest]
      factor = jnp.where(is_due, own.extrusion, 0)
      return rebuild([factor * slope for slope in slopes])

    def speed(params: Params, step: jax.Array) -> jax.Array:
      kernels, _ = trees.split_prunable(params)
      pairs = zip(low, kernels, strict=True)
      rest = sum((jnp.sum(jnp.where(is_low, jnp.abs(w), 0)) for is_low, w in pairs), start=0.0)
      done = step.astype(jnp.float32) / jnp.maximum(num_steps(setup.local, data), 1)
      left = 2 * (1 - done) / (2 - done)
      raised = own.boost * left * (2 * jax.nn.sigmoid(rest) - 1)
      return jnp.where(is_due, jnp.clip(raised, 1, own.boost_limit), 1)

    rule = masked.training(download.masks)._replace(layers=layers, penalty=penalty, speed=speed)
    return adjusting.client(setup, adjusting.largest, download, memory, data, key, rule)

  return adjusting.by_server(setup, client)


def _lowest(download: masked.Download) -> list[jax.Array]:
  """Marks what will be dropped if nothing moves."""
  params, hyper = download.variables["params"], download.hyper
  densities = adjusting.densities_of(params, hyper)
  rate = adjusting.drop_rate(hyper, download.round)
  kernels, _ = trees.split_prunable(params)
  lowest = []
  for w, mask, density in zip(kernels, download.masks, densities, strict=True):
    # No more than can grow elsewhere.
    least = num_kept(w.size, density) - count_one(~mask)
    stays = jnp.maximum(num_kept(w.size, density * (1 - rate)), least)
    lowest.append(mask & ~largest_mask(jnp.where(mask, w, 0), stays))
  return lowest


def _layer_shares(
  options: Any, hyper: Any, name: str, is_first: bool, density: float, target: float
) -> LayerShares:
  return LayerShares(density, density, density * (1 - hyper.activation_sparsity))


METHOD = Method(
  "fedmef",
  "FedMef",
  fedmef,
  Hyper,
  Options,
  reads=("density",),
  layer_shares=_layer_shares,
  remark=adjusting.remark,
)
