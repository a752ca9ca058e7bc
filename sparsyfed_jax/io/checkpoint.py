"""Checkpoints of a run's state, written by orbax, each with a digest of its own content.

A checkpoint appears in one step when it is whole. One that was damaged later does not fit its
digest, and the one before it is taken.
"""

import hashlib
import math
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax.io.writers import sync_directory

PathLike = str | os.PathLike[str]
DIRECTORY = "checkpoints"
NUM_KEPT = 2  # the newest, and one to fall back on
_NAME = re.compile(r"[0-9]{8}|[1-9][0-9]{8,}")
# What orbax has not finished is named so, and is of no use once its process has been killed.
_UNFINISHED = re.compile(rf"(?:{_NAME.pattern})\.orbax-checkpoint-tmp.*")


class DamagedWarning(UserWarning):
  """A checkpoint was passed over."""


class CheckpointError(OSError):
  """A checkpoint that could not be written; the one-line message names it and the reason."""


def save(
  directory: PathLike, round_number: int, state: Any, intact: Sequence[int] = ()
) -> tuple[int, ...]:
  """Writes a checkpoint and removes old ones; returns when it is on the disk.

  Of several processes one alone calls it.

  Args:
    directory: of the run; checkpoints go into `checkpoints/` in it.
    round_number: the number of rounds done.
    state: pytree of arrays and Python numbers, typed PRNG keys included.
    intact: rounds of which this process has written or read a checkpoint. Only these count among
      the NUM_KEPT that are kept, so that damaged ones do not take the place of good ones.

  Returns:
    The rounds for `intact` next time.

  Raises:
    CheckpointError: the disk is full, or the like. Older checkpoints are left.
  """
  folder = _folder(directory)
  place = folder / f"{round_number:08d}"
  try:
    arrays = jax.tree_util.tree_map_with_path(_stored, state)
    content = {"state": arrays, "digest": np.frombuffer(_digest(arrays), np.uint8)}
    with _checkpointer() as checkpointer:
      checkpointer.save(place.absolute(), content, force=True)
      checkpointer.wait_until_finished()
    # orbax syncs the arrays, but neither its own files nor the directory that it has renamed.
    _sync(place)
    sync_directory(folder)
  except Exception as error:  # orbax and its storage raise what they like
    raise CheckpointError(f"{place}: cannot be written: {_one_line(error)}") from error
  kept = tuple(sorted({*intact, round_number}))[-NUM_KEPT:]
  for entry in folder.iterdir():
    is_old = _NAME.fullmatch(entry.name) and len(kept) == NUM_KEPT and int(entry.name) < kept[0]
    if is_old or _UNFINISHED.fullmatch(entry.name):
      shutil.rmtree(entry, ignore_errors=True)
  return kept


def restore(directory: PathLike, like: Any, last_round: float = math.inf) -> Any:
  """Reads the newest checkpoint that is whole, with a warning for each that is not.

  Args:
    directory: of the run.
    like: pytree of arrays or their shapes and of Python numbers, as `save` was given.
    last_round: checkpoints of later rounds are passed over.

  Returns:
    A state like `like`; None where there is no checkpoint.

  Raises:
    CheckpointError: the folder of the checkpoints cannot be read.
  """
  target = {
    "state": jax.tree.map(_target, like),
    "digest": jax.ShapeDtypeStruct((_digest_size(),), jnp.uint8),
  }
  for number in reversed(rounds(directory)):
    place = _folder(directory) / f"{number:08d}"
    if number > last_round:
      continue
    try:
      _check_readable(place)
      with _checkpointer() as checkpointer:
        content = checkpointer.restore(place.absolute(), target)
      if _digest(content["state"]) != np.asarray(content["digest"]).tobytes():
        raise ValueError("the content does not fit its digest")
    except PermissionError as error:
      message = f"{place}: cannot be read ({_one_line(error)})"
    except Exception as error:  # whatever damage provokes
      message = f"{place}: is damaged or of another version ({_one_line(error)})"
    else:
      return jax.tree.map(_loaded, like, content["state"])
    warnings.warn(f"{message}; taking an older one, or none", DamagedWarning, stacklevel=2)
  return None


def rounds(directory: PathLike) -> list[int]:
  """Lists the rounds of which a run has checkpoints, whole or not, in order.

  Raises:
    CheckpointError: the folder of the checkpoints cannot be read.
  """
  folder = _folder(directory)
  try:
    # Not what orbax had not finished, and nothing that others have put there.
    return sorted(int(name) for name in os.listdir(folder) if _NAME.fullmatch(name))
  except FileNotFoundError:
    return []
  except OSError as error:
    raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error


def set_aside(directory: PathLike, last_round: int) -> list[pathlib.Path]:
  """Renames the checkpoints of rounds after `last_round`, so that nothing reads or removes them.

  Returns:
    Their new names, `ROUND.discarded-1` or the next number that is free.
  """
  moved = []
  for number in rounds(directory):
    if number <= last_round:
      continue
    place, copies = _folder(directory) / f"{number:08d}", 1
    while os.path.lexists(aside := place.with_name(f"{place.name}.discarded-{copies}")):
      copies += 1
    moved.append(place.rename(aside))
  return moved


def _checkpointer() -> Any:
  import orbax.checkpoint as ocp  # half a second, which runs without checkpoints do not pay

  me = jax.process_index()  # nobody else is waited for
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"alone{me}"
  )
  return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _folder(directory: PathLike) -> pathlib.Path:
  return pathlib.Path(directory) / DIRECTORY


def _check_readable(place: pathlib.Path) -> None:
  """Raises PermissionError, which orbax would take for a checkpoint that is not there."""

  def fail(error: OSError) -> None:
    raise error

  for folder, _, names in os.walk(place, onerror=fail):
    for name in names:
      open(os.path.join(folder, name), "rb").close()


def _sync(place: pathlib.Path) -> None:
  for folder, _, names in os.walk(place):
    for name in names:
      with open(os.path.join(folder, name), "rb") as file:
        os.fsync(file.fileno())
    sync_directory(folder)


def _is_plain(leaf: Any) -> bool:
  return isinstance(leaf, bool | int | float)


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(path: Any, leaf: Any) -> Any:
  """Makes what orbax stores of a leaf: an array that is not empty, or a Python number."""
  if _is_plain(leaf):
    return leaf
  array = np.asarray(
    jax.random.key_data(leaf) if hasattr(leaf, "dtype") and _is_key(leaf) else leaf
  )
  if array.dtype.kind in "OSU":
    raise TypeError(
      f"{jax.tree_util.keystr(path)}: must be an array or a number, is a {type(leaf).__name__}"
    )
  return array if array.size else np.zeros(1, array.dtype)


def _target(leaf: Any) -> Any:
  if _is_plain(leaf):
    return leaf
  if _is_key(leaf):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  return jax.ShapeDtypeStruct(leaf.shape if math.prod(leaf.shape) else (1,), leaf.dtype)


def _loaded(like: Any, leaf: Any) -> Any:
  if _is_plain(like):
    return leaf
  if _is_key(like):
    return jax.random.wrap_key_data(leaf)
  return leaf if math.prod(like.shape) else np.zeros(like.shape, like.dtype)


def _digest(tree: Any) -> bytes:
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    array = np.asarray(leaf)
    digest.update(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.digest()


def _digest_size() -> int:
  return hashlib.sha256().digest_size


def _one_line(error: Exception) -> str:
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= 200 else f"{text[:200]}..."
