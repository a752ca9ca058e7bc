"""Weights that a run starts from, read from what this program and others write.

Nothing in a file is run: pickles, and what contains them, are no weights here.
"""

import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.exports import safetensors_file
from experiments.run.config import Config, ConfigError
from experiments.run.identity import digest
from experiments.run.starting import KINDS, starting_of
from sparsyfed_jax import trees
from sparsyfed_jax.fed.task import Task
from sparsyfed_jax.fed.weights import with_weights
from sparsyfed_jax.io import model_file
from sparsyfed_jax.io.model_places import LAST_NAME, find_file
from sparsyfed_jax.types import Key, Variables

_RUN_NAMES = ("config.json", LAST_NAME)
_ORBAX_NAME = "_METADATA"
_ORBAX_ITEM = "default"  # of a step that orbax's CheckpointManager has written


class Weights(NamedTuple):
  """Weights of a file or folder."""

  tree: Any  # NumPy arrays, by their paths or in nested dicts
  sha256: str  # of paths and arrays, whatever holds them


def start_from(config: Config, task: Task) -> Task:
  """Makes the task that starts as flags say.

  Raises:
    ConfigError: the weights cannot be read, or do not fit the model, or a pattern does not.
  """
  chosen = starting_of(config)
  if not chosen.init_from:
    return task
  if is_gone(config):
    return _without_weights(config, task)
  weights = read(chosen.init_from)
  try:
    return with_weights(task, weights.tree, chosen.init_exclude, chosen.freeze)
  except ValueError as error:
    reason = str(error)
    for argument, flag in (("exclude", "init_exclude"), ("freeze", "freeze")):
      if reason.startswith(f"{argument}="):
        value = getattr(chosen, flag)
        rest = reason.removeprefix(f"{argument}={value!r}").replace("exclude=", "--init_exclude=")
        raise ConfigError(f"--{flag}={value}{rest}") from error
    raise ConfigError(f"--init_from={chosen.init_from}: {reason}") from error


def facts_of(config: Config) -> dict[str, str]:
  """Makes what config.json has of the weights; {} of a run that starts from none."""
  chosen = starting_of(config)
  if not chosen.init_from or is_gone(config):
    return {}
  return {"init_sha256": read(chosen.init_from).sha256}


def is_gone(config: Config) -> bool:
  """Tells whether a run goes on whose weights are not there any more."""
  place = starting_of(config).init_from
  return config.resume and bool(place) and not _place_of(place or "").exists()


def refuse_gone(config: Config, reason: str) -> None:
  """Refuses a run that cannot go on without the weights that it was begun with."""
  if is_gone(config):
    raise ConfigError(
      f"--init_from={starting_of(config).init_from}: no such file or folder, but {reason}"
    )


def started_once(config: Config, task: Task) -> Task:
  """Makes the task that a method is given: one that starts anew in a later round needs weights."""

  def init(key: Key) -> Variables:
    refuse_gone(config, f"--algorithm={config.algorithm} starts from it again in later rounds")
    return task.init(key)

  return task._replace(init=init) if is_gone(config) else task


def _without_weights(config: Config, task: Task) -> Task:
  """Makes a task whose start is not needed: a checkpoint has what has become of it."""
  if starting_of(config).freeze:
    refuse_gone(config, "what --freeze keeps as it is there is in no checkpoint")
  remark = f"--init_from={starting_of(config).init_from} is gone; the run goes on without it"
  return task._replace(is_given=True, remarks=(*task.remarks, remark))


def read(path: str) -> Weights:
  """Reads weights; raises ConfigError."""
  place = _place_of(path)
  try:
    return _read(place, _stamp(place))
  except (ValueError, OSError) as error:
    line = " ".join(str(error).split()).removeprefix(f"{place}: ")
    raise ConfigError(f"--init_from={path}: {line}") from error


def _place_of(path: str) -> pathlib.Path:
  return pathlib.Path(os.path.expanduser(path))


def _stamp(place: pathlib.Path) -> tuple[int, int]:
  """Makes what changes with what is read, so that a sweep reads it once."""
  chosen = place
  if place.is_dir():
    inside = [place / name for name in (LAST_NAME, _ORBAX_NAME, f"{_ORBAX_ITEM}/{_ORBAX_NAME}")]
    chosen = next((one for one in inside if one.exists()), place)
  if not chosen.exists():
    raise ValueError(f"no such file or folder; must be {KINDS}")
  found = chosen.stat()
  return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=2)
def _read(place: pathlib.Path, stamp: tuple[int, int]) -> Weights:
  tree = _tree_of(place)
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  table = {trees.path_name(path): np.asarray(leaf) for path, leaf in flat}
  return Weights(tree, digest(part for name in sorted(table) for part in (name, table[name])))


def _tree_of(place: pathlib.Path) -> Any:
  if place.is_dir():
    if any((place / name).exists() for name in _RUN_NAMES):
      return model_file.read(find_file(place)).variables
    for folder in (place, place / _ORBAX_ITEM):
      if (folder / _ORBAX_NAME).exists():
        return _read_orbax(folder)
  elif place.suffix == model_file.SUFFIX:
    return model_file.read(place).variables
  elif place.suffix == ".safetensors":
    return _read_safetensors(place)
  raise ValueError(f"must be {KINDS}")


def _read_safetensors(place: pathlib.Path) -> Any:
  try:
    import safetensors
  except ImportError as error:
    raise ValueError("needs the package safetensors, which the extra `export` brings") from error
  try:
    return safetensors_file.read(place)
  except safetensors.SafetensorError as error:
    raise ValueError(f"is no safetensors file, or damaged ({error})") from error


def _read_orbax(folder: pathlib.Path) -> Any:
  try:
    import orbax.checkpoint as ocp
  except ImportError as error:
    raise ValueError("needs the package orbax-checkpoint, which the extra `run` brings") from error
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      saved = checkpointer.metadata(folder.absolute()).item_metadata.tree
      # As NumPy's, wherever the arrays were that were saved.
      as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
      return checkpointer.restore(folder.absolute(), restore_args=as_numpy)
  except Exception as error:  # orbax and its storage raise what they like
    raise ValueError(f"cannot be read by orbax ({type(error).__name__}: {error})") from error
