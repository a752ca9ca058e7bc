"""Where a run keeps its model files: that of its last checkpoint or end, and the best ones."""

import os
import pathlib
import re

from sparsyfed_jax.io.model_file import SUFFIX, ModelFileError, PathLike

LAST_NAME = f"model{SUFFIX}"
BEST_DIRECTORY = "best"
WHICH = ("last", "best")
_BEST = re.compile(rf"(\d{{8,}}){re.escape(SUFFIX)}")


def find_file(path: PathLike, which: str = "last") -> pathlib.Path:
  """Finds the model file that `load_model` reads; raises ModelFileError where there is none."""
  if which not in WHICH:
    raise ModelFileError(f"which={which!r}: must be one of {', '.join(WHICH)}")
  place = pathlib.Path(path)
  if place.is_file():
    return place
  if not place.is_dir():
    raise ModelFileError(f"{place}: no such file or folder, must be that of a run or a {SUFFIX}")
  if which == "best":
    rounds = best_rounds(place)
    if not rounds:
      raise ModelFileError(
        f"{place / BEST_DIRECTORY}: holds no model; a run with --keep_best keeps its best there"
      )
    return best_path(place, rounds[-1])
  if not (place / LAST_NAME).is_file():
    raise ModelFileError(
      f"{place / LAST_NAME}: no such file; a run writes it with its checkpoints and at its end, and"
      " one of an earlier version when it is gone on with (--resume)"
    )
  return place / LAST_NAME


def best_rounds(directory: PathLike) -> list[int]:
  """Lists the rounds of which a run keeps models of good evaluations, in order."""
  folder = pathlib.Path(directory) / BEST_DIRECTORY
  names = os.listdir(folder) if folder.is_dir() else []
  return sorted(int(found[1]) for name in names if (found := _BEST.fullmatch(name)))


def best_path(directory: PathLike, round_number: int) -> pathlib.Path:
  """Names the file of the model of a good evaluation."""
  return pathlib.Path(directory) / BEST_DIRECTORY / f"{round_number:08d}{SUFFIX}"
