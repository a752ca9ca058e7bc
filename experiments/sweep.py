"""Runs a grid of flags: `python -m experiments.sweep --algorithm=topk,sparsyfed --seed=0,1,2`.

Takes the flags of `experiments.train`, each of them a comma list, and runs every combination: one
after the other, or with --sweep_mode=vmap side by side as far as they share a compiled program,
which all runs do that differ in numbers and seeds alone. Every run has a directory of its own in
--output_dir. A sweep that was stopped goes on when it is started again with the same flags.

Writes sweep.csv (a row a run), table.md and sweep.png (mean and standard deviation over the seeds).
"""

import csv
import itertools
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import app, logging
from absl import flags as absl_flags
from rich.console import Console
from rich.markdown import Markdown

from experiments import begun, flags
from experiments.build import build, fixed_flags, program_key
from experiments.environment import keep_compiled
from experiments.plots import Curve, plot_sweep
from experiments.programs import (
  Programs,
  compile_programs,
  compile_side_by_side,
  inputs_of,
  stack_inputs,
)
from experiments.record import SUMMARY_NAME, DivergedError, Member, StoppedError, begin, record
from experiments.resuming import restore
from experiments.run_directory import CONFIG_NAME
from experiments.signals import leave_unread
from experiments.terminal import Update, progress
from sparsyfed_jax.data.sources import DataError, load
from sparsyfed_jax.io.writers import JSONL_NAME, create_run_dir, read_metrics, write_json

_GRID_NAME = "grid.json"
_GROUPS_NAME = "side_by_side"  # directory of the checkpoints of runs side by side
MODES = ("sequential", "vmap")
# Of the sweep, which always resumes, or of a run of several processes, which a sweep is not.
_OWN = ("output_dir", "resume", "discard_rounds", "coordinator", "num_processes", "process_id")
_LISTS = ("client_sparsities", "client_sparsity_shares", "trackers")  # lists already; not swept


def decimals(factor: float, digits: int) -> Callable[[float], str]:
  """Makes what writes a number times `factor` with `digits` behind the point."""
  return lambda value: f"{factor * value:.{digits}f}"


# Columns of the table: of summary.json, heading, how a value is written.
_MEASURES = (
  ("test_accuracy", "test accuracy, %", decimals(100, 2)),
  ("prunable_sparsity", "sparsity of the model, %", decimals(100, 2)),
  ("uplink_bytes_per_client_round", "uplink, kB a client and round", decimals(1e-3, 1)),
  ("downlink_bytes_per_client_round", "downlink, kB", decimals(1e-3, 1)),
)


class Run(NamedTuple):
  """One point of the grid."""

  point: dict[str, str]  # the flags that the sweep varies, as written
  config: flags.Config  # resolved


def main(argv: Sequence[str]) -> None:
  """Runs what the flags say."""
  del argv
  mode = str(absl_flags.FLAGS["sweep_mode"].value)
  try:
    grid, runs = read_grid(absl_flags.FLAGS)
    check_mode(mode, runs)
    check_data(runs)
    directory = open_directory(absl_flags.FLAGS["output_dir"].value, grid)
  except (flags.ConfigError, DataError, absl_flags.Error, FileExistsError, OSError) as error:
    flags.fail(error)
  keep_compiled(runs[0].config.compilation_cache_dir)
  finish(runs, directory, mode, write_results)


def finish(
  runs: Sequence[Run],
  directory: pathlib.Path,
  mode: str,
  write: Callable[[Sequence[Run], pathlib.Path], str],
) -> None:
  """Runs what is left of a grid, writes its results, and prints the table.

  Args:
    runs: of the grid.
    directory: of the sweep.
    mode: one of MODES.
    write: writes results and returns what is printed, as `write_results`.

  Raises:
    SystemExit: data or disk failed, or a signal came, after one line that says so. Runs that have
      ended and checkpoints are left, for the same command to go on.
  """
  try:
    run_all(runs, directory, mode)
    table = write(runs, directory)
  except (flags.ConfigError, DataError) as error:
    flags.fail(error)
  except BrokenPipeError:
    leave_unread()
  except OSError as error:  # a full disk, say
    flags.fail(OSError(f"--output_dir={directory}: {error}"), code=1)
  except (KeyboardInterrupt, StoppedError) as error:
    print(f"\ninterrupted; the same command goes on in {directory}", file=sys.stderr)
    sys.exit(error.code if isinstance(error, StoppedError) else 130)
  try:
    Console().print(Markdown(table))
    print(f"files in {directory}", flush=True)
  except BrokenPipeError:
    leave_unread()


