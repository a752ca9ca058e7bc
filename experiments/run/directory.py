"""The directory of a run: how it is created and locked, and what may be removed from it."""

import contextlib
import datetime
import errno
import os
import pathlib
import re
import socket
import sys
from collections.abc import Iterator
from typing import NamedTuple

from experiments import flags
from experiments.run.settings import method_of
from sparsyfed_jax.io.writers import CSV_NAME, JSONL_NAME, SUMS_NAME, check_new_dir

try:
  import fcntl
except ImportError:  # not a POSIX system
  fcntl = None  # type: ignore[assignment]

CONFIG_NAME = "config.json"
LOCK_NAME = ".lock"
# What `_replace_text` of the writers and `save_mask` leave when they are killed.
_TEMPORARY = re.compile(r"\.(?:\.?[\w-]+\.(?:json|jsonl|csv|crc32|sfed)\.)?(\d+)\.tmp", re.ASCII)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class RunDirectory(NamedTuple):
  """The directory of a run that this process uses."""

  path: pathlib.Path
  is_new: bool  # this process made it, or found it empty
  is_made: bool  # this process made it


@contextlib.contextmanager
def new(config: flags.Config) -> Iterator[RunDirectory]:
  """Makes and locks the directory of a new run.

  Args:
    config: resolved flags; without --output_dir the directory is named by the time, the method and
      the data, and by a number too where another run has that name.

  Raises:
    ConfigError: the directory cannot be made, or another process has just taken it.
    FileExistsError: it holds something.
  """
  try:
    path, is_made = _make(pathlib.Path(config.output_dir)) if config.output_dir else _named(config)
  except FileExistsError:
    raise
  except OSError as error:
    place = config.output_dir or "runs"
    raise flags.ConfigError(f"--output_dir={place}: {error.strerror}") from error
  with locked(path):
    # Another process may have taken it, and ended, since it was found empty.
    check_new_dir(path, besides=(LOCK_NAME,))
    yield RunDirectory(path, is_new=True, is_made=is_made)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Keeps other processes out of a directory; the system lets them in when this process ends.

  What processes that were killed had half written is removed.

  Args:
    path: of a run, or of a sweep.

  Raises:
    ConfigError: another process uses it, or it cannot be written to.
  """
  try:
    file = _open_lock(path)
  except BlockingIOError:
    raise flags.ConfigError(
      f"--output_dir={path}: is in use by {_holder(path / LOCK_NAME)}; stop that process first,"
      " or name another directory"
    ) from None
  except OSError as error:
    raise flags.ConfigError(f"--output_dir={path}: {error.strerror or error}") from error
  try:
    _remove_temporaries(path)
    yield
  finally:
    os.close(file)


def remove_unused(directory: RunDirectory) -> bool:
  """Removes what a run made before its first row, if nothing else is there.

  Returns:
    Whether it did. A directory that was there before stays, empty.
  """
  path = directory.path
  own = (CONFIG_NAME, JSONL_NAME, CSV_NAME, SUMS_NAME, LOCK_NAME)
  found = os.listdir(path)
  is_recorded = (path / JSONL_NAME).exists() and (path / JSONL_NAME).stat().st_size > 0
  if not directory.is_new or is_recorded or not set(found) <= set(own):
    return False
  for name in found:
    (path / name).unlink(missing_ok=True)
  if directory.is_made:
    with contextlib.suppress(OSError):  # not where a file has just come in
      path.rmdir()
  return True


def _named(config: flags.Config) -> tuple[pathlib.Path, bool]:
  now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  kind, _, name = config.dataset.partition(":")
  is_path = name and kind not in ("text", "tfds")
  data = pathlib.Path(name).stem if is_path else re.sub("[^A-Za-z0-9]+", "-", name or kind)
  first = pathlib.Path("runs") / f"{now}-{method_of(config).name}-{data}"
  first.parent.mkdir(exist_ok=True)
  path, number = first, 1
  while True:  # runs that start in one second
    with contextlib.suppress(FileExistsError):
      path.mkdir()
      return path, True
    number += 1
    path = first.with_name(f"{first.name}-{number}")


def _make(path: pathlib.Path) -> tuple[pathlib.Path, bool]:
  check_new_dir(path, besides=(LOCK_NAME,))  # of a process killed before it wrote anything else
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    path.mkdir()
  except FileExistsError:
    return path, False
  return path, True


def _open_lock(path: pathlib.Path) -> int:
  """Locks a directory; returns the file that holds the lock until it is closed."""
  place = path / LOCK_NAME
  while True:
    file = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      _lock(file, path)
      # Whoever held the lock before may have removed the file, and then it locks out nobody.
      if place.exists() and os.path.samestat(os.fstat(file), place.stat()):
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return file
    except BaseException:
      os.close(file)
      raise
    os.close(file)


def _lock(file: int, path: pathlib.Path) -> None:
  try:
    if fcntl is None:
      raise OSError(errno.ENOSYS, "no fcntl")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    print(
      f"note: the file system of {path} has no locks; let no other process use it meanwhile",
      file=sys.stderr,
    )


def _holder(place: pathlib.Path) -> str:
  try:
    return place.read_text(encoding="utf-8").strip() or "another process"
  except (OSError, ValueError):
    return "another process"


def _remove_temporaries(path: pathlib.Path) -> None:
  for place in (*path.glob(".*.tmp"), *path.glob("masks/.*.tmp"), *path.glob("best/.*.tmp")):
    found = _TEMPORARY.fullmatch(place.name)
    if found and place.is_file() and not _is_running(int(found[1])):
      place.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except PermissionError:
    return True
  except (OSError, OverflowError):
    return False
  return pid != os.getpid()  # this process has not written anything yet
