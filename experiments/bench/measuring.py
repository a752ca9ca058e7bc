"""Measures workloads, which take turns in this process."""

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from experiments.bench import workloads
from experiments.bench.interleave import interleave, open_peer, time_call
from experiments.bench.memory import forget_peak, peak_memory_bytes, program_memory_bytes
from experiments.bench.options import OFF, Settings
from experiments.bench.rows import RUN_ROUNDS, PeerTimes, Row, compare
from experiments.bench.workloads import SELECTION, Workload
from experiments.run.compiling import compile_in_turn
from experiments.run.environment import describe_environment
from experiments.run.models import choose_chunk
from sparsyfed_jax import trees
from sparsyfed_jax.fed.cohort import Federation
from sparsyfed_jax.fed.measures import NO_MEASURES
from sparsyfed_jax.fed.memory import Target, target_of
from sparsyfed_jax.fed.task import Task
from sparsyfed_jax.ops import NATIVE, kth_magnitude
from sparsyfed_jax.types import Batch

LEAST_CALL_SECONDS = 0.2  # of one timed call, so that its overhead does not count
MAX_ROUNDS_PER_CALL = 100
SELECTION_SIZE = 11_000_000
SELECTED = 550_000


def measure(
  names: Sequence[str],
  algorithms: Sequence[str],
  settings: Settings,
  peers: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Row]:
  """Measures workloads with methods, all taking turns, in this process.

  Args:
    names: of workloads, or kth_magnitude.
    algorithms: names of methods.
    settings: of the measurement.
    peers: commands of other frameworks' programs, by workload, that take turns too.

  Returns:
    What the JSON lines say, one for each workload and method.

  Raises:
    ConfigError: the settings do not fit a workload.
    PeerError: a peer did not run.
  """
  cases = []
  target = target_of(jax.local_devices()[0])  # where jax puts the arrays that are made here
  for name in names:
    if name != SELECTION:
      sizes = settings.num_clients, settings.clients_per_round
      workload = workloads.choose(name, target.platform, *sizes)
      federation = workloads.random_federation(workload)
      for algorithm, metrics in itertools.product(algorithms, settings.metrics):
        facts = {
          "workload": name,
          "algorithm": algorithm,
          "compute_dtype": settings.compute_dtype,
          "metrics": metrics,
        }
        cases.append(_prepare(workload, federation, facts, settings.clients_per_chunk, target))
  timers = [_warm_up(case.run) for case in cases]
  with contextlib.ExitStack() as stack:
    # Only now, so that nothing else ran while programs were made.
    opened = {name: stack.enter_context(open_peer(peers[name])) for name in names if name in peers}
    turns = [timer.run for timer in timers] + [peer.run_round for peer in opened.values()]
    times = interleave(turns, settings.repeats)
  own, theirs = times[: len(cases)], times[len(cases) :]
  rows = []
  if cases:
    # After the calls, whose peak memory it must not count for.
    fastest = _matmul_flops_per_second(settings.compute_dtype, target.platform)
    for case, timer, seconds in zip(cases, timers, own, strict=True):
      rows.append(_describe(case, seconds, timer.peak(), fastest))
  beside = {
    name: PeerTimes(peer.first_seconds, seconds)
    for (name, peer), seconds in zip(opened.items(), theirs, strict=True)
  }
  rows = compare(rows, own, beside)
  if SELECTION in names:
    rows.append(measure_selection(settings.repeats))
  environment = describe_environment()
  return [row | environment for row in rows]


class _Case(NamedTuple):
  """A workload with a method, compiled."""

  workload: Workload
  task: Task
  run: Callable[[int], None]  # runs as many rounds, at most MAX_ROUNDS_PER_CALL, to their end
  facts: Row


def _prepare(
  workload: Workload,
  federation: Federation,
  facts: Row,
  clients_per_chunk: str,
  target: Target,
) -> _Case:
  setup = workloads.make_setup(workload, facts["compute_dtype"])
  if facts["metrics"] == OFF:
    setup = setup._replace(measures=NO_MEASURES)
  example = jax.ShapeDtypeStruct(workload.shape, workload.dtype)
  chunk = choose_chunk(clients_per_chunk, setup, example, workload.clients_per_round, target)
  started = time.perf_counter()
  simulation = workloads.make_simulation(
    workload, setup, facts["algorithm"], chunk, MAX_ROUNDS_PER_CALL, facts["compute_dtype"]
  )
  key = jax.random.key(0)
  hyper = workloads.hyper(facts["algorithm"], workload)
  shapes = jax.eval_shape(simulation.init, hyper, key)
  init, compiled = compile_in_turn(
    lambda: simulation.init.lower(hyper, key),
    lambda: simulation.run.lower(shapes, federation, key, jnp.int32(1)),
    platform=target.platform,
  )
  ended = time.perf_counter()
  state = jax.block_until_ready(init(hyper, key))
  made = time.perf_counter()
  num_params = trees.size(state.server.variables["params"])

  def run(num_rounds: int) -> None:
    nonlocal state
    state, rows = compiled(state, federation, key, jnp.int32(num_rounds))
    jax.block_until_ready((state, rows))

  facts = facts | {
    "start_seconds": made - started,  # drawing the model too
    "compile_seconds": ended - started,
    "clients_per_chunk": chunk,
    "num_params": num_params,
    "program_memory_bytes": program_memory_bytes(compiled),
  }
  return _Case(workload, setup.task, run, facts)


