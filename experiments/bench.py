"""Measures what a round costs: `python -m experiments.bench --workload=cnn32`.

Prints one JSON line for each workload and algorithm on stdout, and a table on stderr when all is
measured. Inputs are random: only time and memory are measured, after compilation and a warm-up,
time as the median of calls that end when the device is done. The methods of a workload take turns,
so that a machine whose speed drifts drifts for all of them, and ratios are medians of those within
a turn.

Every workload has a process of its own, so that the peak memory of one counts for no other: on a
CPU it is the largest during the calls of a method, on an accelerator that of the whole process.
This one leaves the devices alone, because whoever opens an accelerator first takes its memory.
--peer_command=cnn32="python experiments/peers/torch_loop.py --workload=cnn32 --turns" gives another
framework's program a turn too (`experiments.turns`), and compares a run of 50 rounds as well, in
which making and compiling the programs counts, and the other's first round.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging
from absl import flags as absl_flags
from jax import lax
from rich import box
from rich.console import Console
from rich.table import Table

from experiments import flags, workloads
from experiments.run.compiling import compile_in_turn
from experiments.run.config import COMPUTE_DTYPES
from experiments.run.environment import describe_environment
from experiments.run.models import choose_chunk
from experiments.terminal import format_bytes
from experiments.turns import PeerError, open_peer, take_turns
from experiments.workloads import WORKLOADS, Workload
from sparsyfed_jax import trees
from sparsyfed_jax.algorithms import DENSE, METHODS, OURS
from sparsyfed_jax.fed.cohort import Federation
from sparsyfed_jax.fed.measures import NO_MEASURES
from sparsyfed_jax.fed.task import Task
from sparsyfed_jax.io.writers import create_run_dir
from sparsyfed_jax.ops import NATIVE, kth_magnitude
from sparsyfed_jax.types import Batch

LEAST_CALL_SECONDS = 0.2  # of one timed call, so that its overhead does not count
MAX_ROUNDS_PER_CALL = 100
RUN_ROUNDS = 50  # of a run whose start counts
SELECTION = "kth_magnitude"
SELECTION_SIZE = 11_000_000
SELECTED = 550_000
BASELINE = DENSE
ON, OFF = METRICS = ("on", "off")  # what every round reports of models and masks
PLAIN_WIDTH = 150  # of the table where stderr is not a terminal

Row = dict[str, Any]

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


class Settings(NamedTuple):
  """How workloads are measured."""

  repeats: int = 20
  num_clients: int | None = None  # None leaves the workload's own number
  clients_per_round: int | None = None
  clients_per_chunk: str = flags.AUTO
  compute_dtype: str = "float32"
  metrics: tuple[str, ...] = (ON,)  # of METRICS


class MeasurementError(RuntimeError):
  """A measurement did not come to its end."""


def main(argv: Sequence[str]) -> None:
  """Runs the workloads that the flags name."""
  del argv
  table = absl_flags.FLAGS
  try:
    names, algorithms, settings, peers = read(table)
    if table["in_process"].value:
      for row in measure(names, algorithms, settings, peers):
        print(json.dumps(row), flush=True)
      return
    backend = default_backend()
    names = names or [*workloads.suiting(backend), SELECTION]
    check_sizes(names, backend, settings)
    directory = table["output_dir"].value
    output_dir = create_run_dir(flags.folder(directory)) if directory else None
  except (flags.ConfigError, MeasurementError, PeerError, OSError) as error:
    flags.fail(error)
  rows: list[Row] = []
  failures = []
  with open(
    output_dir / "bench.jsonl" if output_dir else os.devnull, "w", encoding="utf-8"
  ) as record:
    for group in group_names(names):
      title = ", ".join(group)
      print(f"{title} ...", file=sys.stderr, flush=True)
      try:
        measured = measure_apart(group, algorithms, settings, peers)
      except MeasurementError as error:  # of memory, say; the other workloads may still fit
        print(f"error: {error}", file=sys.stderr, flush=True)
        failures.append(title)
        continue
      except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
      for row in measured:
        print(json.dumps(row), flush=True)
        print(json.dumps(row), file=record, flush=True)
      rows += measured
  if rows:
    print_table(table_cells(rows))
  if output_dir:
    (output_dir / "table.md").write_text(markdown(table_cells(rows)), encoding="utf-8")
  if failures:
    flags.fail(MeasurementError(f"not measured: {'; '.join(failures)}"), code=1)


def define(flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags."""
  known = ", ".join([*WORKLOADS, SELECTION])
  absl_flags.DEFINE_list(
    "workload",
    [],
    f"comma list among {known}; by default those that suit the backend",
    flag_values=flag_values,
  )
  absl_flags.DEFINE_integer(
    "clients_per_round",
    None,
    "clients of a round, instead of the workload's",
    flag_values=flag_values,
  )
  define_settings(Settings(), flag_values)
  absl_flags.DEFINE_list(
    "metrics",
    [ON],
    "on, off, or both: with what every round reports of models and masks, and without",
    flag_values=flag_values,
  )
  absl_flags.DEFINE_multi_string(
    "peer_command",
    [],
    "WORKLOAD=COMMAND: a program that does the same work in another framework, one round when it"
    " is its turn, as experiments/turns.py says. May be given for several workloads.",
    flag_values=flag_values,
  )
  absl_flags.DEFINE_string(
    "output_dir", None, "a new directory for bench.jsonl and table.md", flag_values=flag_values
  )
  absl_flags.DEFINE_boolean(
    "in_process",
    False,
    "measure in this process, all workloads taking turns, and print nothing but JSON lines",
    flag_values=flag_values,
  )


