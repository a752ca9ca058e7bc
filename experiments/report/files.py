"""Which files of a folder a report may open, and what the sweeps in it were to run."""

import json
import math
import os
import pathlib
import stat
from collections.abc import Iterable
from typing import Any

from experiments.run import files as run_files
from experiments.sweeps.members import GRID_NAME, RUNS_NAME


def reason_to_skip(place: pathlib.Path, root: pathlib.Path) -> str:
  """Says why a file or folder is not to be opened; "" if it may be."""
  try:
    if not place.resolve(strict=True).is_relative_to(root.resolve()):
      return "is a link that leads out of the folder"
    mode = place.stat().st_mode
  except (OSError, RuntimeError) as error:  # a link that leads nowhere, or in a circle
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"
  return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "is no regular file"


def check_files(directory: pathlib.Path, names: Iterable[str], root: pathlib.Path) -> None:
  """Raises DamagedError for the first of the files that is there and must not be opened."""
  for name in names:
    place = directory / name
    reason = reason_to_skip(place, root) if os.path.lexists(place) else ""
    if reason:
      raise run_files.DamagedError(f"{place}: {reason}")


def read_sweep(directory: pathlib.Path, root: pathlib.Path) -> list[dict[str, Any]] | None:
  """Lists the runs of a sweep; None of a study of an earlier version, whose grids may overlap.

  Raises:
    DamagedError: a file of it is not what it should be.
    OSError: it cannot be read.
  """
  check_files(directory, (GRID_NAME, RUNS_NAME), root)
  grids = run_files.read_json(directory / GRID_NAME)
  listed = grids if isinstance(grids, list) else [grids]
  is_correct = listed and all(
    isinstance(grid, dict) and all(isinstance(values, list) for values in grid.values())
    for grid in listed
  )
  if not is_correct:
    raise run_files.DamagedError(
      f"{directory / GRID_NAME}: must hold the flags of a sweep, is {json.dumps(grids)[:60]}"
    )
  if (directory / RUNS_NAME).exists():
    runs = run_files.read_json(directory / RUNS_NAME)
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
      raise run_files.DamagedError(f"{directory / RUNS_NAME}: must list the runs of the sweep")
    return runs
  return None if grids is listed else [{}] * math.prod(map(len, grids.values()))
