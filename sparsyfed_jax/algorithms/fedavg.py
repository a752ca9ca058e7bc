"""FedAvg: the server's model becomes the mean of the models that clients train, dense.

With w the server's model and w_i what client i makes of it in its local epochs on n_i examples,

    w <- w - server_optimizer(w - sum_i n_i w_i / sum_i n_i),

which is the mean for SGD at rate 1. With `proximal_mu` above 0 it is FedProx.

McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS
2017, arXiv 1602.05629.

Example:
  >>> import sparsyfed_jax as sf
  >>> data = sf.data.digits()
  >>> task = sf.classification(sf.models.MLP(10), data)
  >>> run = sf.simulate(sf.fedavg(), task, sf.data.iid(data), proximal_mu=0.1)
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