def define_settings(
  defaults: Settings, flag_values: absl_flags.FlagValues = absl_flags.FLAGS
) -> None:
  """Defines --algorithm and the flags of `Settings` that `scaling` has too."""
  absl_flags.DEFINE_list(
    "algorithm", [BASELINE, OURS], "comma list of methods", flag_values=flag_values
  )
  absl_flags.DEFINE_integer(
    "repeats", defaults.repeats, "timed calls, of which the median counts", flag_values=flag_values
  )
  absl_flags.DEFINE_integer(
    "num_clients",
    defaults.num_clients,
    "clients of the federation, instead of the workload's",
    flag_values=flag_values,
  )
  absl_flags.DEFINE_string(
    "clients_per_chunk",
    defaults.clients_per_chunk,
    "clients vmapped, or auto",
    flag_values=flag_values,
  )
  absl_flags.DEFINE_enum(
    "compute_dtype",
    defaults.compute_dtype,
    COMPUTE_DTYPES,
    "what products are computed in",
    flag_values=flag_values,
  )


def read(
  flag_values: absl_flags.FlagValues,
) -> tuple[list[str], list[str], Settings, dict[str, list[str]]]:
  """Reads the flags.

  Returns:
    Names of workloads, [] where none is given, names of methods, settings, and the peers' commands
    by workload.

  Raises:
    ConfigError: a value is not known or out of range.
  """
  known = [*WORKLOADS, SELECTION]
  names = _value(flag_values, "workload")
  check_names("workload", names, known)
  metrics = tuple(dict.fromkeys(_value(flag_values, "metrics")))
  check_names("metrics", metrics, METRICS)
  if not metrics:
    raise flags.ConfigError("--metrics: must be on, off, or both")
  settings = read_settings(flag_values)._replace(
    clients_per_round=_value(flag_values, "clients_per_round"), metrics=metrics
  )
  peers: dict[str, list[str]] = {}
  for pair in _value(flag_values, "peer_command"):
    name, _, command = pair.partition("=")
    if name not in WORKLOADS or name in peers:
      raise flags.ConfigError(
        f"--peer_command={pair}: must be WORKLOAD=COMMAND, at most one for each of"
        f" {', '.join(WORKLOADS)}"
      )
    try:
      peers[name] = shlex.split(command)
    except ValueError as error:
      raise flags.ConfigError(f"--peer_command={pair}: {error}") from error
    if not peers[name]:
      raise flags.ConfigError(f"--peer_command={pair}: must name a command after the =")
  return list(dict.fromkeys(names)), read_algorithms(flag_values), settings, peers


