"""The runs of a grid of flags, each configuration once, and the names of their directories."""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from absl import flags as absl_flags

from experiments import flags
from experiments.run.defaults import known_partition
from experiments.run.settings import all_flags, flags_of

# Of the sweep, which always resumes, or of a run of several processes, which a sweep is not.
OWN = ("output_dir", "resume", "discard_rounds", "coordinator", "num_processes", "process_id")
# Lists already, which are not swept.
LISTS = (
  *("client_sparsities", "client_sparsity_shares", "trackers", "input_range"),
  *("text_columns", "image_size"),
)
_MOST_BYTES = 100  # of the readable part of a name; file systems take 255
_DIGITS = 8  # of the hash behind it


class Run(NamedTuple):
  """One point of the grid."""

  point: dict[str, str]  # the flags that the sweep varies, as written; "" where one is of no effect
  config: flags.Config  # resolved, unless the flags contradict each other
  refusal: str = ""  # why it cannot run


def read_grid(flag_values: absl_flags.FlagValues) -> tuple[dict[str, list[str]], list[Run]]:
  """Reads the flags and makes all their combinations, each configuration once.

  Raises:
    ConfigError: a value is refused in each of its combinations; nothing has run then.
  """
  grid = read_lists(flag_values)
  varied = [name for name, values in grid.items() if len(values) > 1]
  runs = distinct(expand(grid), varied)
  count = len(list(itertools.product(*grid.values())))
  if len(runs) < count:
    print(
      f"note: {count - len(runs)} of the {count} points of the grid are equal to others, by value"
      " or because their method does not read what differs; each configuration runs once"
    )
  return grid, runs


def read_lists(flag_values: absl_flags.FlagValues) -> dict[str, list[str]]:
  """Reads the values of the flags that were given."""
  known = flags_of(*flags.strangers_of(_listed(flag_values["algorithm"].value)))
  given = {
    name: str(flag_values[name].value)
    for name in flag_values
    if name in known and name not in OWN and flag_values[name].value is not None
  }
  return {name: [text] if name in LISTS else _listed(text) for name, text in given.items()}


def _listed(text: str | None) -> list[str]:
  return [part.strip() for part in (text or "").split(",")]


def expand(grid: Mapping[str, list[str]]) -> list[Run]:
  """Makes all combinations of a grid; their points name all its flags.

  A combination that contradicts itself is marked as refused, if others have its values.

  Raises:
    ConfigError: a value is refused in each of its combinations.
    absl.flags.Error: a value cannot be read.
  """
  runs = []
  strangers = flags.strangers_of(grid.get("algorithm", []))
  for values in itertools.product(*grid.values()):
    combination = dict(zip(grid, values, strict=True))
    table = absl_flags.FlagValues()
    flags.define(table, strangers)
    table(["sweep", *(f"--{name}={value}" for name, value in combination.items())])
    config = flags.collect(table)
    try:
      flags.check(config)
      runs.append(Run(combination, flags.resolve(config)))
    except flags.ConfigError as error:
      runs.append(Run(combination, config, str(error)))
  accepted = {item for run in runs if not run.refusal for item in run.point.items()}
  for run in runs:
    if run.refusal and not set(run.point.items()) <= accepted:
      raise flags.ConfigError(run.refusal)
  return runs


def distinct(runs: Iterable[Run], varied: Iterable[str]) -> list[Run]:
  """Keeps the first of the runs of each configuration.

  Args:
    runs: of `expand`.
    varied: flags that their points name from here on.
  """
  found: dict[str, Run] = {}
  for run in runs:
    read = set(run.config._fields) - set(flags.ignored(run.config))  # of no other stranger's method
    point = {name: run.point.get(name, "") if name in read else "" for name in varied}
    chosen = run._replace(point=point)
    found.setdefault(identity(chosen), chosen)
  return list(found.values())


def identity(run: Run) -> str:
  """Writes what makes a configuration, as JSON.

  That is all flags which the method reads and which are not at their defaults, so that flags of
  later versions change no name. Flags without effect on results count where the sweep varies them.
  """
  config = run.config._asdict()
  defaults = {name: flag.default for name, flag in all_flags(run.config).items()}
  defaults["partition"] = known_partition(run.config) if config["partition"] else None
  values = {
    name: config[name]
    for name in config.keys() - set(flags.ignored(run.config))
    if (name not in flags.WITHOUT_EFFECT or run.point.get(name)) and config[name] != defaults[name]
  }
  return json.dumps(values, sort_keys=True)


def name_of(run: Run) -> str:
  """Names the directory of a run: what is not empty in its point, and a hash of all flags.

  At most 109 bytes, whatever the values are.
  """
  point = ",".join(f"{flag}={value}" for flag, value in run.point.items() if value) or "run"
  readable = "".join(c if c.isalnum() or c in "=.,-_" else "-" for c in point)
  short = readable.encode(errors="replace")[:_MOST_BYTES].decode(errors="ignore")
  return f"{short}-{hashlib.sha256(identity(run).encode()).hexdigest()[:_DIGITS]}"


def place_of(run: Run, directory: pathlib.Path) -> pathlib.Path:
  """Finds the directory of a run in that of its sweep."""
  return directory / name_of(run)
