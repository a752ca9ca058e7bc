"""Studies: unions of grids of runs, and the table and the picture that are made of them.

A study takes the flags of `experiments.sweep`, which replace its own, and goes on like a sweep when
it is started again. What it does not name comes from --preset=NAME or --flagfile=FILE, or else from
the preset cifar10-lda1000. With --smoke it is a small version of itself on the embedded digits.

Besides the files of a sweep it writes its own table and picture, NAME.md and NAME.png.
"""

import contextlib
import datetime
import functools
import pathlib
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from absl import app, logging
from absl import flags as absl_flags

from experiments import flag_files, flags, sweep
from experiments.run import measures
from experiments.sweeps import grid, members, results
from experiments.sweeps.results import LACKING, decimals

PRESET = "cifar10-lda1000"
METHODS = "--preset=studies/methods"
SPARSITIES = "--sparsity=0.9,0.95,0.99,0.995,0.999"
SEEDS = "--seed=0,1,2"
_SMOKE = (
  "--dataset=digits",
  "--model=mlp",
  "--num_clients=20",
  "--clients_per_round=5",
  "--rounds=12",
  "--local_epochs=2",
  "--eval_every=2",
  "--checkpoint_every=0",
)

Grid: TypeAlias = dict[str, list[str]]


class Outcome(NamedTuple):
  """A run that has ended."""

  config: flags.Config
  summary: Mapping[str, Any]  # summary.json; where it has no numbers, one of LACKING and the reason
  rows: Sequence[Mapping[str, Any]]  # metrics.jsonl
  directory: pathlib.Path


class Setting(NamedTuple):
  """The runs that differ in the seed alone."""

  point: Mapping[str, str]  # the flags that vary in the study; "" where one is of no effect
  outcomes: Sequence[Outcome]


class Column(NamedTuple):
  """What a table says of a setting."""

  title: str
  value: Callable[[Outcome], float | None]
  text: Callable[[float], str]
  lacking: str = "not measured"  # said of runs without a value


class Grids(Protocol):
  """What runs there are: a study, or whatever else says so."""

  @property
  def name(self) -> str:
    """Of the files."""

  @property
  def blocks(self) -> tuple[tuple[str, ...], ...]:
    """Flags of each grid."""

  @property
  def smoke(self) -> tuple[str, ...]:
    """Flags that replace those of the blocks with --smoke."""

  @property
  def complete(self) -> Callable[[Grid], Grid]:
    """Adds flags that follow from others."""


class Asked(NamedTuple):
  """What a command says of the runs of grids."""

  grids: list[Grid]
  runs: list[grid.Run]
  directory: pathlib.Path
  mode: str  # of experiments.sweep
  is_discarding: bool


class Study(NamedTuple):
  """Runs, and what is made of them."""

  name: str
  blocks: tuple[tuple[str, ...], ...]  # flags of each grid
  smoke: tuple[str, ...]  # flags that replace those of the blocks with --smoke
  report: Callable[[Sequence[Setting]], str]  # makes NAME.md
  draw: Callable[[Sequence[Setting], pathlib.Path], None]  # makes NAME.png
  complete: Callable[[Grid], Grid] = lambda grid: grid  # adds flags that follow from others


ACCURACY = Column(
  "Test accuracy, %",
  lambda outcome: measures.final_accuracy(outcome.rows),
  decimals(100, 2),
)


def run(study: Study) -> None:
  """Runs a study as a program."""
  run_grids(study, functools.partial(conduct, study))


def run_grids(grids: Grids, conduct: Callable[[], None]) -> None:
  """Runs as a program what is made of grids; `conduct` begins with `asked`."""
  table = absl_flags.FLAGS
  others = set(table)
  try:
    _define(table, sys.argv)
  except (flags.ConfigError, absl_flags.DuplicateFlagError) as error:
    flags.fail(error)
  for name in set(table) - others:  # for --help of the script
    table.register_key_flag_for_module(sys.argv[0], table[name])
  logging.set_verbosity(logging.WARNING)
  app.run(lambda argv: conduct(), flags_parser=flags.parse)  # parse refuses what is not a flag


