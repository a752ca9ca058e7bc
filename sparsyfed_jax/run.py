"""A whole simulation in a few lines: a task, a method, clients, and the rounds of a run."""

import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparsyfed_jax import trees
from sparsyfed_jax.data.batches import batch_rows
from sparsyfed_jax.data.clients import Clients
from sparsyfed_jax.data.dataset import Dataset, flat
from sparsyfed_jax.fed import simulation as engine
from sparsyfed_jax.fed import task as tasks
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.cohort import Federation, federation_of, sum_over_clients
from sparsyfed_jax.fed.devices import AXIS, place, put, sum_over_devices
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.levelled import with_levels
from sparsyfed_jax.fed.measures import measures
from sparsyfed_jax.fed.memory import choose_chunk, target_of
from sparsyfed_jax.fed.method import Configured, Method, with_own
from sparsyfed_jax.fed.optimizers import ClientOptimizer, ServerOptimizer, sgd
from sparsyfed_jax.fed.ragged import are_uneven
from sparsyfed_jax.fed.rules import Knob, Pattern, checked
from sparsyfed_jax.fed.sampling import Availability, uniformly
from sparsyfed_jax.fed.schedules import SPARSITY_SCHEDULES, RateSchedule, exponential_rate
from sparsyfed_jax.fed.server import by_size
from sparsyfed_jax.fed.task import Task
from sparsyfed_jax.types import Key, Memory, Variables, make_keys, total
from sparsyfed_jax.wire.rounding import wire_dtypes

_SGD = sgd()


class State(NamedTuple):
  """A run between two rounds: a pytree of arrays.

  Example:
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> task = sf.classification(sf.models.MLP(10), data)
    >>> run = sf.simulate(sf.scaffold(), task, sf.data.iid(data, num_clients=20))
    >>> run.init(seed=0).memories["Dense_0"]["bias"].shape
    (20, 128)
  """

  server: Any  # as the method makes it; `server.round` is the number of rounds done
  memories: Memory  # what clients keep: (num_clients, ...) arrays, () of a method without memory
  key: Key  # of the chance in all rounds


class Run(NamedTuple):
  """A simulation, as `simulate` makes it; what it needs is compiled when first called.

  Example:
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> task = sf.classification(sf.models.MLP(10), data)
    >>> run = sf.simulate(sf.fedavg(), task, sf.data.iid(data))
    >>> sorted(run.evaluate(run.init(seed=0)))
    ['test_accuracy', 'test_loss']
  """

  algorithm: Algorithm
  simulation: engine.Simulation  # the compiled functions, for a loop of your own
  federation: Federation  # the clients' examples, on the devices
  x_test: jax.Array  # images flat, as those of `federation`
  y_test: jax.Array
  hyper: Hyper  # of numbers; the state holds its own copy
  num_rounds: int  # for which the run is planned

  def init(self, seed: int = 0) -> State:
    """Makes the state before the first round.

    Args:
      seed: of the initial model and of all that chance decides in rounds.
    """
    keys = make_keys(jax.random.key(seed))
    init_key, rounds_key = put((keys.init, keys.rounds), self.federation.sizes.sharding)
    start = self.simulation.init(self.hyper, init_key)
    return State(start.server, start.memories, rounds_key)

  def rounds(self, state: State, num_rounds: int) -> tuple[State, dict[str, np.ndarray]]:
    """Runs rounds, all of them in one compiled call, which cannot be interrupted.

    Args:
      state: from `init` or of earlier rounds. It is copied, not consumed, so that rounds can be run
        from it again; the engine's own `simulation.run` donates its argument.
      num_rounds: how many.

    Returns:
      The state after the rounds and what was measured in each, arrays (num_rounds, ...) by column,
      such as `train_loss`, `global_sparsity` and `round_uplink_bytes`.

    Raises:
      ValueError: the run is not planned for so many rounds; rates would leave their schedules.
    """
    done = int(state.server.round)
    if not 0 < num_rounds <= self.num_rounds - done:
      raise ValueError(
        f"num_rounds={num_rounds}: must be between 1 and {self.num_rounds - done}, as {done} of"
        f" the {self.num_rounds} rounds that the run is planned for are done; `simulate` takes"
        " more as rounds="
      )
    copy = jax.tree.map(jnp.copy, engine.State(state.server, state.memories))
    now, rows = self.simulation.run(copy, self.federation, state.key, np.int32(num_rounds))
    columns = {name: _whole(column[:num_rounds]) for name, column in jax.device_get(rows).items()}
    return State(now.server, now.memories, state.key), columns

  def evaluate(self, state: State) -> dict[str, float]:
    """Computes `test_loss` and the task's metrics, such as `test_accuracy` on the test set."""
    server = engine.State(state.server, ())
    scores = self.simulation.evaluate(server, self.x_test, self.y_test)
    return {name: float(score) for name, score in scores.items()}

  def model(self, state: State) -> Variables:
    """Reads out the variables with which the plain model, such as `MLP(10)`, predicts."""
    return self.algorithm.model(state.server)

  def client_model(self, state: State, number: int) -> Variables:
    """Reads out the variables with which one client predicts: those of `model`, of most methods.

    Args:
      state: of the run.
      number: of the client, from 0.
    """
    if self.algorithm.client_model is None:
      return self.model(state)
    memory = jax.tree.map(lambda leaf: leaf[number], state.memories)
    return self.algorithm.client_model(self.algorithm.broadcast(state.server), memory)


