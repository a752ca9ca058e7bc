"""Runs a grid of flags: `python -m experiments.sweep --algorithm=topk,sparsyfed --seed=0,1,2`.

Takes the flags of `experiments.train`, each of them a comma list, and runs every combination, one
after the other; what can share compiled programs does. Every run has a directory of its own in
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
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, logging
from absl import flags as absl_flags
from rich.console import Console
from rich.markdown import Markdown

from experiments import flags
from experiments.build import Experiment, build, program_key
from experiments.plots import Curve, plot_sweep
from experiments.terminal import progress
from experiments.train import (
  CONFIG_NAME,
  DivergedError,
  Programs,
  StoppedError,
  begin,
  compile_programs,
  describe,
  record,
)
from sparsyfed_jax.data.sources import DataError
from sparsyfed_jax.io.writers import JSONL_NAME, create_run_dir, read_metrics, write_json

_GRID_NAME = "grid.json"
_SUMMARY_NAME = "summary.json"
# Columns of the table: of summary.json, heading, factor, decimals.
_MEASURES = (
  ("test_accuracy", "test accuracy, %", 100, 2),
  ("prunable_sparsity", "sparsity of the model, %", 100, 2),
  ("uplink_bytes_per_client_round", "uplink, kB a client and round", 1e-3, 1),
  ("downlink_bytes_per_client_round", "downlink, kB", 1e-3, 1),
)
_OWN = ("output_dir", "resume")  # of the sweep, which always resumes
_LISTS = ("client_sparsities", "client_sparsity_shares")  # lists already; not swept


class Run(NamedTuple):
  """One point of the grid."""

  point: dict[str, str]  # the flags that the sweep varies, as written
  config: flags.Config  # resolved


def main(argv: Sequence[str]) -> None:
  """Runs what the flags say."""
  del argv
  try:
    grid, runs = read_grid(absl_flags.FLAGS)
    directory = _open_directory(absl_flags.FLAGS["output_dir"].value, grid)
  except (flags.ConfigError, absl_flags.Error, FileExistsError, OSError) as error:
    flags.fail(error)
  try:
    _run_all(runs, directory)
  except (flags.ConfigError, DataError) as error:
    flags.fail(error)
  except OSError as error:  # a full disk, say; finished runs and checkpoints are left
    flags.fail(OSError(f"--output_dir={directory}: {error}"), code=1)
  except (KeyboardInterrupt, StoppedError) as error:
    print(f"\ninterrupted; the same command goes on in {directory}", file=sys.stderr)
    sys.exit(error.code if isinstance(error, StoppedError) else 130)
  table = _write_results(runs, directory)
  Console().print(Markdown(table))
  print(f"files in {directory}")


def define(flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags of a run, each as text that may list several values."""
  absl_flags.DEFINE_string(
    "output_dir", None, "where the runs go; required", flag_values=flag_values
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
  given = {
    name: str(flag_values[name].value)
    for name in flags.Config._fields
    if name not in _OWN and flag_values[name].value is not None
  }
  grid = {
    name: [text] if name in _LISTS else [part.strip() for part in text.split(",")]
    for name, text in given.items()
  }
  runs = []
  for values in itertools.product(*grid.values()):
    combination = dict(zip(grid, values, strict=True))
    table = absl_flags.FlagValues()
    flags.define(table)
    table(["sweep", *(f"--{name}={value}" for name, value in combination.items())])
    point = {name: value for name, value in combination.items() if len(grid[name]) > 1}
    runs.append(Run(point, flags.resolve(flags.read(table))))
  return grid, runs


def _open_directory(path: str | None, grid: Mapping[str, list[str]]) -> pathlib.Path:
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


def _run_all(runs: Sequence[Run], directory: pathlib.Path) -> None:
  left = [run for run in runs if not (place_of(run, directory) / _SUMMARY_NAME).exists()]
  print(f"{len(runs)} runs, {len(runs) - len(left)} done before", flush=True)
  total = sum(run.config.rounds for run in runs)
  done = total - sum(run.config.rounds for run in left)
  compiled: dict[Hashable, Programs] = {}
  with progress(total, done) as update:
    for run in left:
      place = place_of(run, directory)
      place.mkdir(exist_ok=True)
      experiment = build(run.config)
      write_json(place / CONFIG_NAME, describe(run.config, experiment))
      programs = _programs_for(run.config, experiment, compiled)
      try:
        before = done
        record(
          run.config,
          experiment,
          programs,
          place,
          begin(experiment, programs, place, resume=True),
          lambda rounds, row, before=before: update(before + rounds, row),  # type: ignore[misc]
        )
      except DivergedError as error:
        write_json(place / _SUMMARY_NAME, {"diverged": str(error)})
      done += run.config.rounds


def _programs_for(
  config: flags.Config, experiment: Experiment, compiled: dict[Hashable, Programs]
) -> Programs:
  key = program_key(config, experiment)
  if key not in compiled:
    compiled[key] = compile_programs(experiment)
  return compiled[key]


def place_of(run: Run, directory: pathlib.Path) -> pathlib.Path:
  """Names the directory of a run."""
  name = ",".join(f"{flag}={value}" for flag, value in run.point.items()) or "run"
  return directory / "".join(c if c.isalnum() or c in "=.,-_" else "-" for c in name)


def _write_results(runs: Sequence[Run], directory: pathlib.Path) -> str:
  varied = list(runs[0].point)
  summaries = [json.loads((place_of(run, directory) / _SUMMARY_NAME).read_text()) for run in runs]
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
    "| " + " | ".join([*heads, *(title for _, title, *_ in _MEASURES), "seeds"]) + " |",
    "|" + "---|" * len(heads) + "---:|" * (len(_MEASURES) + 1),
  ]
  for label, members in groups.items():
    cells = [
      _mean_and_deviation([summaries[i].get(name) for i in members], factor, decimals)
      for name, _, factor, decimals in _MEASURES
    ]
    lines.append("| " + " | ".join([*label, *cells, str(len(members))]) + " |")
  table = "\n".join(lines) + "\n"
  (directory / "table.md").write_text(table)

  curves = []
  for label, members in groups.items():
    rows = [read_metrics(place_of(runs[i], directory) / JSONL_NAME) for i in members]
    curves.append(Curve(", ".join(label) or "run", rows))
  plot_sweep(curves, directory / "sweep.png")
  return table


def _mean_and_deviation(values: Sequence[Any], factor: float, decimals: int) -> str:
  known = [factor * value for value in values if value is not None and math.isfinite(value)]
  if len(known) < len(values):
    return f"{len(values) - len(known)} of {len(values)} diverged"
  mean = f"{statistics.mean(known):.{decimals}f}"
  return f"{mean} ± {statistics.stdev(known):.{decimals}f}" if len(known) > 1 else mean


if __name__ == "__main__":
  define()
  absl_flags.adopt_module_key_flags(sys.modules[__name__])
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
