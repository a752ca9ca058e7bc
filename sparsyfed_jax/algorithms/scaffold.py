"""SCAFFOLD: FedAvg whose local steps are corrected for what makes clients drift apart.

Karimireddy et al., SCAFFOLD: Stochastic controlled averaging for federated learning, ICML 2020,
arXiv 1910.06378, algorithm 1 with option II. Client i keeps c_i, the mean gradient of its last
local training, and the server keeps their mean c. A local step is

    y <- y - lr * (gradient(y) - c_i + c),

and after K of them from x to y the client has c_i+ = c_i - c + (x - y) / (K * lr), K counting what
it did, as clients differ in size and stragglers stop early. It sends the model and c_i+ - c_i.

The server's c stays the mean of all clients' c_i, weighted as models are: with equal weights the
paper's `c + |S|/N * mean(c_i+ - c_i)`, and otherwise what suits the weighted mean of models. A
gradient includes the L2 and the proximal term and is clipped, if there are such; a step that
remembers earlier ones, as momentum and AdamW do, tells nothing of the mean gradient and is refused.
The rate may change from round to round.

Example:
  >>> import sparsyfed_jax as sf
  >>> data = sf.data.digits()
  >>> task = sf.classification(sf.models.MLP(10), data)
  >>> run = sf.simulate(sf.scaffold(), task, sf.data.dirichlet(data, alpha=0.1))
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.client import num_steps
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.method import Method
from sparsyfed_jax.fed.rule import LocalRule, train_client
from sparsyfed_jax.fed.server import Upload as Model
from sparsyfed_jax.fed.server import weighed
from sparsyfed_jax.types import ClientData, Key, Metrics, Params, Variables
from sparsyfed_jax.wire.rounding import round_to_wire


class Upload(NamedTuple):
  """The upload of a client, multiplied by its weight."""

  variables: Variables
  control: Params  # c_i+ - c_i
  weight: jax.Array  # () float32


def scaffold(setup: Setup) -> Algorithm:
  """Makes SCAFFOLD, with any server optimizer."""
  _require_stateless(setup)

  def init(variables: Variables, hyper: Hyper, key: Key) -> averaging.State:
    state = averaging.init(setup, variables, hyper._replace(density=jnp.float32(1)))
    return state._replace(extra=memory(variables, hyper))

  def broadcast(state: averaging.State) -> averaging.Download:
    control = round_to_wire(state.extra, setup.wire_dtype)
    return averaging.broadcast(setup, state)._replace(extra=control)

  def client(
    download: averaging.Download, memory: Params, data: ClientData, key: Key
  ) -> tuple[Upload, Params, Metrics]:
    received, control = download.variables, download.extra
    rule = LocalRule(correction=jax.tree.map(jnp.subtract, control, memory))
    trained, _, metrics = train_client(
      rule, setup.task, setup.local, download.rates, received, {}, data, key
    )
    # The way of all steps, of which a client without examples makes none.
    way = download.rates.client_lr * jnp.maximum(num_steps(setup.local, data), 1)

    def change(x: jax.Array, y: jax.Array, c: jax.Array) -> jax.Array:
      return (x - y) / way - c

    params = trees.widened((received["params"], trained["params"]))
    changes = round_to_wire(jax.tree.map(change, *params, control), setup.wire_dtype)
    sent = round_to_wire(dict(trained), setup.wire_dtype)
    metrics |= _exchange(setup, download, sent, changes, data)
    weight = setup.client_weight(data.size)
    upload = Upload(weighed(sent, weight), weighed(changes, weight), weight)
    return upload, jax.tree.map(jnp.add, memory, changes), metrics

  def server(
    state: averaging.State, upload: Upload
  ) -> tuple[averaging.State, dict[str, jax.Array]]:
    new, row = averaging.server(setup, state, Model(upload.variables, upload.weight))

    def move(c: jax.Array, total: jax.Array) -> jax.Array:
      return jnp.where(upload.weight == 0, c, c + total / state.hyper.total_weight)

    sent = _with_control(state.variables, state.extra)
    measured = setup.measures.step(sent, sent)
    row |= {name: measured[name] for name in ("downlink_bytes",) if name in measured}
    return new._replace(extra=jax.tree.map(move, state.extra, upload.control)), row

  def memory(variables: Variables, hyper: Hyper) -> Params:
    return jax.tree.map(jnp.zeros_like, trees.widened(variables["params"]))

  return Algorithm(
    init=init,
    broadcast=broadcast,
    client=client,
    server=server,
    model=lambda state: state.variables,
    memory=memory,
  )


def _require_stateless(setup: Setup) -> None:
  """Raises ValueError where clients' steps depend on earlier ones."""
  optimizer = setup.local.optimizer(jnp.float32(1), jnp.float32(0))
  if jax.tree.leaves(jax.eval_shape(optimizer.init, jnp.zeros(1))):
    raise ValueError(
      "scaffold: clients must train by SGD without momentum, whose way tells the mean gradient"
    )


def _exchange(
  setup: Setup, download: averaging.Download, sent: Variables, changes: Params, data: ClientData
) -> Metrics:
  """Measures what is sent, with the control variates beside the model."""
  received = _with_control(download.variables, download.extra)
  both = setup.measures.exchange(received, _with_control(sent, changes), data.size)
  return both | {
    name: value
    for name, value in setup.measures.exchange(download.variables, sent, data.size).items()
    if name != "round_uplink_bytes"
  }


def _with_control(variables: Variables, control: Params) -> Variables:
  return {**variables, "control": control}


METHOD = Method("scaffold", "SCAFFOLD", scaffold, reads=("total_weight",), needs_plain_sgd=True)