def classification(model: Any, data: Dataset, dtype: Any = jnp.float32, prunable: str = "") -> Task:
  """Makes the task of classifying the examples of a data set: softmax cross entropy.

  Args:
    model: of flax.linen, flax.nnx, Equinox, Haiku or a pair of functions `(init, apply)`, as
      `models.functions_of` takes it: a function of `(batch, *shape)` examples that gives logits.
    data: whose shape, scale and number of classes count.
    dtype: in which layers compute: `jnp.float32` or `jnp.bfloat16`. Parameters are float32.
    prunable: a regular expression, found in the paths of the parameters that methods may prune;
      by default all of at least two axes that are multiplied with a layer's input.

  Raises:
    ValueError: the model is of another kind, or its logits are not as many as the classes.

  Example:
    >>> import sparsyfed_jax as sf
    >>> from flax import linen as nn
    >>> data = sf.data.digits()
    >>> model = nn.Sequential([lambda x: x.reshape(-1, 64), nn.Dense(32), nn.relu, nn.Dense(10)])
    >>> sf.classification(model, data).kernels
    ('layers_1', 'layers_3')
  """
  shape = data.x_train.shape[1:]
  return tasks.classification(model, shape, data.mean, data.std, dtype, data.num_classes, prunable)


@checked
def simulate(  # noqa: D417 (`checked` describes the others)
  method: Configured | Method,
  task: Task,
  clients: Clients,
  *,
  clients_per_round: Annotated[
    int, Knob("clients sampled each round, without replacement", low=1)
  ] = 10,
  rounds: Annotated[int, Knob("for which the run is planned; rates decay over them", low=1)] = 100,
  local_epochs: Annotated[int, Knob("passes of a client over its examples", low=1)] = 5,
  batch_size: Annotated[int, Knob("examples of a local step", low=1)] = 16,
  client_optimizer: ClientOptimizer = _SGD,
  client_lr: Annotated[float, Knob("rate of the clients in the beginning", above=0)] = 0.5,
  client_lr_final: Annotated[
    float | None, Knob("rate after the last round; by default client_lr / 10", above=0)
  ] = None,
  rate_schedule: RateSchedule = exponential_rate,
  weight_decay: Annotated[float, Knob("L2 on trained parameters, in the clients", low=0)] = 1e-3,
  proximal_mu: Annotated[float, Knob("coefficient of FedProx's term", low=0)] = 0.0,
  server_optimizer: ServerOptimizer = optax.sgd,
  server_lr: Annotated[
    float, Knob("rate of the server; 1 adopts the mean, Adam and the like want 0.01", above=0)
  ] = 1.0,
  server_tau: Annotated[float, Knob("adaptivity of FedAdagrad, FedAdam, FedYogi", above=0)] = 1e-3,
  client_weight: Callable[[jax.Array], jax.Array] = by_size,
  availability: Availability = uniformly,
  client_dropout: Annotated[
    float, Knob("probability that a sampled client vanishes", low=0, below=1)
  ] = 0.0,
  straggler_fraction: Annotated[
    float, Knob("probability that a client does only a part of its steps", low=0, high=1)
  ] = 0.0,
  wire_dtype: Any = jnp.float32,
  wire_feedback: bool = False,
  clients_per_chunk: Annotated[
    int | None, Knob("clients vmapped at a time; by default as many as is fast and fits", low=1)
  ] = None,
) -> Run:
  """Simulates a federation of clients, on all devices of this process.

  The defaults are those of the program, so that with the same seed both compute the same.

  Args:
    method: `sparsyfed(sparsity=0.95)`, `fedavg()` and the like; or a `Method`, for its defaults.
    task: what is learned, as `classification` makes it.
    clients: a data set and whose examples are whose, such as `data.dirichlet` makes.
    client_optimizer: (rate, weight decay) -> optax optimizer of one client's round.
    rate_schedule: (first rate, last rate, share of the rounds done) -> the clients' rate.
    server_optimizer: (server_lr) -> optax optimizer on the pseudo-gradient.
    client_weight: (number of examples) -> weight of a client in the server's mean.
    availability: (sizes) -> how likely each client is.
    wire_dtype: to which models are rounded before they are sent; bytes are counted in it. int8 and
      int4 are those of uploads, and all else is bfloat16.
    wire_feedback: whether clients keep what rounding to int8 or int4 takes, and add it later.

  Returns:
    The run; nothing is compiled yet.

  Raises:
    ValueError: an argument is wrong; the message names it, its value and what would be right.

  Example:
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits(seed=0)
    >>> clients = sf.data.dirichlet(data, num_clients=100, alpha=0.1, seed=0)
    >>> task = sf.classification(sf.models.MLP(10, hidden=(8,)), data)
    >>> run = sf.simulate(sf.sparsyfed(sparsity=0.9), task, clients, local_epochs=1)
    >>> state, rows = run.rounds(run.init(seed=0), 2)
    >>> rows["train_loss"].shape
    (2,)
  """
  if not isinstance(method, Configured | Method):
    raise TypeError(f"method={method!r}: must be called, as in sparsyfed_jax.sparsyfed()")
  sizes = clients.sizes
  if clients_per_round > len(sizes):
    raise ValueError(
      f"clients_per_round={clients_per_round}: must be at most {len(sizes)}, the number of clients"
    )
  _check_functions(client_optimizer, client_weight)
  numbers = {
    "rounds": rounds,
    "client_lr": client_lr,
    "client_lr_final": client_lr / 10 if client_lr_final is None else client_lr_final,
    "weight_decay": weight_decay,
    "proximal_mu": proximal_mu,
    "server_lr": server_lr,
    "server_tau": server_tau,
    "client_dropout": client_dropout,
    "straggler_fraction": straggler_fraction,
  }
  chosen = method() if isinstance(method, Method) else method
  others = dict(
    clients_per_round=clients_per_round, local_epochs=local_epochs, batch_size=batch_size
  )
  settings = numbers | others | chosen.sparsity._asdict()
  chosen = chosen.completed(SimpleNamespace(**settings))
  hyper = Hyper(
    **{name: jnp.float32(value) for name, value in numbers.items()},
    density=jnp.float32(1 - chosen.sparsity.sparsity),
    ramp_rounds=jnp.float32(chosen.sparsity.sparsity_ramp_rounds),
    total_weight=jnp.sum(client_weight(jnp.asarray(sizes, jnp.int32))),
  )
  setup = Setup(
    task=tasks.of_flat(task, clients.data.x_train.shape[1:]),
    local=LocalTraining(
      batch_rows(batch_size, sizes),
      local_epochs,
      client_optimizer,
      is_proximal=proximal_mu > 0,
      is_ragged=straggler_fraction > 0 or are_uneven(sizes, batch_size),
    ),
    server_optimizer=server_optimizer,
    sparsity_schedule=SPARSITY_SCHEDULES[chosen.sparsity.sparsity_schedule],
    rate_schedule=rate_schedule,
    client_weight=client_weight,
    measures=measures(jnp.dtype(wire_dtype)),
    wire_dtype=wire_dtypes(wire_dtype)[0],
  )
  _check_patterns(chosen, setup.task)
  algorithm = chosen.method.algorithm(setup, chosen.options)
  return _on_devices(
    with_levels(algorithm, wire_dtype, wire_feedback),
    setup,
    with_own(hyper, chosen.hyper),
    clients,
    clients_per_round,
    clients_per_chunk,
    rounds,
    availability,
  )


