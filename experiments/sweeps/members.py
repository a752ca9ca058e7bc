"""The directory of a sweep, and those of its runs: each belongs to one configuration for good."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from experiments import flags
from experiments.run import begun
from experiments.run import files as run_files
from experiments.run.build import build, check
from experiments.run.data import load, source_of
from experiments.run.directory import CONFIG_NAME, LOCK_NAME, locked
from experiments.run.files import SUMMARY_NAME
from experiments.run.identity import examples_digest
from experiments.run.member import Member
from experiments.sweeps.grid import Run, name_of, place_of
from sparsyfed_jax.data.sources import DataError
from sparsyfed_jax.io.writers import check_new_dir, write_json

GRID_NAME = "grid.json"  # the flags of the sweep
RUNS_NAME = "runs.json"  # its runs: directory, point and, where it cannot run, the reason
_MEMBERS_NAME = "members.json"  # of a group side by side


def directory_of(path: str | None) -> pathlib.Path:
  """Reads the flag --output_dir of a sweep; raises ConfigError where it is not given."""
  if not path:
    raise flags.ConfigError("--output_dir: must be given, so that the sweep can be gone on with")
  return pathlib.Path(flags.folder(path))


@contextlib.contextmanager
def opened(directory: pathlib.Path, grid: Any, runs: Sequence[Run]) -> Iterator[None]:
  """Makes or opens the directory of a sweep, and keeps other processes out of it meanwhile.

  Args:
    directory: of the sweep.
    grid: what it runs, of lists, dicts and strings.
    runs: all of them.

  Raises:
    ConfigError: another process uses it, or a file of it is damaged.
    FileExistsError: it holds something else.
  """
  check_directory(directory, grid, runs)
  directory.mkdir(parents=True, exist_ok=True)
  with locked(directory):
    open_directory(directory, grid, runs)
    yield


def open_directory(directory: pathlib.Path, grid: Any, runs: Sequence[Run]) -> None:
  """Makes the directory of a sweep, or opens that of the same runs; raises as `opened`."""
  check_directory(directory, grid, runs)
  directory.mkdir(parents=True, exist_ok=True)
  if not (directory / GRID_NAME).exists():
    write_json(directory / GRID_NAME, grid)
  listed = [
    {
      "directory": name_of(run),
      "point": run.point,
      **({"refused": run.refusal} if run.refusal else {}),
    }
    for run in runs
  ]
  write_json(directory / RUNS_NAME, listed)


def check_directory(directory: pathlib.Path, grid: Any, runs: Sequence[Run]) -> None:
  """Checks that a directory is new, empty, or that of the same runs; raises as `opened`."""
  listed = directory / GRID_NAME
  if not listed.exists():
    check_new_dir(directory, besides=_own_leftovers(directory))
    return
  before = _read(directory, GRID_NAME)
  if not before or not isinstance(before, dict | list):
    raise flags.ConfigError(
      f"--output_dir={directory}: {listed}: must hold the flags of a sweep, is {json.dumps(before)}"
    )
  if before != grid:
    raise FileExistsError(
      f"--output_dir={directory}: holds a sweep of other flags ({listed}); choose another directory"
    )
  known = _known_names(directory)
  strange = sorted(known - {name_of(run) for run in runs})
  if strange:
    raise FileExistsError(
      f"--output_dir={directory}: holds what another version of the program left ({strange[0]}),"
      " beside which all runs would start anew; choose another directory"
    )


def _known_names(directory: pathlib.Path) -> set[str]:
  """Reads the names of the runs of a sweep, or finds them where an earlier version left no list."""
  path = directory / RUNS_NAME
  if not path.exists():
    besides = (GRID_NAME, *_own_leftovers(directory))
    return {entry.name for entry in directory.iterdir() if entry.name not in besides}
  content = _read(directory, RUNS_NAME)
  is_list = isinstance(content, list) and all(isinstance(entry, dict) for entry in content)
  if not is_list or not all(isinstance(entry.get("directory"), str) for entry in content):
    raise flags.ConfigError(f"--output_dir={directory}: {path}: must list the runs of the sweep")
  return {entry["directory"] for entry in content}


def _read(directory: pathlib.Path, name: str) -> Any:
  try:
    return run_files.read_json(directory / name)
  except run_files.DamagedError as error:
    raise flags.ConfigError(f"--output_dir={directory}: {error}") from error


def _own_leftovers(directory: pathlib.Path) -> tuple[str, ...]:
  """Names the lock, and what a process that was killed had half written."""
  names = os.listdir(directory) if directory.is_dir() else []
  return (LOCK_NAME, *(name for name in names if name[0] == "." and name.endswith(".tmp")))


def check_members(runs: Sequence[Run], directory: pathlib.Path) -> list[Run]:
  """Checks each run against its data and its directory, before the first one trains.

  Each data set is read once for each seed, which may split it, and one at a time.

  Args:
    runs: of the grid.
    directory: of the sweep.

  Returns:
    The runs, marked as refused where their data cannot be read or a flag does not fit them. A run
    that has ended does not need its data, or the weights that it started from, any more.

  Raises:
    ConfigError: a directory holds another configuration, or was begun with other data; or no run
      can start, because of what is wrong with the first.
  """
  groups: dict[Hashable, list[int]] = {}
  for i, run in enumerate(runs):
    if not run.refusal:
      groups.setdefault(source_of(run.config), []).append(i)
  checked = list(runs)
  for members in groups.values():
    befores = {i: _begun(runs[i], place_of(runs[i], directory)) for i in members}
    try:
      dataset = load(runs[members[0]].config)
    except DataError as error:
      for i in members:
        if not has_ended(runs[i], directory):
          checked[i] = runs[i]._replace(refusal=_one_line(error))
      continue
    facts = {"examples_sha256": examples_digest(dataset)} if any(befores.values()) else {}
    for i in members:
      try:
        check(runs[i].config, dataset)
      except flags.ConfigError as error:
        if not has_ended(runs[i], directory):
          checked[i] = runs[i]._replace(refusal=_one_line(error))
      before = befores[i]
      if before:
        begun.check_data(before, runs[i].config, facts, place_of(runs[i], directory))
  if all(run.refusal for run in checked):
    raise flags.ConfigError(checked[0].refusal)
  return checked


def _begun(run: Run, place: pathlib.Path) -> dict[str, Any]:
  """Reads what the directory of a run was begun with, {} where it is new; raises ConfigError."""
  if not (place / CONFIG_NAME).exists():
    check_new_dir(place, besides=_own_leftovers(place))
    return {}
  try:
    run_files.check_regular(place / CONFIG_NAME)
  except run_files.DamagedError as error:
    raise flags.ConfigError(f"--output_dir={place}: {error}") from error
  before = begun.read(place)
  begun.check_flags(before, run.config, place)
  return before


def has_ended(run: Run, directory: pathlib.Path) -> bool:
  """Tells whether a run needs nothing more; one that cannot run does not."""
  return bool(run.refusal) or (place_of(run, directory) / SUMMARY_NAME).exists()


def open_member(run: Run, directory: pathlib.Path, stack: contextlib.ExitStack) -> Member:
  """Builds a run in its directory, which no other process may use until the stack is closed.

  Raises:
    ConfigError: the directory is in use, or holds another configuration or other data.
    DataError: the data cannot be used.
  """
  place = place_of(run, directory)
  place.mkdir(exist_ok=True)
  stack.enter_context(locked(place))
  before = _begun(run, place)
  config = run.config
  if before:
    config = begun.with_recorded_chunk(config, begun.recorded_chunk(before))
  experiment = build(config)
  config = config._replace(partition=experiment.facts["partition"])
  if before:
    begun.check_data(before, config, experiment.facts, place)
  else:
    write_json(place / CONFIG_NAME, begun.describe(config, experiment.facts))
  return Member(config, experiment, place)


def group_directory(members: Sequence[Member], parent: pathlib.Path) -> pathlib.Path:
  """Makes or opens the directory of the checkpoints of runs side by side.

  Raises:
    ConfigError: it belongs to other runs.
  """
  names = [member.directory.name for member in members]
  digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
  place = parent / f"{len(names)}-runs-{digest}"
  place.mkdir(parents=True, exist_ok=True)
  listed = place / _MEMBERS_NAME
  if not listed.exists():
    write_json(listed, names)
  elif (found := _read(place, _MEMBERS_NAME)) != names:
    raise flags.ConfigError(f"--output_dir={parent}: {listed}: must be of {names[0]}, is {found}")
  return place


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())
