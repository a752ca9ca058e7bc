"""FedDyn: FedAvg whose clients' losses are regularised so that their optima agree with the whole.

Acar et al., Federated learning based on dynamic regularization, ICLR 2021, arXiv 2111.04263,
algorithm 1. Client k keeps the gradient g_k of its loss L_k where it ended last, and trains from
the server's w on

    L_k(y) - <g_k, y> + alpha / 2 * sum((y - w)^2).

It ends in y_k, sends it, and then g_k <- g_k - alpha * (y_k - w). The server of m clients has
h <- h - alpha / m * sum_k (y_k - w) over those that took part, and becomes mean(y_k) - h / alpha.

What is kept here is o_k = -g_k / alpha, the sum of all y_k - w so far, and o = -h / alpha, the mean
of all clients' o_k; alpha is then in the local loss alone, which is

    L_k(y) + alpha / 2 * sum((y - (w - o_k))^2)

but for a constant. Sums are weighted as models are: with equal weights the paper's. The authors'
code takes plain means, and alpha times a client's mean share over its own, so that clients count by
their examples in what is optimised; with weights in the means one alpha does for all. Any optimizer
of clients will do; statistics of the model become their mean.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.feddyn(alpha=0.01).hyper.alpha
  0.01
"""

from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Knob, Method
from sparsyfed_jax.fed.rule import LocalRule, train_client
from sparsyfed_jax.fed.server import Upload, unless_nobody, weigh
from sparsyfed_jax.types import ClientData, Key, Metrics, Params, Variables
from sparsyfed_jax.wire.rounding import round_to_wire


class Hyper(NamedTuple):
  """The numbers of FedDyn."""

  alpha: Annotated[float, Knob("coefficient of the clients' dynamic regulariser", above=0)] = 0.1


def feddyn(setup: Setup) -> Algorithm:
  """Makes FedDyn, with any server optimizer."""

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> averaging.State:
    state = averaging.init(setup, variables, hyper._replace(density=jnp.float32(1)))
    return state._replace(extra=memory(variables, hyper))

  def client(
    download: averaging.Download, memory: Params, data: ClientData, key: Key
  ) -> tuple[Upload, Params, Metrics]:
    received, alpha = trees.widened(download.variables["params"]), download.hyper.own.alpha

    def regularise(params: Params) -> Params:
      def slope(here: jax.Array, there: jax.Array, offset: jax.Array) -> jax.Array:
        return alpha * (here - there + offset)

      return jax.tree.map(slope, params, received, memory)

    rule = LocalRule(penalty=regularise)
    trained, _, metrics = train_client(
      rule, setup.task, setup.local, download.rates, download.variables, {}, data, key
    )
    sent = round_to_wire(dict(trained), setup.wire_dtype)
    metrics |= setup.measures.exchange(download.variables, sent, data.size)

    def add(offset: jax.Array, end: jax.Array, start: jax.Array) -> jax.Array:
      return offset + (end - start)

    offset = jax.tree.map(add, memory, trees.widened(sent["params"]), received)
    return weigh(sent, setup.client_weight(data.size)), offset, metrics

  def server(
    state: averaging.State, upload: Upload
  ) -> tuple[averaging.State, dict[str, jax.Array]]:
    start = trees.widened(averaging.broadcast(setup, state).variables["params"])
    share = upload.weight / state.hyper.total_weight
    nonzero = jnp.where(upload.weight == 0, 1, upload.weight)

    def move(offset: jax.Array, total: jax.Array, start: jax.Array) -> jax.Array:
      return offset + share * (total / nonzero - start)

    offset = jax.tree.map(move, state.extra, upload.variables["params"], start)
    beyond = jax.tree.map(
      lambda total, o: total + upload.weight * o, upload.variables["params"], offset
    )
    target = upload._replace(variables={**upload.variables, "params": beyond})
    new, row = averaging.server(setup, state, target)
    return unless_nobody(upload.weight, new._replace(extra=offset), state), row

  def memory(variables: Variables, hyper: CommonHyper) -> Params:
    return jax.tree.map(jnp.zeros_like, trees.widened(variables["params"]))

  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=client,
    server=server,
    model=lambda state: state.variables,
    memory=memory,
  )


METHOD = Method("feddyn", "FedDyn", feddyn, Hyper, reads=("total_weight",))
