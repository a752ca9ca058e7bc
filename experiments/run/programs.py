"""The compiled programs of a run, or of several runs side by side."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.run.build import Experiment
from experiments.run.clients import lists_of
from experiments.run.compiling import compile_in_turn
from experiments.run.layout import Layout, layout_of, without_memories
from sparsyfed_jax.fed.cohort import Federation
from sparsyfed_jax.fed.devices import platform_of
from sparsyfed_jax.fed.simulation import Simulation, State
from sparsyfed_jax.fed.streaming import Staged, run_staged, stage
from sparsyfed_jax.types import Key, Memory


class Inputs(NamedTuple):
  """What programs are run on; of several runs, what differs has a leading axis."""

  federation: Federation  # where it is streamed, of NumPy arrays
  shifted: Federation  # what it becomes after --shift_round
  x_test: jax.Array
  y_test: jax.Array
  hyper: Any
  init_key: Key
  rounds_key: Key


class Programs(NamedTuple):
  """The compiled functions of a run; those of several runs have a leading axis on all results.

  A state lies where `place` puts it, and is saved as `collect` makes it.
  """

  init: Callable[[Inputs], Any]  # inputs -> state before round 1, to be placed
  # (state, inputs, num_rounds) -> state and rows, arrays by name of which the first num_rounds
  # entries (along the last axis) count; the state given is donated
  run: Callable[[Any, Inputs, int], tuple[Any, dict[str, np.ndarray]]]
  evaluate: Callable[[Any, Inputs], dict[str, np.ndarray]]
  # The others are compiled when first called.
  # (state, inputs, of each run whose its test examples are) -> how good the model is on each, as
  # `Simulation`; where clients have models of their own, that of the example's client
  score_each: Callable[[Any, Inputs, Sequence[np.ndarray]], Any]
  agree: Callable[[Any, Inputs], np.ndarray]  # agreement of the coming round's masks
  exchange: Callable[[Any, Inputs], Any]  # with --wire_codec, what a client receives and sends
  pack: Callable[[Any], np.ndarray]  # the global mask
  model: Callable[[Any], Any]  # the variables with which the plain model predicts
  place: Callable[[State], State]  # of what `init` makes or a checkpoint has
  collect: Callable[[State], State]  # the other way round; the same on any number of devices
  shapes: State  # of a collected state
  seconds: float  # that compiling took


def inputs_of(experiment: Experiment) -> Inputs:
  """Collects what a run's programs are run on."""
  keys = experiment.keys
  return Inputs(
    experiment.federation,
    experiment.shifted,
    experiment.x_test,
    experiment.y_test,
    experiment.hyper,
    keys.init,
    keys.rounds,
  )


def stack_inputs(experiments: Sequence[Experiment]) -> tuple[Inputs, Inputs]:
  """Collects what several runs side by side are run on.

  Args:
    experiments: of one program key.

  Returns:
    The inputs, and for each array of them the axis of the runs: 0, or None where all runs have the
    same data, which is then held once.
  """
  each = [inputs_of(experiment) for experiment in experiments]

  def is_shared(leaves: Sequence[jax.Array]) -> bool:
    return all(jnp.array_equal(leaves[0], leaf) for leaf in leaves[1:])

  def combine(*phases: Sequence[jax.Array]) -> list[tuple[jax.Array, int | None]]:
    # One program runs both phases, so what differs in one of them has the axis in both.
    if all(map(is_shared, phases)):
      return [(leaves[0], None) for leaves in phases]
    return [(jnp.stack(leaves), 0) for leaves in phases]

  def stack(*leaves: jax.Array) -> tuple[jax.Array, int]:
    return jnp.stack(leaves), 0

  before = zip(*(inputs.federation[:-1] for inputs in each), strict=True)
  after = zip(*(inputs.shifted[:-1] for inputs in each), strict=True)
  phases = zip(*map(combine, before, after), strict=True)
  fleet = each[0].federation.fleet, None  # the same of all
  federation, shifted = (Federation(*fields)._replace(fleet=fleet) for fields in phases)
  pairs: dict[str, Any] = dict(
    federation=federation,
    shifted=shifted,
    x_test=combine([inputs.x_test for inputs in each])[0],
    y_test=combine([inputs.y_test for inputs in each])[0],
    hyper=jax.tree.map(stack, *(inputs.hyper for inputs in each)),
    init_key=stack(*(inputs.init_key for inputs in each)),
    rounds_key=stack(*(inputs.rounds_key for inputs in each)),
  )

  def choose(part: int) -> Inputs:
    is_pair = lambda node: type(node) is tuple  # noqa: E731
    return Inputs(**jax.tree.map(lambda pair: pair[part], pairs, is_leaf=is_pair))

  return choose(0), choose(1)


