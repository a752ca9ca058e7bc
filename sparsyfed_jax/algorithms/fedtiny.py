"""FedTiny: masks that the server readjusts by the largest gradients that clients find.

Clients train inside the server's mask. Every `update_every` rounds, until `update_until`, each also
sends the largest gradients of weights outside it, as many of a layer as will be exchanged; the
server drops the layer's smallest weights and grows those of largest mean gradient.

Huang et al., Distributed pruning towards tiny neural networks in federated learning, ICDCS 2023,
arXiv 2212.01977. Of the paper this is the progressive pruning, all layers at once, as in the
authors' library; the paper also takes turns by blocks of layers. The first mask is FedDST's, and
not the best of several by the clients' batch norm, which tells nothing of a model without.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.fedtiny(sparsity=0.9).hyper.drop_rate
  0.3
"""

from functools import partial
from typing import NamedTuple

from sparsyfed_jax.fed import adjusting
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.method import Method
from sparsyfed_jax.metrics.flops import shares_inside_masks


class Hyper(NamedTuple):
  """The numbers of FedTiny."""

  update_every: adjusting.UpdateEvery = 10
  update_until: adjusting.UpdateUntil = None
  drop_rate: adjusting.DropRate = 0.3


def fedtiny(setup: Setup) -> Algorithm:
  """Makes FedTiny, with any server optimizer."""
  require_prunable("fedtiny", setup.task)
  return adjusting.by_server(setup, partial(adjusting.client, setup, adjusting.largest))


# Without the one dense gradient of a readjustment.
METHOD = Method(
  "fedtiny",
  "FedTiny",
  fedtiny,
  Hyper,
  reads=("density",),
  layer_shares=shares_inside_masks,
  remark=adjusting.remark,
)
