"""What methods share that send a model, train it locally, and average what returns."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsyfed_jax.fed import server as server_step
from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.fed.client import exchange_metrics, train
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.schedules import client_lr_at, density_at
from sparsyfed_jax.fed.server import Upload, weigh
from sparsyfed_jax.ops import LayerOps
from sparsyfed_jax.types import Batch, ClientData, Key, Metrics, Params, Variables


class State(NamedTuple):
  """The server between two rounds."""

  round: jax.Array  # () int32, rounds done
  variables: Variables  # the global model, as it is sent
  opt_state: optax.OptState
  hyper: Hyper


class Download(NamedTuple):
  """What every client of a round receives."""

  variables: Variables
  client_lr: jax.Array  # () float32, as all below
  weight_decay: jax.Array
  density: jax.Array  # to prune to before the upload
  beta: jax.Array
  activation_floor: jax.Array


def unchanged(params: Params) -> Params:
  """Returns its argument: no reparameterisation, or nothing pruned."""
  return params


def init(setup: Setup, variables: Variables, hyper: Hyper) -> State:
  """Makes the state before round 1."""
  optimizer = setup.server_optimizer(hyper.server_lr)
  return State(jnp.int32(0), dict(variables), optimizer.init(variables["params"]), hyper)


def broadcast(setup: Setup, state: State) -> Download:
  """Makes what the clients of the coming round receive."""
  hyper = state.hyper
  number = state.round + 1
  return Download(
    variables=state.variables,
    client_lr=client_lr_at(hyper, number),
    weight_decay=hyper.weight_decay,
    density=density_at(setup.sparsity_schedule, hyper, number),
    beta=hyper.beta,
    activation_floor=hyper.activation_floor,
  )


def client(
  setup: Setup,
  weights: Callable[[Params], Params],
  layers: Callable[[Batch], LayerOps],
  prune: Callable[[Params], Params],
  download: Download,
  data: ClientData,
  key: Key,
) -> tuple[Upload, Metrics]:
  """Trains what was received and weighs what is left after pruning.

  Args:
    setup: of the method.
    weights: makes the weights that layers compute with of the trained parameters.
    layers: makes what layers compute with in the training steps of a batch.
    prune: sets parameters to 0 before the upload.
    download: what the client received.
    data: its examples.
    key: decides their order.
  """

  def grad_fn(
    variables: Variables, batch: Batch, key: Key
  ) -> tuple[Params, tuple[Variables, Metrics]]:
    def loss(params: Params) -> tuple[jax.Array, tuple[Variables, Metrics]]:
      computing = {**variables, "params": weights(params)}
      return setup.task.loss(computing, batch, layers(batch), key)

    return jax.grad(loss, has_aux=True)(variables["params"])

  optimizer = optax.chain(
    optax.add_decayed_weights(download.weight_decay), setup.local.optimizer(download.client_lr)
  )
  trained, metrics = train(
    setup.local, grad_fn, optimizer, unchanged, download.variables, data, key
  )
  pruned = {**trained, "params": prune(trained["params"])}
  metrics |= exchange_metrics(download.variables, pruned, data.size)
  return weigh(pruned, data.size), metrics


def server(setup: Setup, state: State, upload: Upload) -> tuple[State, dict[str, jax.Array]]:
  """Takes one step towards the mean of the uploads; statistics of the model become their mean."""
  target = server_step.mean(upload, state.variables)
  optimizer = setup.server_optimizer(state.hyper.server_lr)
  params, opt_state = server_step.step(
    optimizer, state.opt_state, state.variables["params"], target["params"]
  )
  new = State(state.round + 1, {**target, "params": params}, opt_state, state.hyper)
  sent = broadcast(setup, state)
  return new, {"client_lr": sent.client_lr, "target_sparsity": 1 - sent.density}