def compile_programs(experiment: Experiment) -> Programs:
  """Compiles what a run calls, ahead of time, so that it can be timed and shared by runs."""
  started = time.perf_counter()
  simulation, inputs = experiment.simulation, inputs_of(experiment)
  shapes = jax.eval_shape(simulation.init, inputs.hyper, inputs.init_key)
  layout = layout_of(experiment)
  server = without_memories(layout.placed(shapes, 0))
  rounds = (_streamed if layout.placement == "streamed" else _resident)(
    experiment, layout, inputs, shapes
  )
  read = jax.jit(experiment.algorithm.model)
  has_own = experiment.algorithm.client_model is not None
  exchange = jax.jit(experiment.exchange or _nothing)
  init, evaluate, *compiled = compile_in_turn(
    lambda: simulation.init.lower(inputs.hyper, inputs.init_key),
    lambda: simulation.evaluate.lower(server, inputs.x_test, inputs.y_test),
    *rounds.lower,
    platform=platform_of(experiment.mesh),
  )
  return Programs(
    init=lambda inputs: init(inputs.hyper, inputs.init_key),
    run=partial(rounds.run, *compiled),
    evaluate=lambda state, inputs: jax.device_get(
      evaluate(without_memories(state), inputs.x_test, inputs.y_test)
    ),
    score_each=partial(_score_own, simulation, layout)
    if has_own
    else lambda state, inputs, owners: jax.device_get(
      simulation.score_each(without_memories(state), inputs.x_test, inputs.y_test)
    ),
    agree=lambda state, inputs: jax.device_get(
      simulation.agree(state, inputs.federation, inputs.rounds_key)
    ),
    exchange=lambda state, inputs: jax.device_get(
      exchange(state, inputs.federation, inputs.rounds_key)
    ),
    pack=lambda state: jax.device_get(simulation.pack(without_memories(state))),
    model=lambda state: jax.device_get(read(state.server)),
    place=layout.place,
    collect=layout.collect,
    shapes=layout.saved(shapes),
    seconds=time.perf_counter() - started,
  )


