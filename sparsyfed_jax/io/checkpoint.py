"""Checkpoints of a run's state, written by orbax, each with a digest of its own content.

A checkpoint appears in one step when it is whole. One that was damaged later does not fit its
digest, and the one before it is taken.
"""

import hashlib
import os
import pathlib
import shutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PathLike = str | os.PathLike[str]
DIRECTORY = "checkpoints"
NUM_KEPT = 2  # the newest, and one to fall back on


class DamagedWarning(UserWarning):
  """A checkpoint was passed over."""


class CheckpointError(OSError):
  """A checkpoint that could not be written; the one-line message names it and the reason."""


def save(directory: PathLike, round_number: int, state: Any) -> None:
  """Writes a checkpoint and removes old ones; returns when it is on the disk.

  Of several processes one alone calls it.

  Args:
    directory: of the run; checkpoints go into `checkpoints/` in it.
    round_number: the number of rounds done.
    state: pytree of arrays, typed PRNG keys included.

  Raises:
    CheckpointError: the disk is full, or the like. Older checkpoints are left.
  """
  place = _folder(directory) / f"{round_number:08d}"
  arrays = jax.tree.map(lambda leaf: np.asarray(_without_keys(leaf)), state)
  content = {"state": arrays, "digest": np.frombuffer(_digest(arrays), np.uint8)}
  try:
    with _checkpointer() as checkpointer:
      checkpointer.save(place.absolute(), content, force=True)
      checkpointer.wait_until_finished()
  except Exception as error:  # orbax and its storage raise what they like
    raise CheckpointError(f"{place}: cannot be written: {_one_line(error)}") from error
  kept = _places(directory)[-NUM_KEPT:]
  for entry in _folder(directory).iterdir():
    if entry not in kept:  # old, or begun by a process that was killed
      shutil.rmtree(entry, ignore_errors=True)


def restore(directory: PathLike, like: Any) -> Any:
  """Reads the newest checkpoint that is whole, with a warning for each that is not.

  Args:
    directory: of the run.
    like: pytree of arrays or their shapes, as `save` was given.

  Returns:
    A state like `like`; None where there is no checkpoint.
  """
  shapes = jax.eval_shape(lambda tree: jax.tree.map(_without_keys, tree), like)
  target = {"state": shapes, "digest": jax.ShapeDtypeStruct((_digest_size(),), jnp.uint8)}
  for place in reversed(_places(directory)):
    try:
      with _checkpointer() as checkpointer:
        content = checkpointer.restore(place.absolute(), target)
      if _digest(content["state"]) != np.asarray(content["digest"]).tobytes():
        raise ValueError("the content does not fit its digest")
    except Exception as error:  # whatever damage provokes
      message = f"{place}: is damaged ({_one_line(error)}); taking an older one, or none"
      warnings.warn(message, DamagedWarning, stacklevel=2)
      continue
    return jax.tree.map(_with_keys, like, content["state"])
  return None


def _checkpointer() -> Any:
  import orbax.checkpoint as ocp  # half a second, which runs without checkpoints do not pay

  me = jax.process_index()  # nobody else is waited for
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"alone{me}"
  )
  return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _folder(directory: PathLike) -> pathlib.Path:
  return pathlib.Path(directory) / DIRECTORY


def _places(directory: PathLike) -> list[pathlib.Path]:
  """The checkpoints of a run, oldest first; not what orbax had not finished."""
  folder = _folder(directory)
  places = folder.iterdir() if folder.is_dir() else ()
  return sorted(place for place in places if place.name.isdigit())


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(leaf: jax.Array) -> jax.Array:
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _with_keys(like: Any, leaf: jax.Array) -> jax.Array:
  return jax.random.wrap_key_data(leaf) if _is_key(like) else leaf


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