def _on_devices(
  algorithm: Algorithm,
  setup: Setup,
  hyper: Hyper,
  clients: Clients,
  clients_per_round: int,
  clients_per_chunk: int | None,
  rounds: int,
  availability: Availability,
) -> Run:
  """Makes the functions of a run and puts its data on the devices of this process."""
  data = clients.data
  mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
  federation = _federation(clients)
  per_device = -(-clients_per_round // mesh.size)
  chunk = clients_per_chunk or _chunk(setup, federation, per_device, mesh)
  simulation = engine.simulate(
    algorithm,
    setup.task,
    clients_per_round=clients_per_round,
    clients_per_chunk=min(chunk, per_device),
    rounds_per_call=rounds,
    eval_batch_size=min(500, len(data.y_test)),
    availability=availability,
    sum_cohort=(
      sum_over_clients if mesh.size == 1 else partial(sum_over_devices, mesh, "replicated")
    ),
    measures=setup.measures,
    num_clients=len(clients.parts),
  )
  everywhere = NamedSharding(mesh, PartitionSpec())
  x_test, y_test, hyper = put((flat(data.x_test), data.y_test, hyper), everywhere)
  return Run(
    algorithm=algorithm,
    simulation=simulation,
    federation=place(federation, mesh, "replicated"),
    x_test=x_test,
    y_test=y_test,
    hyper=hyper,
    num_rounds=rounds,
  )


def _check_patterns(chosen: Configured, task: Task) -> None:
  for name in (one.name for one in chosen.method.arguments() if isinstance(one.rule, Pattern)):
    pattern = getattr(chosen.options, name)
    if pattern and not any(map(trees.name_finder(pattern), task.layer_names)):
      layers = ", ".join(task.layer_names)
      raise ValueError(f"{name}={pattern!r}: must find a layer of the model: {layers}")


def _check_functions(
  client_optimizer: ClientOptimizer, client_weight: Callable[[jax.Array], jax.Array]
) -> None:
  """Refuses functions that would be called and yet do something else; raises ValueError."""
  positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
  parameters = inspect.signature(client_optimizer).parameters.values()
  needed = [one for one in parameters if one.kind in positional and one.default is one.empty]
  if len(needed) != 2:  # optax.sgd would take the weight decay for its momentum
    raise ValueError(
      f"client_optimizer={client_optimizer!r}: must take a rate and a weight decay, as"
      " fed.sgd(momentum=0.9) does, or lambda rate, decay: optax.adamw(rate, weight_decay=decay)"
    )
  if np.any(client_weight(jnp.zeros(1, jnp.int32))):  # such as of those that vanish
    raise ValueError(f"client_weight={client_weight!r}: must be 0 of 0 examples")


def _federation(clients: Clients) -> Federation:
  federation = federation_of(flat(clients.data.x_train), clients.data.y_train, clients.parts)
  size = len(clients.data.y_train)
  outside = federation.indices[(federation.indices < 0) | (federation.indices >= size)]
  if len(outside):
    raise ValueError(f"clients: parts hold {outside[0]}, must hold indices from 0 to {size - 1}")
  return federation


def _chunk(setup: Setup, federation: Federation, clients_per_device: int, mesh: Mesh) -> int:
  example, label = (
    jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in (federation.x, federation.y)
  )
  target = target_of(mesh.local_devices[0])
  return choose_chunk(setup, example, clients_per_device, target, label)


def _whole(column: np.ndarray) -> np.ndarray:
  """Puts sums together that came in parts."""
  return total(column) if column.dtype == np.uint32 and column.ndim == 2 else column