def compile_side_by_side(experiment: Experiment, inputs: Inputs, axes: Inputs) -> Programs:
  """Compiles programs of several runs at once.

  Args:
    experiment: one of them.
    inputs: as `stack_inputs` makes them.
    axes: as `stack_inputs` makes them.
  """
  started = time.perf_counter()
  simulation = experiment.simulation
  for_each_run = partial(_for_each_run, platform_of(experiment.mesh))

  def init(inputs: Inputs) -> Any:
    return for_each_run(simulation.init, 0, 0)(inputs.hyper, inputs.init_key)

  def run(state: Any, inputs: Inputs, num_rounds: jax.Array) -> Any:
    mapped = for_each_run(simulation.run, 0, axes.federation, 0, None)
    return mapped(state, inputs.federation, inputs.rounds_key, num_rounds)

  def evaluate(state: Any, inputs: Inputs) -> Any:
    mapped = for_each_run(simulation.evaluate, 0, axes.x_test, axes.y_test)
    return mapped(state, inputs.x_test, inputs.y_test)

  @jax.jit
  def score_each(state: Any, inputs: Inputs) -> Any:
    mapped = for_each_run(simulation.score_each, 0, axes.x_test, axes.y_test)
    return mapped(state, inputs.x_test, inputs.y_test)

  @jax.jit
  def agree(state: Any, inputs: Inputs) -> Any:
    mapped = for_each_run(simulation.agree, 0, axes.federation, 0)
    return mapped(state, inputs.federation, inputs.rounds_key)

  @jax.jit
  def exchange(state: Any, inputs: Inputs) -> Any:
    mapped = for_each_run(experiment.exchange or _nothing, 0, axes.federation, 0)
    return mapped(state, inputs.federation, inputs.rounds_key)

  pack = jax.jit(for_each_run(simulation.pack, 0))
  read = jax.jit(for_each_run(experiment.algorithm.model, 0))
  has_own = experiment.algorithm.client_model is not None

  shapes = jax.eval_shape(init, inputs)
  layout = layout_of(experiment, axis=1)
  state = layout.placed(shapes, layout.num_clients)
  compiled_init, compiled_evaluate, compiled_run = compile_in_turn(
    lambda: jax.jit(init).lower(inputs),
    lambda: jax.jit(evaluate).lower(without_memories(state), inputs),
    lambda: jax.jit(run, donate_argnums=0).lower(state, inputs, np.int32(0)),
    platform=platform_of(experiment.mesh),
  )

  def run_and_fetch(state: Any, inputs: Inputs, count: int) -> Any:
    state, rows = compiled_run(state, inputs, np.int32(count))
    return state, jax.device_get(rows)

  return Programs(
    init=compiled_init,
    run=run_and_fetch,
    evaluate=lambda state, inputs: jax.device_get(
      compiled_evaluate(without_memories(state), inputs)
    ),
    score_each=partial(_score_own, simulation, layout, axes=axes)
    if has_own
    else lambda state, inputs, owners: jax.device_get(score_each(without_memories(state), inputs)),
    agree=lambda state, inputs: jax.device_get(agree(state, inputs)),
    exchange=lambda state, inputs: jax.device_get(exchange(state, inputs)),
    pack=lambda state: jax.device_get(pack(without_memories(state))),
    model=lambda state: jax.device_get(read(state.server)),
    place=layout.place,
    collect=layout.collect,
    shapes=layout.saved(shapes),
    seconds=time.perf_counter() - started,
  )


def _score_own(
  simulation: Simulation,
  layout: Layout,
  state: State,
  inputs: Inputs,
  owners: Sequence[np.ndarray],
  axes: Inputs | None = None,
) -> Any:
  """Scores clients' own models, one run after the other; all that clients keep is on one device."""
  whole = layout.collect(state)

  def score(state: State, x: jax.Array, y: jax.Array, owners: np.ndarray) -> Any:
    rows = lists_of(owners, layout.num_clients)
    return jax.device_get(simulation.score_own(state._replace(clock=()), x, y, rows))

  if axes is None:
    return score(whole, inputs.x_test, inputs.y_test, owners[0])

  scores = [
    score(
      jax.tree.map(lambda leaf, i=i: leaf[i], whole),
      inputs.x_test if axes.x_test is None else inputs.x_test[i],
      inputs.y_test if axes.y_test is None else inputs.y_test[i],
      own,
    )
    for i, own in enumerate(owners)
  ]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *scores)


def _nothing(*arguments: Any) -> tuple[()]:
  return ()