class _Timer(NamedTuple):
  """A program that takes turns."""

  run: Callable[[], float]  # one timed call; returns its seconds a round
  peak: Callable[[], int]  # the largest memory during such a call, in bytes


def _warm_up(run: Callable[[int], None]) -> _Timer:
  """Runs two rounds, and finds out how many make a call that is long enough to time."""
  peaks = [0]
  run(1)
  num_rounds = min(MAX_ROUNDS_PER_CALL, math.ceil(LEAST_CALL_SECONDS / time_call(run, 1)))

  def turn() -> float:
    forget_peak()
    seconds = time_call(run, num_rounds) / num_rounds
    peaks.append(peak_memory_bytes())
    return seconds

  return _Timer(turn, lambda: max(peaks))


def _describe(case: _Case, times: Sequence[float], peak: int, matmul_flops: float) -> Row:
  workload = case.workload
  seconds = statistics.median(times)
  share = workload.clients_per_round / len(workload.sizes)
  examples = share * sum(workload.sizes)
  steps = share * sum(math.ceil(size / workload.batch_size) for size in workload.sizes)
  flops = examples / workload.batch_size * _flops_per_step(workload, case.task)
  return {
    **case.facts,
    "seconds_per_round": seconds,
    "fastest_seconds_per_round": min(times),
    "seconds_of_50_rounds": case.facts["start_seconds"] + RUN_ROUNDS * seconds,
    "clients_per_second": workload.clients_per_round / seconds,
    "num_clients": len(workload.sizes),
    "clients_per_round": workload.clients_per_round,
    "examples_per_round": examples,
    "steps_per_round": steps,
    "flops_per_second": flops / seconds,
    "share_of_matmul_peak": flops / seconds / matmul_flops,
    "peak_memory_bytes": peak,
  }


def measure_selection(repeats: int) -> Row:
  """Times the k-th magnitude of 11 million floats against `lax.top_k`."""
  x = jax.random.normal(jax.random.key(0), (SELECTION_SIZE,))

  def by_top_k(x: jax.Array) -> jax.Array:
    return lax.top_k(jnp.abs(x), SELECTED)[0][-1]

  ours = statistics.median(_times(jax.jit(kth_magnitude), x, jnp.int32(SELECTED), repeats=repeats))
  theirs = statistics.median(_times(jax.jit(by_top_k), x, repeats=min(repeats, 5)))
  return {
    "workload": SELECTION,
    "size": SELECTION_SIZE,
    "k": SELECTED,
    "seconds": ours,
    "top_k_seconds": theirs,
    "speedup": theirs / ours,
  }


def _flops_per_step(workload: Workload, task: Task) -> float:
  """Counts a dense gradient of one batch as XLA does."""
  batch = Batch(
    x=jnp.zeros((workload.batch_size, *workload.shape), workload.dtype),
    y=jnp.zeros(workload.batch_size, jnp.int32),
    valid=jnp.ones(workload.batch_size, bool),
  )
  key = jax.random.key(0)
  gradient = jax.grad(lambda v: task.loss(v, batch, lambda name: NATIVE, key)[0])
  # Not of the compiled program: on a GPU its products are calls of libraries, and count nothing.
  analysis: Any = jax.jit(gradient).lower(task.init(key)).cost_analysis()
  return analysis["flops"]


def _matmul_flops_per_second(compute_dtype: str, platform: str, repeats: int = 10) -> float:
  """Times a large matrix product; the fastest counts, as the median would not be a peak."""
  size = 2048 if platform == "cpu" else 8192
  matrix, precision = workloads.random_matrix(size, compute_dtype)
  product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
  return 2 * size**3 / min(_times(product, matrix, matrix, repeats=repeats))


def _times(fn: Callable[..., Any], *args: Any, repeats: int) -> list[float]:
  jax.block_until_ready(fn(*args))
  return [time_call(fn, *args) for _ in range(repeats)]
