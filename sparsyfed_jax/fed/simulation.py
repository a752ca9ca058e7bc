"""The round loop, compiled as one call, and evaluation on the central test set."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.stages import Wrapped

from sparsyfed_jax.data.batches import take_batch
from sparsyfed_jax.fed.agreement import mask_agreement, pack_masks
from sparsyfed_jax.fed.algorithm import Algorithm, masks_of_model
from sparsyfed_jax.fed.clock import devices_of, look_up, start_clock
from sparsyfed_jax.fed.cohort import (
  CLIENTS,
  EXCLUDED,
  Federation,
  sum_over_clients,
  upload_shapes,
)
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.measures import MEASURES, Measures
from sparsyfed_jax.fed.sampling import Availability, Cohort, ends_of, sample, uniformly
from sparsyfed_jax.fed.streaming import Staged
from sparsyfed_jax.fed.task import EXAMPLES, Task
from sparsyfed_jax.fed.timing import Timing, costs_of_round, end_round, race_of
from sparsyfed_jax.types import ClientData, Key, Mean, Memory, Metrics, Variables, tally

# As `sum_over_clients`.
SumCohort: TypeAlias = Callable[..., tuple[Any, Memory, Metrics]]


class RoundKeys(NamedTuple):
  """PRNG keys of one round."""

  sampling: Key
  training: Key
  fates: Key


class State(NamedTuple):
  """A run between two rounds."""

  server: Any  # as the method makes it
  memories: Memory  # what clients keep: (num_clients, ...) arrays, () of a method without memory
  clock: Any = ()  # `clock.Clock`, where rounds are timed


class Simulation(NamedTuple):
  """A federated run as jitted functions, compiled when first called; a state is a `State`.

  Example:
    >>> import jax
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> task = sf.classification(sf.models.MLP(10), data)
    >>> run = sf.simulate(sf.fedavg(), task, sf.data.iid(data))
    >>> state = run.simulation.init(run.hyper, jax.random.key(0))
    >>> state.server.round
    Array(0, dtype=int32)
  """

  init: Wrapped  # (hyper, key) -> state before round 1
  # (state, federation, key, num_rounds) -> (state, rows): the state given is donated. Rows are
  # arrays of rounds_per_call entries by name, of which the first num_rounds count.
  run: Wrapped
  # (state, staged, key) -> (state, row): one round on examples that the host sent, and with the
  # memories of its clients alone; the state given is donated. Rows are as of `run`, of one entry.
  run_staged: Wrapped
  # (state, sizes, key, fleet=()) -> the cohorts of the coming rounds_per_call rounds; with a fleet
  # that has hours only the first is as it will be
  draw: Wrapped
  # (state, x, y) -> test_loss and the task's metrics, such as test_accuracy, () float32
  evaluate: Wrapped
  # (state, x, y) -> how good the model is on each example, a `Mean` of (num_examples,) arrays
  score_each: Wrapped
  # (state, x, y, rows) -> the same, of each client's own model on its own examples: rows are
  # (num_clients, most) int32, of x and y, and filled up with their number; an example that is
  # nobody's has the weight 0. Of methods that have `client_model`, and with all memories
  score_own: Wrapped
  # (state, federation, key) -> mean pairwise IoU of the masks of the coming round's clients, or of
  # as many of them as are compared; () float32
  agree: Wrapped
  # state -> the global model's mask, eight entries a byte; uint8
  pack: Wrapped


def simulate(
  algorithm: Algorithm,
  task: Task,
  clients_per_round: int,
  clients_per_chunk: int,
  rounds_per_call: int,
  eval_batch_size: int,
  availability: Availability = uniformly,
  sum_cohort: SumCohort = sum_over_clients,
  matmul_precision: str = "float32",
  measures: Measures = MEASURES,
  compared_clients: int = 10,
  num_clients: int = 1,
  timing: Timing | None = None,
) -> Simulation:
  """Makes a simulation.

  Args:
    algorithm: the method.
    task: what is learned.
    clients_per_round: sampled without replacement; at most the number of clients.
    clients_per_chunk: how many of them are vmapped at a time.
    rounds_per_call: at most how many rounds `run` does at once.
    eval_batch_size: test examples a step.
    availability: how likely each client is, of its size.
    sum_cohort: `sum_over_clients`, or `sum_over_devices` with its mesh and placement given.
    matmul_precision: of float32 products on accelerators, as `jax.default_matmul_precision` has it:
      "float32" or "tensorfloat32". The CPU knows only one.
    measures: what every round reports of the global model; a method may know better.
    compared_clients: maximum number of clients that `agree` compares.
    num_clients: for how many `init` makes memories; for one, where they are placed otherwise.
    timing: how rounds are timed, where `federation` has a fleet; it needs the default measures.
      Of `clients_per_round` those count that report first.

  Example:
    >>> import jax
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> task = sf.classification(sf.models.MLP(10), data)
    >>> run = sf.simulate(sf.fedavg(), task, sf.data.iid(data))
    >>> sizes = dict(clients_per_round=5, clients_per_chunk=5, rounds_per_call=1)
    >>> engine = simulate(run.algorithm, task, **sizes, eval_batch_size=100)
    >>> state = engine.init(run.hyper, jax.random.key(0))
    >>> scores = engine.evaluate(state, run.x_test, run.y_test)
    >>> sorted(scores)
    ['test_accuracy', 'test_loss']
  """
  sampled = partial(sample_cohort, clients_per_round, availability)
  one_round = partial(run_round, algorithm, clients_per_chunk, sum_cohort, measures, task, timing)

  def init(hyper: Hyper, key: Key) -> State:
    model_key, state_key = jax.random.split(key)
    variables = task.init(model_key)

    def for_all(leaf: jax.Array) -> jax.Array:
      return jnp.broadcast_to(leaf, (num_clients, *jnp.shape(leaf)))

    memories = jax.tree.map(for_all, algorithm.memory(variables, hyper))
    clock = () if timing is None else start_clock()
    return State(algorithm.init(variables, hyper, state_key), memories, clock)

  def run(
    state: State, federation: Federation, key: Key, num_rounds: int
  ) -> tuple[State, dict[str, jax.Array]]:
    @jax.jit  # traced once, for the shapes and for the loop
    def next_round(
      state: State, federation: Federation, key: Key, ends: jax.Array | None
    ) -> tuple[State, dict[str, jax.Array]]:
      keys = keys_of_round(key, state.server.round + 1)
      with jax.named_scope("sampling"):
        cohort = sampled(federation.sizes, ends, state, keys, federation.fleet)
      return one_round(state, federation, cohort, keys)

    ends = ends_of(availability, federation.sizes)
    shapes = jax.eval_shape(next_round, state, federation, key, ends)[1]
    rows = {
      name: jnp.zeros((rounds_per_call, *leaf.shape), leaf.dtype) for name, leaf in shapes.items()
    }

    def body(i: jax.Array, carry: Any) -> Any:
      state, rows = carry
      state, row = next_round(state, federation, key, ends)
      put = partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
      return state, {name: put(rows[name], row[name]) for name in rows}

    return lax.fori_loop(0, num_rounds, body, (state, rows))

  def run_staged(state: State, staged: Staged, key: Key) -> tuple[State, dict[str, jax.Array]]:
    keys = keys_of_round(key, state.server.round + 1)
    state, row = one_round(state, staged.federation, staged.cohort, keys)
    return state, {name: leaf[None] for name, leaf in row.items()}

  def draw(state: State, sizes: jax.Array, key: Key, fleet: Any = ()) -> Cohort:
    numbers = state.server.round + 1 + jnp.arange(rounds_per_call)
    ends = ends_of(availability, sizes)
    return lax.map(lambda n: sampled(sizes, ends, state, keys_of_round(key, n), fleet), numbers)

  def over_batches(
    score: Callable[..., Any], variables: Variables, data: ClientData, batch_size: int
  ) -> Any:
    def of_batch(step: jax.Array) -> Any:
      return score(variables, take_batch(data, step, batch_size))

    return lax.map(of_batch, jnp.arange(-(-data.indices.shape[0] // batch_size)))

  def over_tests(score: Callable[..., Any], state: State, x: jax.Array, y: jax.Array) -> Any:
    data = _examples(x, y, jnp.arange(y.shape[0]))
    return over_batches(score, algorithm.model(state.server), data, eval_batch_size)

  def evaluate(state: State, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    scores = over_tests(task.evaluate, state, x, y)
    sums = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), scores)
    return {f"test_{name}": value for name, value in _values(task, sums).items()}

  def score_each(state: State, x: jax.Array, y: jax.Array) -> Mean:
    scores = over_tests(task.score_each, state, x, y)
    return jax.tree.map(lambda leaf: leaf.reshape(-1)[: y.shape[0]], scores)

  def score_own(state: State, x: jax.Array, y: jax.Array, rows: jax.Array) -> Mean:
    read, most = algorithm.client_model, rows.shape[1]
    if read is None:
      raise ValueError("clients of this method have no models of their own")
    download, batch_size = algorithm.broadcast(state.server), min(eval_batch_size, most)

    def of_client(memory: Memory, own: jax.Array) -> Any:
      is_filled = own < y.shape[0]
      data = _examples(x, y, jnp.where(is_filled, own, 0))
      data = data._replace(size=jnp.sum(is_filled, dtype=jnp.int32))
      scores = over_batches(task.score_each, read(download, memory), data, batch_size)
      return jax.tree.map(lambda leaf: leaf.reshape(-1)[:most], scores)

    scores = lax.map(lambda pair: of_client(*pair), (state.memories, rows))
    nothing = jnp.zeros(y.shape[0], jnp.float32)
    return jax.tree.map(lambda leaf: nothing.at[rows].set(leaf, mode="drop"), scores)

  def agree(state: State, federation: Federation, key: Key) -> jax.Array:
    keys = keys_of_round(key, state.server.round + 1)
    ends = ends_of(availability, federation.sizes)
    cohort = sampled(federation.sizes, ends, state, keys, federation.fleet)
    before = state.server, state.memories
    return mask_agreement(algorithm, compared_clients, *before, federation, cohort, keys.training)

  def pack(state: State) -> jax.Array:
    if algorithm.client_model is not None:
      return pack_masks(masks_of_model(algorithm.model(state.server)))
    return pack_masks(algorithm.masks(algorithm.broadcast(state.server)))

  precise = jax.default_matmul_precision(matmul_precision)
  return Simulation(
    init=jax.jit(init),
    run=jax.jit(precise(run), donate_argnums=0),
    run_staged=jax.jit(precise(run_staged), donate_argnums=0),
    draw=jax.jit(draw),
    evaluate=jax.jit(precise(evaluate)),
    score_each=jax.jit(precise(score_each)),
    score_own=jax.jit(precise(score_own)),
    agree=jax.jit(precise(agree)),
    pack=jax.jit(pack),
  )


def keys_of_round(key: Key, number: jax.Array) -> RoundKeys:
  """Makes the keys of a round.

  Args:
    key: of all rounds.
    number: () int32 of the round, from 1.
  """
  # All at once: a program that draws one by one takes longer to compile.
  num_uses = len(RoundKeys._fields)
  uses = num_uses * number + jnp.arange(num_uses)
  return RoundKeys(*jax.vmap(jax.random.fold_in, (None, 0))(key, uses))


def sample_cohort(
  clients_per_round: int,
  availability: Availability,
  sizes: jax.Array,
  ends: jax.Array | None,
  state: State,
  keys: RoundKeys,
  fleet: Any = (),
) -> Cohort:
  """Samples the clients of a round.

  Args:
    clients_per_round: as in `simulate`.
    availability: as in `simulate`.
    sizes: (num_clients,) int32 numbers of examples.
    ends: as `sampling.ends_of` makes them.
    state: before the round, whose hyper has dropout and stragglers; and its clock.
    keys: of the round.
    fleet: `clock.Fleet`, or () where rounds are not timed.
  """
  draw = partial(sample, keys.sampling, keys.fates, sizes, clients_per_round, availability)
  if not fleet:
    return draw(state.server.hyper, ends=ends)

  def waits(numbers: jax.Array) -> jax.Array:
    return look_up(fleet.hours, state.clock, numbers)[0]

  cohort = draw(state.server.hyper, waits if fleet.hours else None, ends)
  return cohort._replace(device=devices_of(fleet, state.clock, cohort.numbers))


def run_round(
  algorithm: Algorithm,
  clients_per_chunk: int,
  sum_cohort: SumCohort,
  measures: Measures,
  task: Task,
  timing: Timing | None,
  state: State,
  federation: Federation,
  cohort: Cohort,
  keys: RoundKeys,
) -> tuple[State, dict[str, jax.Array]]:
  """Runs one round.

  Args:
    algorithm: the method.
    clients_per_chunk: as in `simulate`.
    sum_cohort: as in `simulate`.
    measures: as in `simulate`.
    task: as in `simulate`.
    timing: as in `simulate`.
    state: with the keys it decides everything that happens in the round.
    federation: all clients' data, or that of the cohort.
    cohort: who takes part.
    keys: of the round.

  Returns:
    The new state, and the round's metrics by name: () arrays, (num_layers,) of layers, or (3,)
    uint32 of sums that float32 would round: `types.total` puts them together.
  """

  def client(
    download: Any, memory: Memory, data: ClientData, key: Key
  ) -> tuple[Any, Memory, Metrics]:
    upload, memory, metrics = algorithm.client(download, memory, data, key)
    name = f"train_{EXAMPLES}"
    seen = metrics[name if name in metrics else "train_loss"]
    return upload, memory, {**metrics, "examples": tally(seen.weight)}

  number = state.server.round + 1
  with jax.named_scope("server"):
    download = algorithm.broadcast(state.server)
  arguments = client, download, state.memories, federation
  devices, race = cohort.device, {}
  if timing is not None:
    shapes = upload_shapes(*arguments, cohort, keys.training)
    costs = costs_of_round(timing, algorithm, measures, state.server, shapes, devices)
    cohort = cohort._replace(device=costs)
    race = {"race": race_of(timing, cohort)}
  with jax.named_scope("clients"):
    upload, memories, sums = sum_cohort(
      *arguments, cohort, keys.training, clients_per_chunk, **race
    )
  clock, timed = state.clock, dict[str, jax.Array]()
  has_vanished = ~cohort.is_present
  if timing is not None:
    has_vanished &= devices.wait == 0
    has_work = (devices.wait == 0) & (federation.sizes[cohort.numbers] > 0)
    clock, timed = end_round(timing, clock, devices, has_work, sums)
  counts = {name: sums.pop(name).total for name in (CLIENTS, EXCLUDED)}
  with jax.named_scope("server"):
    server, server_metrics = algorithm.server(state.server, upload)
    before, after = download.variables, algorithm.broadcast(server).variables
  with jax.named_scope("measures"):
    measured = measures.model(after) | measures.step(before, after)
  return State(server, memories, clock), {
    "round": number,
    **_train_values(task, sums),
    **measured,
    "dropped_clients": jnp.sum(has_vanished, dtype=jnp.float32),
    **counts,
    **timed,
    **server_metrics,  # a method may know better what it sends
  }


def _examples(x: jax.Array, y: jax.Array, rows: jax.Array) -> ClientData:
  """Makes all rows of some examples what is evaluated."""
  chex.assert_equal_shape_prefix([x, y], 1)  # or gathering would repeat the last rows
  return ClientData(x, y, rows, jnp.int32(len(rows)), jnp.float32(1), jnp.float32(1))


def _values(task: Task, sums: Metrics) -> dict[str, jax.Array]:
  """Makes numbers of a task's sums, and adds the metrics that are computed of those."""
  values = {name: mean.value for name, mean in sums.items()}
  if set(task.sums) <= set(sums):  # a method of one's own may report the loss alone
    values |= {metric.name: metric.of(values) for metric in task.metrics if metric.of is not None}
  shown = ("loss", *(metric.name for metric in task.metrics))
  return {name: value for name, value in values.items() if name in shown}


def _train_values(task: Task, sums: Metrics) -> dict[str, jax.Array]:
  """Makes numbers of the sums of a round."""
  names = {f"train_{name}": name for name in task.sums}
  own = {names[name]: mean for name, mean in sums.items() if name in names}
  others = {name: mean.value for name, mean in sums.items() if name not in names}
  return others | {f"train_{name}": value for name, value in _values(task, own).items()}
