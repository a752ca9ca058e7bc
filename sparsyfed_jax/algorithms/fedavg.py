"""Federated averaging, dense.

McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS
2017, arXiv 1602.05629. With `LocalTraining.is_proximal` it is FedProx.
"""

from functools import partial

import jax.numpy as jnp

from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.method import Method
from sparsyfed_jax.fed.rule import LocalRule
from sparsyfed_jax.types import Key, Variables


def fedavg(setup: Setup) -> Algorithm:
  """Makes dense FedAvg, with any server optimizer."""

  def init(variables: Variables, hyper: Hyper, key: Key) -> averaging.State:
    return averaging.init(setup, variables, hyper._replace(density=jnp.float32(1)))

  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=partial(averaging.client, setup, LocalRule(), {}, averaging.all_trained),
    server=partial(averaging.server, setup),
    model=lambda state: state.variables,
  )


METHOD = Method("fedavg", "FedAvg", fedavg)
