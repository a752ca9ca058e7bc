"""Top-K: dense local training, magnitude pruning of the upload.

The plain baseline of SparsyFed (Guastella et al., ICLR 2025, arXiv 2504.05153, section 4): a pruned
weight may grow back in any client, so that the server's model, the union of the clients' masks, is
denser than each upload.
"""

from functools import partial

from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.pruning import prune_globally
from sparsyfed_jax.fed.server import Upload
from sparsyfed_jax.ops import PLAIN
from sparsyfed_jax.types import ClientData, Key, Metrics, Params, Variables


def topk(setup: Setup) -> Algorithm:
  """Makes Top-K, with any server optimizer."""

  def init(variables: Variables, hyper: Hyper, key: Key) -> averaging.State:
    return averaging.init(setup, variables, hyper)

  def client(download: averaging.Download, data: ClientData, key: Key) -> tuple[Upload, Metrics]:
    def prune(params: Params) -> Params:
      return prune_globally(params, download.density)

    return averaging.client(setup, averaging.unchanged, lambda _: PLAIN, prune, download, data, key)

  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=client,
    server=partial(averaging.server, setup),
    model=lambda state: state.variables,
  )
