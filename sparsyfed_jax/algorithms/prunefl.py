"""PruneFL: masks that the server readjusts by the squared gradients of all weights.

Clients train inside the server's mask. Every `update_every` rounds, until `update_until`, each also
sends the square of the gradient of every weight outside it, dense; the server drops the smallest
weights of each layer and grows as many where the mean square is largest.

Jiang et al., Model pruning enables efficient federated learning on edge devices, IEEE TNNLS 2022,
arXiv 1909.12326, section IV. As it is compared with by FedTiny and its successors the size of the
model is given and kept; the original also divides a square by the time that a weight of its layer
takes, adds weights as long as that pays, and begins by pruning at one chosen client.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.prunefl(sparsity=0.9).hyper.drop_rate
  0.3
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax.fed import adjusting
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.method import Method
from sparsyfed_jax.metrics.flops import shares_inside_masks


class Hyper(NamedTuple):
  """The numbers of PruneFL."""

  update_every: adjusting.UpdateEvery = 10
  update_until: adjusting.UpdateUntil = None
  drop_rate: adjusting.DropRate = 0.3


def prunefl(setup: Setup) -> Algorithm:
  """Makes PruneFL, with any server optimizer."""
  require_prunable("prunefl", setup.task)
  return adjusting.by_server(setup, partial(adjusting.client, setup, _squared))


def _squared(gradient: jax.Array, number: jax.Array) -> jax.Array:
  return jnp.square(gradient)


# Without the one dense gradient of a readjustment.
METHOD = Method(
  "prunefl",
  "PruneFL",
  prunefl,
  Hyper,
  reads=("density",),
  layer_shares=shares_inside_masks,
  remark=adjusting.remark,
)
