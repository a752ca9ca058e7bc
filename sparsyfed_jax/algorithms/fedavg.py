"""Federated averaging, dense.

McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS
2017, arXiv 1602.05629.
"""

from functools import partial

import jax.numpy as jnp

from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.server import Upload
from sparsyfed_jax.ops import PLAIN
from sparsyfed_jax.types import ClientData, Key, Metrics, Variables


def fedavg(setup: Setup) -> Algorithm:
  """Makes dense FedAvg, with any server optimizer."""

  def init(variables: Variables, hyper: Hyper, key: Key) -> averaging.State:
    return averaging.init(setup, variables, hyper._replace(density=jnp.float32(1)))

  def client(download: averaging.Download, data: ClientData, key: Key) -> tuple[Upload, Metrics]:
    return averaging.client(
      setup, averaging.unchanged, lambda _: PLAIN, averaging.unchanged, download, data, key
    )

  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=client,
    server=partial(averaging.server, setup),
    model=lambda state: state.variables,
  )