def _for_each_run(platform: str, fn: Callable[..., Any], *axes: Any) -> Callable[..., Any]:
  """Maps over runs: on an accelerator side by side, on a CPU, which one run fills, in a loop.

  Args:
    platform: of the devices that the runs are on.
    fn: of one run.
    axes: for each argument, or each array of it, 0 or None, as in `jax.vmap`.
  """
  if platform != "cpu":
    return jax.vmap(fn, axes)

  def mapped(*arguments: Any) -> Any:
    is_of_run = jax.tree.map(
      lambda axis, part: jax.tree.map(lambda _: axis is not None, part),
      axes,
      arguments,
      is_leaf=lambda axis: axis is None,
    )
    leaves, treedef = jax.tree.flatten(arguments)
    belongs = jax.tree.leaves(is_of_run)

    def one(own: Sequence[jax.Array]) -> Any:
      of_run = iter(own)
      chosen = [next(of_run) if its else leaf for leaf, its in zip(leaves, belongs, strict=True)]
      return fn(*jax.tree.unflatten(treedef, chosen))

    return lax.map(one, [leaf for leaf, its in zip(leaves, belongs, strict=True) if its])

  return mapped


class _Rounds(NamedTuple):
  """How rounds are run: what has to be compiled for it, and a function that is given that first."""

  lower: Sequence[Callable[[], jax.stages.Lowered]]
  run: Callable[..., Any]  # (*compiled, state, inputs, num_rounds), as in `Programs`


def _resident(experiment: Experiment, layout: Layout, inputs: Inputs, shapes: State) -> _Rounds:
  state = layout.placed(shapes, layout.num_clients)

  def lower() -> jax.stages.Lowered:
    return experiment.simulation.run.lower(state, inputs.federation, inputs.rounds_key, np.int32(0))

  def run(compiled: jax.stages.Compiled, state: Any, inputs: Inputs, count: int) -> Any:
    state, rows = compiled(state, inputs.federation, inputs.rounds_key, np.int32(count))
    return state, jax.device_get(rows)  # the one transfer of these rounds

  return _Rounds([lower], run)


def _streamed(experiment: Experiment, layout: Layout, inputs: Inputs, shapes: State) -> _Rounds:
  simulation, mesh, host = experiment.simulation, layout.mesh, inputs.federation
  server = without_memories(layout.placed(shapes, 0))

  def lower_draw() -> jax.stages.Lowered:
    return simulation.draw.lower(server, host.sizes, inputs.rounds_key, host.fleet)

  def lower_round() -> jax.stages.Lowered:
    cohorts = jax.eval_shape(simulation.draw, server, host.sizes, inputs.rounds_key, host.fleet)
    anyone = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), cohorts)
    # No client twice: there is room for as many examples as different ones have.
    anyone = anyone._replace(numbers=anyone.numbers + np.arange(anyone.numbers.shape[1]))
    state = layout.placed(shapes, anyone.numbers.shape[1])
    own = host._replace(fleet=())
    example = next(stage(own, mesh, anyone, experiment.num_rows))
    return simulation.run_staged.lower(state, example, inputs.rounds_key)

  def run(
    draw: jax.stages.Compiled,
    compiled: jax.stages.Compiled,
    state: State,
    inputs: Inputs,
    count: int,
  ) -> Any:
    def run_round(known: Any, memories: Memory, staged: Staged) -> tuple[Any, Memory, Any]:
      server, clock = known
      state, row = compiled(State(server, memories, clock), staged, key)
      return (state.server, state.clock), state.memories, row

    host, key = inputs.federation, inputs.rounds_key
    fleet, rows = host.fleet, []
    host = host._replace(fleet=())  # which cohorts have what they need of
    # Whoever is available is known when the round before has ended.
    ahead = 1 if fleet and fleet.hours else count
    for _ in range(0, count, ahead):
      cohorts = jax.device_get(draw(without_memories(state), host.sizes, key, fleet))
      cohorts = jax.tree.map(lambda leaf: leaf[:ahead], cohorts)
      rounds = stage(host, mesh, cohorts, experiment.num_rows)
      known = state.server, state.clock
      (server, clock), own = run_staged(run_round, known, state.memories, rounds, mesh)
      state = State(server, state.memories, clock)
      rows += own
    fetched = jax.device_get(rows)
    columns = {name: np.concatenate([row[name] for row in fetched]) for name in fetched[0]}
    return state, columns

  return _Rounds([lower_draw, lower_round], run)
