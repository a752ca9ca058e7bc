"""Building blocks for methods that send a model, train it locally and average the uploads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import optimizers
from sparsyfed_jax.fed import server as server_step
from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.pruning import prune_globally
from sparsyfed_jax.fed.rule import Carry, LocalRule, Rates, train_client
from sparsyfed_jax.fed.schedules import client_lr_at, density_at
from sparsyfed_jax.fed.server import Upload, weigh
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params, Variables
from sparsyfed_jax.wire.rounding import round_to_wire

# Selects the parameters to upload: (received, trained, density) -> pytree like them.
Selection = Callable[[Params, Params, jax.Array], Params]


class State(NamedTuple):
  """The server between two rounds."""

  round: jax.Array  # () int32, rounds done
  variables: Variables  # the global model, as it is sent
  opt_state: optax.OptState
  hyper: Hyper
  updated: jax.Array  # () int32, the last round that had an update, 0 before
  extra: Any = ()  # what a method keeps besides


class Download(NamedTuple):
  """The download of a round, the same for all clients."""

  variables: Variables
  rates: Rates
  density: jax.Array  # () float32, to prune to before the upload
  received_density: jax.Array  # () float32, that of the last round that had an update
  hyper: Hyper
  extra: Any = ()  # what a method sends besides


def init(setup: Setup, variables: Variables, hyper: Hyper) -> State:
  """Makes the state before round 1."""
  opt_state = server_optimizer(setup, hyper).init(variables["params"])
  return State(jnp.int32(0), dict(variables), opt_state, hyper, updated=jnp.int32(0))


def server_optimizer(setup: Setup, hyper: Hyper) -> optax.GradientTransformation:
  """Makes the server optimizer with the learning rate and tau of a run."""
  return optimizers.server_optimizer(setup.server_optimizer, hyper.server_lr, hyper.server_tau)


def rates_at(setup: Setup, hyper: Hyper, round_number: jax.Array) -> Rates:
  """Computes the learning rate, weight decay and proximal coefficient of a round."""
  lr = client_lr_at(setup.rate_schedule, hyper, round_number)
  return Rates(lr, hyper.weight_decay, hyper.proximal_mu)


def broadcast(setup: Setup, state: State) -> Download:
  """Makes the download of the next round."""
  hyper = state.hyper
  number = state.round + 1
  return Download(
    variables=round_to_wire(state.variables, setup.wire_dtype),
    rates=rates_at(setup, hyper, number),
    density=density_at(setup.sparsity_schedule, hyper, number),
    # The first model is sent dense, whatever the schedule.
    received_density=jnp.where(
      state.updated == 0, 1.0, density_at(setup.sparsity_schedule, hyper, state.updated)
    ),
    hyper=hyper,
  )


def all_trained(received: Params, trained: Params, density: jax.Array) -> Params:
  """Selects all parameters."""
  return trained


def largest_trained(received: Params, trained: Params, density: jax.Array) -> Params:
  """Selects the parameters of largest magnitude over the whole model."""
  return prune_globally(trained, density)


def largest_changes(received: Params, trained: Params, density: jax.Array) -> Params:
  """Selects the largest changes of prunable parameters; the others are sent as they are."""
  return prune_globally(changes(received, trained), density)


def changes(received: Params, trained: Params) -> Params:
  """Subtracts the received prunable parameters from the trained; keeps the others as trained."""
  moved = trees.map_prunable(jnp.subtract, trees.widened(trained), trees.widened(received))
  return trees.cast_like(moved, trained)


def client(
  setup: Setup,
  rule: LocalRule,
  carry: Carry,
  select: Selection,
  download: Download,
  memory: Memory,
  data: ClientData,
  key: Key,
) -> tuple[Upload, Memory, Metrics]:
  """Trains the received model, selects what is uploaded, and multiplies it by the weight.

  Args:
    setup: of the method.
    rule: of local training.
    carry: what the rule starts from.
    select: what is sent.
    download: what the client received.
    memory: () or, of a method that sends changes, what the client has not sent of earlier ones, for
      each prunable leaf: it is added to what it could send.
    data: its examples.
    key: of the client's round.
  """
  received = receive(setup, download, data)
  trained, _, metrics = train_client(
    rule, setup.task, setup.local, download.rates, received, carry, data, key
  )
  params = _with_rest(trained["params"], memory) if memory else trained["params"]
  sent = select(received["params"], params, scaled(setup, download.density, data))
  upload = round_to_wire({**trained, "params": sent}, setup.wire_dtype)
  if memory:
    memory = _rest(received["params"], params, upload["params"])
  metrics |= setup.measures.exchange(download.variables, upload, data.size)
  return weigh(upload, setup.client_weight(data.size)), memory, metrics


def no_rest(variables: Variables, hyper: Hyper) -> list[jax.Array]:
  """Makes the memory of error feedback before a client's first round.

  Seide et al., 1-bit stochastic gradient descent, Interspeech 2014; Stich et al., Sparsified SGD
  with memory, NeurIPS 2018, arXiv 1809.07599: what was not sent is added to the next changes, so
  that nothing is lost for good.
  """
  return [jnp.zeros_like(leaf) for leaf in _kernels(variables["params"])]


def _with_rest(params: Params, rest: list[jax.Array]) -> Params:
  _, rebuild = trees.split_prunable(params)
  pairs = zip(_kernels(params), rest, strict=True)
  return trees.cast_like(rebuild([leaf + more for leaf, more in pairs]), params)


def _rest(received: Params, params: Params, sent: Params) -> list[jax.Array]:
  triples = zip(*map(_kernels, (received, params, sent)), strict=True)
  return [there - here - change for here, there, change in triples]


def _kernels(params: Params) -> list[jax.Array]:
  return trees.split_prunable(trees.widened(params))[0]


def receive(setup: Setup, download: Download, data: ClientData) -> Variables:
  """Makes the model a client starts from: the download, pruned to the density of this client.

  With clients of one density nothing is pruned: what was sent is the union of their masks.
  """
  if not setup.is_heterogeneous:
    return download.variables
  density = scaled(setup, download.received_density, data)
  params = prune_globally(download.variables["params"], density)
  return {**download.variables, "params": params}


def scaled(setup: Setup, density: jax.Array, data: ClientData) -> jax.Array:
  """Scales the density of the run to this client; () float32, at most 1."""
  if not setup.is_heterogeneous:
    return density
  return jnp.where(density < 1, jnp.minimum(density * data.density_scale, 1), 1)


def server(
  setup: Setup, state: State, upload: Upload, is_change: bool = False
) -> tuple[State, dict[str, jax.Array]]:
  """Takes one step towards the mean of the uploads; statistics of the model become their mean.

  Args:
    setup: of the method.
    state: before the round.
    upload: summed over the cohort.
    is_change: whether clients sent the change of prunable parameters instead of their values.
  """
  nobody = state.variables
  if is_change:
    unmoved = trees.map_prunable(jnp.zeros_like, state.variables["params"])
    nobody = {**state.variables, "params": unmoved}
  target = server_step.mean(upload, nobody)
  if is_change:
    before = trees.widened(state.variables["params"])
    moved = trees.map_prunable(jnp.add, target["params"], before)
    target = {**target, "params": moved}
  return follow(setup, state, target, upload.weight)


def follow(
  setup: Setup, state: State, target: Variables, weight: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
  """Takes one step towards a model; its statistics become those of that model.

  Args:
    setup: of the method.
    state: before the round.
    target: like the state's model, float32 at least.
    weight: () float32, of the summed upload; there is no step where it is 0.
  """
  optimizer = server_optimizer(setup, state.hyper)
  params, opt_state = server_step.step(
    optimizer, state.opt_state, state.variables["params"], target["params"]
  )
  variables = trees.cast_like({**target, "params": params}, dict(state.variables))
  number = state.round + 1
  new = state._replace(round=number, variables=variables, opt_state=opt_state, updated=number)
  new = server_step.unless_nobody(weight, new, state)
  sent = broadcast(setup, state)
  return new, {"client_lr": sent.rates.client_lr, "target_sparsity": 1 - sent.density}
