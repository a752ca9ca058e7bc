"""SparsyFed: sparse training from the first round, with masks that agree.

Guastella et al., SparsyFed: Sparse adaptive federated training, ICLR 2025, arXiv 2504.05153.
Weights are a power of the trained parameters, so that small ones gain little and pruned ones stay
pruned; activations are pruned in the backward pass to each layer's own sparsity; the parameters of
largest magnitude over the whole model are uploaded.
"""

from functools import partial

import jax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.pruning import prune_globally
from sparsyfed_jax.fed.server import Upload
from sparsyfed_jax.ops import LayerOps, powerprop, powerprop_inverse, pruned_layers
from sparsyfed_jax.types import Batch, ClientData, Key, Metrics, Params, Variables


def sparsyfed(setup: Setup) -> Algorithm:
  """Makes SparsyFed, with any server optimizer."""

  def init(variables: Variables, hyper: Hyper, key: Key) -> averaging.State:
    # The weights, not the parameters, have the plain initialisation (section 3 of the paper).
    theta = trees.map_prunable(lambda w: powerprop_inverse(w, hyper.beta), variables["params"])
    return averaging.init(setup, {**variables, "params": theta}, hyper)

  def client(download: averaging.Download, data: ClientData, key: Key) -> tuple[Upload, Metrics]:
    def weights(theta: Params) -> Params:
      return _weights(theta, download.beta)

    def layers(batch: Batch) -> LayerOps:
      return pruned_layers(batch.valid, download.activation_floor)

    def prune(theta: Params) -> Params:
      return prune_globally(theta, download.density)

    return averaging.client(setup, weights, layers, prune, download, data, key)

  def model(state: averaging.State) -> Variables:
    weights = _weights(state.variables["params"], state.hyper.beta)
    return {**state.variables, "params": weights}

  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=client,
    server=partial(averaging.server, setup),
    model=model,
  )


def _weights(theta: Params, beta: jax.Array) -> Params:
  return trees.map_prunable(lambda leaf: powerprop(leaf, beta), theta)