def read_settings(flag_values: absl_flags.FlagValues) -> Settings:
  """Reads the flags of `define_settings`; the caller may replace the other fields.

  Raises:
    ConfigError: a value is out of range.
  """
  fields = [name for name in Settings._fields if name not in ("clients_per_round", "metrics")]
  settings = Settings(**{name: _value(flag_values, name) for name in fields})
  if settings.repeats < 1:
    raise flags.ConfigError(f"--repeats={settings.repeats}: must be at least 1")
  chunk = settings.clients_per_chunk
  if chunk != flags.AUTO and not (chunk.isascii() and chunk.isdigit() and int(chunk) >= 1):
    raise flags.ConfigError(f"--clients_per_chunk={chunk}: must be auto or at least 1")
  return settings


def read_algorithms(flag_values: absl_flags.FlagValues) -> list[str]:
  """Reads --algorithm.

  Raises:
    ConfigError: a method is not known.
  """
  algorithms = list(dict.fromkeys(_value(flag_values, "algorithm")))
  check_names("algorithm", algorithms, sorted(METHODS))
  if not algorithms:
    raise flags.ConfigError("--algorithm: must name a method")
  return algorithms


def check_names(flag: str, names: Iterable[str], known: Sequence[str]) -> None:
  """Refuses a name that is not known."""
  for name in names:
    if name not in known:
      raise flags.ConfigError(f"--{flag}={name}: must be among {', '.join(known)}")


def check_sizes(names: Iterable[str], backend: str, settings: Settings) -> None:
  """Refuses more clients a round than a workload has on this backend."""
  for name in names:
    if name != SELECTION:
      workloads.choose(name, backend, settings.num_clients, settings.clients_per_round)


def default_backend() -> str:
  """Asks another process for jax's backend, as this one must not open the devices."""
  return _run_python("-c", "import jax; print(jax.default_backend())").split()[-1]


def group_names(names: Iterable[str]) -> list[list[str]]:
  """Puts workloads that are compared with each other into one group."""
  groups: dict[str, list[str]] = {}
  for name in names:
    even = WORKLOADS[name].even if name in WORKLOADS else None
    groups.setdefault(even or name, []).append(name)
  return list(groups.values())


def measure_apart(
  names: Sequence[str],
  algorithms: Sequence[str],
  settings: Settings,
  peers: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Row]:
  """Does what `measure` does in a process of its own.

  Raises:
    MeasurementError: the process failed; it has said why on stderr.
  """
  given = {name: value for name, value in settings._asdict().items() if value is not None}
  given["metrics"] = ",".join(settings.metrics)
  arguments = [f"--{name}={value}" for name, value in given.items()]
  arguments += [
    f"--peer_command={name}={shlex.join(peers[name])}" for name in names if name in peers
  ]
  output = _run_python(
    *("-m", "experiments.bench", "--in_process"),
    *(f"--workload={','.join(names)}", f"--algorithm={','.join(algorithms)}", *arguments),
  )
  return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


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
  for name in names:
    if name != SELECTION:
      sizes = settings.num_clients, settings.clients_per_round
      workload = workloads.choose(name, jax.default_backend(), *sizes)
      federation = workloads.random_federation(workload)
      cases += [
        _prepare(name, workload, federation, algorithm, settings, metrics)
        for algorithm in algorithms
        for metrics in settings.metrics
      ]
  timers = [_warm_up(case.run) for case in cases]
  with contextlib.ExitStack() as stack:
    # Only now, so that nothing else ran while programs were made.
    opened = {name: stack.enter_context(open_peer(peers[name])) for name in names if name in peers}
    turns = [timer.run for timer in timers] + [peer.run_round for peer in opened.values()]
    times = take_turns(turns, settings.repeats)
  own, theirs = times[: len(cases)], times[len(cases) :]
  rows = []
  if cases:
    # After the calls, whose peak memory it must not count for.
    fastest = _matmul_flops_per_second(settings.compute_dtype)
    for case, timer, seconds in zip(cases, timers, own, strict=True):
      rows.append(_describe(case, seconds, timer.peak(), settings.compute_dtype, fastest))
  beside = {
    name: PeerTimes(peer.first_seconds, seconds)
    for (name, peer), seconds in zip(opened.items(), theirs, strict=True)
  }
  rows = compare(rows, own, beside)
  if SELECTION in names:
    rows.append(measure_selection(settings.repeats))
  environment = describe_environment()
  return [row | environment for row in rows]