def _define(table: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  sweep.define(table, flags.strangers_in(argv))
  absl_flags.DEFINE_bool(
    "smoke", False, "a small version on the digits, to see that all works", flag_values=table
  )


def asked(grids: Grids) -> Asked:
  """Reads the command; raises as `read`, or a ConfigError where there is no --output_dir."""
  table = absl_flags.FLAGS
  path = table["output_dir"].value
  if table["smoke"].value and not path:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = f"runs/{now}-{grids.name}-smoke"
  lists, runs = read(grids, sys.argv[1:])
  mode, is_discarding = str(table["sweep_mode"].value), bool(table["discard_rounds"].value)
  return Asked(lists, runs, members.directory_of(path), mode, is_discarding)


def conduct(study: Study) -> None:
  """Runs what the command says of a study, and writes its files."""
  with contextlib.ExitStack() as stack:
    try:
      grids, runs, directory, mode, is_discarding = asked(study)
      runs = sweep.prepare(grids, runs, directory, mode, stack, is_discarding)
    except (flags.ConfigError, absl_flags.Error, OSError) as error:
      flags.fail(error)
    sweep.finish(runs, directory, mode, functools.partial(write, study))
  print(f"picture: {directory / study.name}.png")


def read(study: Grids, arguments: Sequence[str]) -> tuple[list[Grid], list[grid.Run]]:
  """Makes the runs of a study.

  Args:
    study: of them, or other grids.
    arguments: the flags given. Those of a --preset or in a --flagfile give way to the study's, the
      others replace them.

  Returns:
    The grids, and their runs, none of them twice: values that a method does not read make no run.

  Raises:
    ConfigError: a combination contradicts itself.
  """
  files, own = flag_files.split(arguments)
  is_smoke = _parse(own)["smoke"].value
  base = [*files, *_SMOKE] if is_smoke else files or [f"--preset={PRESET}"]
  grids = []
  runs: list[grid.Run] = []
  for block in study.blocks:
    over = [*block, *(study.smoke if is_smoke else ()), *own]
    named = grid.read_lists(_parse(over))
    values = study.complete(grid.read_lists(_parse([*base, *over])))
    grids.append(values)
    for run in grid.expand(values):
      point = {name: run.point[name] for name in values if name in named or len(values[name]) > 1}
      runs.append(run._replace(point=point))
  names = list(dict.fromkeys(name for run in runs for name in run.config._fields))
  once = grid.distinct(runs, names)
  return grids, grid.distinct(once, [name for name in names if _is_varied(name, once)])


def _is_varied(name: str, runs: Sequence[grid.Run]) -> bool:
  return len({_value_of(name, run) for run in runs} - {None}) > 1


def _value_of(name: str, run: grid.Run) -> str | None:
  """Returns a flag as written, "" where a block does not name it, None where nothing reads it."""
  return None if name in flags.ignored(run.config) else run.point[name]


def _parse(arguments: Sequence[str]) -> absl_flags.FlagValues:
  table = absl_flags.FlagValues()
  argv = ["study", *flag_files.expand(arguments)]
  _define(table, argv)
  table(argv)
  return table


def write(study: Study, runs: Sequence[grid.Run], directory: pathlib.Path) -> str:
  """Writes the files of a study whose runs have ended; returns its table."""
  sweep.write_results(runs, directory)
  settings = read_settings(runs, directory)
  text = study.report(settings)
  (directory / f"{study.name}.md").write_text(text, encoding="utf-8")
  study.draw(settings, directory / f"{study.name}.png")
  return text


def read_settings(runs: Sequence[grid.Run], directory: pathlib.Path) -> list[Setting]:
  """Reads the runs of a study, those that differ in the seed alone together."""
  groups: dict[Hashable, Setting] = {}
  for run in runs:
    summary, rows = results.read_outcome(run, directory)
    outcome = Outcome(run.config, summary, rows, grid.place_of(run, directory))
    point = {name: value for name, value in run.point.items() if name != "seed"}
    group = groups.setdefault(tuple(point.items()), Setting(point, []))
    groups[tuple(point.items())] = group._replace(outcomes=[*group.outcomes, outcome])
  return list(groups.values())


def finished(setting: Setting) -> list[Outcome]:
  """Lists the runs that have numbers: all but those that diverged or could not run."""
  return [outcome for outcome in setting.outcomes if not set(LACKING) & set(outcome.summary)]


def mean(setting: Setting, value: Callable[[Outcome], float | None]) -> float | None:
  """Averages over the runs that have a value; None where none has."""
  known = [found for outcome in finished(setting) if (found := value(outcome)) is not None]
  return statistics.fmean(known) if known else None


def cell(setting: Setting, column: Column) -> str:
  """Writes the mean and the standard deviation over the seeds."""
  num_runs = len(setting.outcomes)
  num_lacking = num_runs - len(finished(setting))
  if num_lacking:
    reasons = results.lack_of([outcome.summary for outcome in setting.outcomes])
    return f"{num_lacking} of {num_runs} {reasons}"
  values = [column.value(outcome) for outcome in setting.outcomes]
  return results.mean_and_deviation(values, column.text, column.lacking)


def table_of(settings: Sequence[Setting], columns: Sequence[Column]) -> str:
  """Makes a table of a row a setting."""
  rows = [
    [*setting.point.values(), *(cell(setting, column) for column in columns)]
    for setting in settings
  ]
  return markdown([*settings[0].point], [column.title for column in columns], rows)


def pivot(settings: Sequence[Setting], flag: str, text: Callable[[Setting], str]) -> str:
  """Makes a table with a column for each value of a flag.

  Args:
    settings: of the study; the flag may be missing or of no effect in some.
    flag: that varies.
    text: writes a cell.
  """
  heads = [name for name in settings[0].point if name != flag]
  values = list(dict.fromkeys(setting.point.get(flag, "") for setting in settings))
  rows: dict[tuple[str, ...], dict[str, str]] = {}
  for setting in settings:
    row = rows.setdefault(tuple(setting.point[name] for name in heads), {})
    row[setting.point.get(flag, "")] = text(setting)
  blank = f"any {flag}" if len(values) > 1 else ""
  titles = [f"{flag} {value}" if value else blank for value in values]
  return markdown(
    heads,
    titles,
    [[*row, *(cells.get(value, "") for value in values)] for row, cells in rows.items()],
  )


def accuracy_table(settings: Sequence[Setting]) -> str:
  """Makes NAME.md of a study that compares accuracies by sparsity."""
  return f"{ACCURACY.title}\n\n" + pivot(settings, "sparsity", lambda s: cell(s, ACCURACY))


def markdown(heads: Sequence[str], titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Makes a table of the columns `heads`, to the left, and `titles`, to the right."""
  lines = [[*heads, *titles], ["---"] * len(heads) + ["---:"] * len(titles), *rows]
  return "".join(f"| {' | '.join(map(results.cell, line))} |\n" for line in lines)


def by_value(settings: Sequence[Setting], flag: str) -> dict[str, list[Setting]]:
  """Groups settings by a flag; all are in the group "" where it does not vary."""
  groups: dict[str, list[Setting]] = {}
  for setting in settings:
    groups.setdefault(setting.point.get(flag, ""), []).append(setting)
  return groups
