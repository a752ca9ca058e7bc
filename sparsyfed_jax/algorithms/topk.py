"""Top-K: dense local training, magnitude pruning of the upload.

A client uploads the 1 - sparsity largest parameters of the whole model. A pruned weight may grow
back in any client, so that the server's model, the union of the clients' masks, is denser than
each upload.

The plain baseline of SparsyFed (Guastella et al., ICLR 2025, arXiv 2504.05153, section 4).

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.topk(sparsity=0.9, sparsity_schedule="constant").sparsity.sparsity
  0.9
"""

from functools import partial

from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.method import Method
from sparsyfed_jax.fed.rule import LocalRule
from sparsyfed_jax.types import Key, Variables


def topk(setup: Setup) -> Algorithm:
  """Makes Top-K, with any server optimizer."""
  require_prunable("topk", setup.task)

  def init(variables: Variables, hyper: Hyper, key: Key) -> averaging.State:
    return averaging.init(setup, variables, hyper)

  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=partial(averaging.client, setup, LocalRule(), {}, averaging.largest_trained),
    server=partial(averaging.server, setup),
    model=lambda state: state.variables,
  )


# Zeros are received, but the first step fills them: layers compute with all weights.
METHOD = Method("topk", "Top-K", topk, reads=("density", "ramp_rounds"), takes_densities=True)