class PeerTimes(NamedTuple):
  """What another framework's program took."""

  first_seconds: float  # its first round
  seconds: Sequence[float]  # a round, in each turn


class _Case(NamedTuple):
  """A workload with a method, compiled."""

  name: str
  algorithm: str
  workload: Workload
  task: Task
  run: Callable[[int], None]  # runs as many rounds, at most MAX_ROUNDS_PER_CALL, to their end
  facts: Row


def _prepare(
  name: str,
  workload: Workload,
  federation: Federation,
  algorithm: str,
  settings: Settings,
  metrics: str,
) -> _Case:
  setup = workloads.make_setup(workload, settings.compute_dtype)
  if metrics == OFF:
    setup = setup._replace(measures=NO_MEASURES)
  example = jax.ShapeDtypeStruct(workload.shape, workload.dtype)
  chunk = choose_chunk(
    settings.clients_per_chunk, workload.model, setup, example, workload.clients_per_round
  )
  started = time.perf_counter()
  simulation = workloads.make_simulation(
    workload, setup, algorithm, chunk, MAX_ROUNDS_PER_CALL, settings.compute_dtype
  )
  key = jax.random.key(0)
  hyper = workloads.hyper(algorithm, workload)
  shapes = jax.eval_shape(simulation.init, hyper, key)
  init, compiled = compile_in_turn(
    lambda: simulation.init.lower(hyper, key),
    lambda: simulation.run.lower(shapes, federation, key, jnp.int32(1)),
  )
  ended = time.perf_counter()
  state = jax.block_until_ready(init(hyper, key))
  made = time.perf_counter()
  num_params = trees.size(state.server.variables["params"])

  def run(num_rounds: int) -> None:
    nonlocal state
    state, rows = compiled(state, federation, key, jnp.int32(num_rounds))
    jax.block_until_ready((state, rows))

  facts = {
    "metrics": metrics,
    "start_seconds": made - started,  # drawing the model too
    "compile_seconds": ended - started,
    "clients_per_chunk": chunk,
    "num_params": num_params,
    "program_memory_bytes": _program_memory_bytes(compiled),
  }
  return _Case(name, algorithm, workload, setup.task, run, facts)


class _Timer(NamedTuple):
  """A program that takes turns."""

  run: Callable[[], float]  # one timed call; returns its seconds a round
  peak: Callable[[], int]  # the largest memory during such a call, in bytes


def _warm_up(run: Callable[[int], None]) -> _Timer:
  """Runs two rounds, and finds out how many make a call that is long enough to time."""
  peaks = [0]

  def timed(num_rounds: int) -> float:
    start = time.perf_counter()
    run(num_rounds)
    return (time.perf_counter() - start) / num_rounds

  run(1)
  num_rounds = min(MAX_ROUNDS_PER_CALL, math.ceil(LEAST_CALL_SECONDS / timed(1)))

  def turn() -> float:
    _forget_peak()
    seconds = timed(num_rounds)
    peaks.append(_peak_memory_bytes())
    return seconds

  return _Timer(turn, lambda: max(peaks))