def define(flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags of a run, each as text that may list several values."""
  absl_flags.DEFINE_string(
    "output_dir", None, "where the runs go; required", flag_values=flag_values
  )
  absl_flags.DEFINE_string(
    "sweep_mode",
    "sequential",
    "sequential: one run after the other; vmap: those that share a program side by side (on a CPU"
    " in one loop)",
    flag_values=flag_values,
  )
  for name in flags.Config._fields:
    if name not in _OWN:
      text = f"as in experiments.train{'' if name in _LISTS else '; a comma list is swept'}"
      absl_flags.DEFINE_string(name, None, text, flag_values=flag_values)


def read_grid(flag_values: absl_flags.FlagValues) -> tuple[dict[str, list[str]], list[Run]]:
  """Reads the flags and makes all their combinations, checked.

  Raises:
    ConfigError: a combination contradicts itself; nothing has run then.
  """
  grid = read_lists(flag_values)
  runs = [
    Run({name: value for name, value in run.point.items() if len(grid[name]) > 1}, run.config)
    for run in expand(grid)
  ]
  return grid, runs


def read_lists(flag_values: absl_flags.FlagValues) -> dict[str, list[str]]:
  """Reads the values of the flags that were given."""
  given = {
    name: str(flag_values[name].value)
    for name in flags.Config._fields
    if name not in _OWN and flag_values[name].value is not None
  }
  return {
    name: [text] if name in _LISTS else [part.strip() for part in text.split(",")]
    for name, text in given.items()
  }


def expand(grid: Mapping[str, list[str]]) -> list[Run]:
  """Makes all combinations of a grid, checked; their points name all its flags.

  Raises:
    ConfigError: a combination contradicts itself.
  """
  runs = []
  for values in itertools.product(*grid.values()):
    combination = dict(zip(grid, values, strict=True))
    table = absl_flags.FlagValues()
    flags.define(table)
    table(["sweep", *(f"--{name}={value}" for name, value in combination.items())])
    runs.append(Run(combination, flags.resolve(flags.read(table))))
  return runs


def open_directory(path: str | None, grid: Any) -> pathlib.Path:
  """Creates the directory of a sweep, or opens that of the same grid.

  Args:
    path: the flag --output_dir.
    grid: what the sweep runs, of lists, dicts and strings.

  Raises:
    ConfigError: no path is given.
    FileExistsError: the directory holds something else.
  """
  if not path:
    raise flags.ConfigError("--output_dir: must be given, so that the sweep can be gone on with")
  directory = pathlib.Path(path)
  listed = directory / _GRID_NAME
  if listed.exists():
    if json.loads(listed.read_text()) != grid:
      raise FileExistsError(
        f"--output_dir={path}: holds a sweep of other flags ({listed}); choose another directory"
      )
    return directory
  create_run_dir(directory)
  write_json(listed, grid)
  return directory


def check_mode(mode: str, runs: Sequence[Run]) -> None:
  """Checks the flag --sweep_mode; raises ConfigError."""
  if mode not in MODES:
    raise flags.ConfigError(f"--sweep_mode={mode}: must be one of {', '.join(MODES)}")
  if mode == "vmap" and any(run.config.data_placement == "streamed" for run in runs):
    raise flags.ConfigError(
      "--data_placement=streamed: must be replicated or sharded with --sweep_mode=vmap"
    )


def check_data(runs: Sequence[Run]) -> None:
  """Reads each data set once, before anything is written.

  Raises:
    DataError: one of them cannot be used.
  """
  for name in dict.fromkeys(run.config.dataset for run in runs):
    load(name, jax.random.key(0))


def run_all(runs: Sequence[Run], directory: pathlib.Path, mode: str) -> None:
  """Runs what has not ended yet.

  Args:
    runs: of the grid.
    directory: of the sweep.
    mode: one of MODES.
  """

  def has_ended(run: Run) -> bool:
    return (place_of(run, directory) / SUMMARY_NAME).exists()

  groups: dict[Hashable, list[Run]] = {}
  for run in runs:
    key = _group_key(run.config) if mode == "vmap" else id(run)
    groups.setdefault(key, []).append(run)
  left = [group for group in groups.values() if not all(map(has_ended, group))]
  num_left = sum(map(len, left))
  print(f"{len(runs)} runs, {len(runs) - num_left} done before", flush=True)
  total = sum(run.config.rounds for run in runs)
  done = total - sum(run.config.rounds for group in left for run in group)
  compiled: dict[Hashable, Programs] = {}
  with progress(total, done) as update:
    for group in left:
      for members in _by_program([_member(run, directory) for run in group]):
        run_group = _run_alone if len(members) == 1 else _run_side_by_side
        run_group(members, directory, compiled, _shifted(update, done, len(members)))
        done += sum(member.config.rounds for member in members)
  print(f"{num_left} runs by {len(compiled)} compiled programs")


def _group_key(config: flags.Config) -> Hashable:
  """Makes what runs side by side have in common before their data is known."""
  stops = config.checkpoint_every, config.shift_round, config.mask_metrics_every
  return fixed_flags(config), config.rounds, stops, config.client_eval


def _by_program(members: Sequence[Member]) -> list[list[Member]]:
  groups: dict[Hashable, list[Member]] = {}
  for member in members:
    groups.setdefault(program_key(member.config, member.experiment), []).append(member)
  return list(groups.values())


def _member(run: Run, directory: pathlib.Path) -> Member:
  place = place_of(run, directory)
  place.mkdir(exist_ok=True)
  experiment = build(run.config)
  write_json(place / CONFIG_NAME, begun.describe(run.config, experiment.facts))
  return Member(run.config, experiment, place)


def _shifted(update: Update, before: int, num_runs: int) -> Update:
  return lambda rounds, row: update(before + num_runs * rounds, row)


def _run_alone(
  members: Sequence[Member],
  directory: pathlib.Path,
  compiled: dict[Hashable, Programs],
  update: Update,
) -> None:
  (member,) = members
  key = program_key(member.config, member.experiment)
  if key not in compiled:
    compiled[key] = compile_programs(member.experiment)
  programs, inputs = compiled[key], inputs_of(member.experiment)
  restored = restore(members, programs.shapes, member.directory)
  start = begin(member, programs, inputs, restored)
  try:
    record(members, programs, inputs, start, member.directory, update)
  except DivergedError as error:
    _note_failures(members, [error])


def _run_side_by_side(
  members: Sequence[Member],
  directory: pathlib.Path,
  compiled: dict[Hashable, Programs],
  update: Update,
) -> None:
  inputs, axes = stack_inputs([member.experiment for member in members])
  first = members[0]
  key = program_key(first.config, first.experiment), len(members), axes
  if key not in compiled:
    compiled[key] = compile_side_by_side(first.experiment, inputs, axes)
  programs = compiled[key]
  checkpoints = directory / _GROUPS_NAME / first.directory.name
  checkpoints.mkdir(parents=True, exist_ok=True)
  start = begin(first, programs, inputs, restore(members, programs.shapes, checkpoints))
  try:
    _note_failures(members, record(members, programs, inputs, start, checkpoints, update))
  except DivergedError as error:
    _note_failures(members, [error] * len(members))


def _note_failures(members: Sequence[Member], results: Sequence[Any]) -> None:
  for member, result in zip(members, results, strict=True):
    if isinstance(result, DivergedError):
      write_json(member.directory / SUMMARY_NAME, {"diverged": str(result)})


def place_of(run: Run, directory: pathlib.Path) -> pathlib.Path:
  """Names the directory of a run, by what is not empty in its point."""
  name = ",".join(f"{flag}={value}" for flag, value in run.point.items() if value) or "run"
  return directory / "".join(c if c.isalnum() or c in "=.,-_" else "-" for c in name)


def write_results(runs: Sequence[Run], directory: pathlib.Path) -> str:
  """Writes sweep.csv, table.md and sweep.png of runs that have ended; returns the table."""
  varied = list(runs[0].point)
  summaries = [json.loads((place_of(run, directory) / SUMMARY_NAME).read_text()) for run in runs]
  columns = [name for name, *_ in _MEASURES]
  with open(directory / "sweep.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow([*varied, *columns, "seconds_per_round"])
    for run, summary in zip(runs, summaries, strict=True):
      values = [summary.get(name) for name in [*columns, "seconds_per_round"]]
      writer.writerow([*run.point.values(), *values])

  groups: dict[tuple[str, ...], list[int]] = {}
  for i, run in enumerate(runs):
    label = tuple(value for flag, value in run.point.items() if flag != "seed")
    groups.setdefault(label, []).append(i)
  heads = [flag for flag in varied if flag != "seed"]
  lines = [
    "| " + " | ".join([*heads, *(title for _, title, _ in _MEASURES), "seeds"]) + " |",
    "|" + "---|" * len(heads) + "---:|" * (len(_MEASURES) + 1),
  ]
  for label, members in groups.items():
    is_diverged = any("diverged" in summaries[i] for i in members)
    lacking = "diverged" if is_diverged else "not measured"
    cells = [
      mean_and_deviation([summaries[i].get(name) for i in members], text, lacking)
      for name, _, text in _MEASURES
    ]
    lines.append("| " + " | ".join([*label, *cells, str(len(members))]) + " |")
  table = "\n".join(lines) + "\n"
  (directory / "table.md").write_text(table)

  curves = []
  for label, members in groups.items():
    rows = [read_metrics(place_of(runs[i], directory) / JSONL_NAME) for i in members]
    curves.append(Curve(", ".join(filter(None, label)) or "run", rows))
  plot_sweep(curves, directory / "sweep.png")
  return table


def mean_and_deviation(
  values: Sequence[float | None], text: Callable[[float], str], lacking: str
) -> str:
  """Writes the mean and the standard deviation of the runs of a setting.

  Args:
    values: of each run; None or not finite where it has none.
    text: writes a value.
    lacking: what is said of runs without a value.
  """
  known = [value for value in values if value is not None and math.isfinite(value)]
  if len(known) < len(values):
    return f"{len(values) - len(known)} of {len(values)} {lacking}"
  mean = text(statistics.mean(known))
  return f"{mean} ± {text(statistics.stdev(known))}" if len(known) > 1 else mean


if __name__ == "__main__":
  define()
  absl_flags.adopt_module_key_flags(sys.modules[__name__])
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