def _describe(
  case: _Case, times: Sequence[float], peak: int, compute_dtype: str, matmul_flops: float
) -> Row:
  workload = case.workload
  seconds = statistics.median(times)
  share = workload.clients_per_round / len(workload.sizes)
  examples = share * sum(workload.sizes)
  steps = share * sum(math.ceil(size / workload.batch_size) for size in workload.sizes)
  flops = examples / workload.batch_size * _flops_per_step(workload, case.task)
  return {
    "workload": case.name,
    "algorithm": case.algorithm,
    "compute_dtype": compute_dtype,
    "seconds_per_round": seconds,
    "fastest_seconds_per_round": min(times),
    "seconds_of_50_rounds": case.facts["start_seconds"] + RUN_ROUNDS * seconds,
    "clients_per_second": workload.clients_per_round / seconds,
    "num_clients": len(workload.sizes),
    "clients_per_round": workload.clients_per_round,
    "examples_per_round": examples,
    "steps_per_round": steps,
    **case.facts,
    "flops_per_second": flops / seconds,
    "share_of_matmul_peak": flops / seconds / matmul_flops,
    "peak_memory_bytes": peak,
  }


def compare(
  rows: Sequence[Row],
  times: Sequence[Sequence[float]],
  peers: Mapping[str, PeerTimes] = MappingProxyType({}),
) -> list[Row]:
  """Adds what a method costs over FedAvg, over an even federation, over a peer, and metrics.

  Args:
    rows: of workloads that were measured in turn.
    times: of each row, seconds a round in each turn. Ratios are medians of those within a turn,
      which a machine whose speed drifts leaves alone.
    peers: of workloads that have one, in the same turns.

  Returns:
    The rows, with `overhead_over_fedavg` (0.25 for a quarter more time), `ratio_to_even`,
    `ratio_to_peer` with its quartiles, `ratio_of_50_rounds` and `cost_of_metrics` where the other
    one was measured too.
  """
  turns = {
    (row["workload"], row["algorithm"], row["metrics"]): own
    for row, own in zip(rows, times, strict=True)
  }

  def ratio(own: Sequence[float], other: tuple[str, str, str]) -> float:
    return statistics.median(_ratios(own, turns[other]))

  compared = []
  for row, own in zip(rows, times, strict=True):
    name, algorithm, metrics = row["workload"], row["algorithm"], row["metrics"]
    more: Row = {}
    if algorithm != BASELINE and (name, BASELINE, metrics) in turns:
      more["overhead_over_fedavg"] = ratio(own, (name, BASELINE, metrics)) - 1
    even = WORKLOADS[name].even
    if even and (even, algorithm, metrics) in turns:
      more["ratio_to_even"] = ratio(own, (even, algorithm, metrics))
    if metrics == ON and (name, algorithm, OFF) in turns:
      more["cost_of_metrics"] = ratio(own, (name, algorithm, OFF)) - 1
    if name in peers:
      more |= _beside(row, own, peers[name])
    compared.append(row | more)
  return compared


def _beside(row: Row, own: Sequence[float], peer: PeerTimes) -> Row:
  seconds = statistics.median(peer.seconds)
  whole = peer.first_seconds + (RUN_ROUNDS - 1) * seconds
  ratios = _ratios(own, peer.seconds)
  return {
    "peer_seconds_per_round": seconds,
    "ratio_to_peer": statistics.median(ratios),
    "quartiles_of_ratio_to_peer": [float(edge) for edge in np.quantile(ratios, (0.25, 0.75))],
    "peer_seconds_of_50_rounds": whole,
    "ratio_of_50_rounds": row["seconds_of_50_rounds"] / whole,
  }


def _ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
  return [a / b for a, b in zip(own, other, strict=True)]


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


def _matmul_flops_per_second(compute_dtype: str, repeats: int = 10) -> float:
  """Times a large matrix product; the fastest counts, as the median would not be a peak."""
  size = 2048 if jax.default_backend() == "cpu" else 8192
  matrix, precision = workloads.random_matrix(size, compute_dtype)
  product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
  return 2 * size**3 / min(_times(product, matrix, matrix, repeats=repeats))


def _times(fn: Callable[..., Any], *args: Any, repeats: int) -> list[float]:
  jax.block_until_ready(fn(*args))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    times.append(time.perf_counter() - start)
  return times


def _program_memory_bytes(compiled: jax.stages.Compiled) -> int | None:
  """Adds up what the compiler plans for: arguments with all clients' data, results, temporaries."""
  sizes = compiled.memory_analysis()
  if sizes is None:
    return None
  used = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
  return used - sizes.alias_size_in_bytes


def _forget_peak() -> None:
  """Lets the largest memory of this process, as Linux knows it, start anew."""
  try:
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
  except OSError:
    pass  # then it is that of the whole process


def _peak_memory_bytes() -> int:
  statistics_of_device = jax.devices()[0].memory_stats()
  if statistics_of_device:
    return statistics_of_device["peak_bytes_in_use"]
  status = pathlib.Path("/proc/self/status")
  text = status.read_text(encoding="utf-8") if status.exists() else ""
  found = re.search(r"VmHWM:\s*(\d+) kB", text)
  if found:
    return int(found.group(1)) * 1024
  largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return largest if sys.platform == "darwin" else largest * 1024


def _value(flag_values: absl_flags.FlagValues, name: str) -> Any:
  return flag_values[name].value


def _run_python(*arguments: str) -> str:
  done = subprocess.run(
    [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY
  )
  if done.returncode:
    raise MeasurementError(f"{' '.join(arguments)}: ended with exit code {done.returncode}")
  return done.stdout


# Headings of the table, and what they show of a row; one without any value is left out.
_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
  ("workload", lambda row: row["workload"]),
  ("algorithm", lambda row: row.get("algorithm", "")),
  ("s a round", lambda row: _format(row, "{:.3g}", "seconds_per_round", "seconds")),
  ("of the peer", lambda row: _format(row, "{:.2f}", "ratio_to_peer")),
  ("of its 50 rounds", lambda row: _format(row, "{:.2f}", "ratio_of_50_rounds")),
  ("over fedavg", lambda row: _format(row, "{:+.0%}", "overhead_over_fedavg")),
  ("metrics", lambda row: OFF if row.get("metrics") == OFF else ""),
  ("of metrics", lambda row: _format(row, "{:+.1%}", "cost_of_metrics")),
  ("of even", lambda row: _format(row, "{:.2f}", "ratio_to_even")),
  ("over top_k", lambda row: _format(row, "x {:.3g}", "speedup")),
  ("clients/s", lambda row: _format_rate(row, "clients_per_second")),
  ("compile s", lambda row: _format(row, "{:.1f}", "compile_seconds")),
  ("of matmul peak", lambda row: _format(row, "{:.1%}", "share_of_matmul_peak")),
  ("program", lambda row: _format_size(row, "program_memory_bytes")),
  ("peak memory", lambda row: _format_size(row, "peak_memory_bytes")),
)


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
  """Makes the table of measurements: the headings, then a line for each row."""
  columns = [[title, *(show(row) for row in rows)] for title, show in _COLUMNS]
  kept = [column for column in columns if any(column[1:])]
  return [list(line) for line in zip(*kept, strict=True)]


def markdown(cells: Sequence[Sequence[str]]) -> str:
  """Writes a table whose first line are headings; all but two columns are numbers."""
  if not cells:
    return ""
  rule = "|---|---|" + "---:|" * (len(cells[0]) - 2)
  lines = ["| " + " | ".join(line) + " |" for line in cells]
  return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def print_table(cells: Sequence[Sequence[str]]) -> None:
  """Prints a table as `markdown` writes it, on stderr."""
  table = Table(box=box.ROUNDED)
  for i, title in enumerate(cells[0]):
    table.add_column(title, justify="left" if i < 2 else "right", no_wrap=i < 2)
  for line in cells[1:]:
    table.add_row(*line)
  console = Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
  console.print(table)


def _format(row: Row, style: str, *keys: str) -> str:
  values = [row[key] for key in keys if row.get(key) is not None]
  return style.format(values[0]) if values else ""


def _format_rate(row: Row, key: str) -> str:
  return _format(row, "{:,.0f}" if row.get(key, 0) >= 100 else "{:.3g}", key)


def _format_size(row: Row, key: str) -> str:
  return format_bytes(row[key]) if row.get(key) is not None else ""


if __name__ == "__main__":
  define()
  logging.set_verbosity(logging.WARNING)  # jax tells at length which backends it did not find
  app.run(main, flags_parser=flags.parse)
