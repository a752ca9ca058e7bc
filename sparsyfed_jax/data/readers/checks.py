"""Checks of what files hold, one client at a time: errors of one line that name file and client."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sparsyfed_jax.data.dataset import DataError


def folder(path: pathlib.Path, holding: str) -> pathlib.Path:
  """Checks that a path is a folder; raises DataError."""
  if not path.exists():
    raise DataError(f"{path}: no such folder, must be one of {holding}")
  if not path.is_dir():
    raise DataError(f"{path}: is a file, must be a folder of {holding}")
  return path


@contextlib.contextmanager
def importing(where: object, extra: str) -> Iterator[None]:
  """Turns a package that cannot be imported into a DataError that tells how to install it."""
  try:
    yield
  except ImportError as error:
    raise DataError(
      f"{where}: needs {error.name or 'a package'}, which cannot be imported ({error});"
      f" pip install '.[{extra}]'"
    ) from None


@contextlib.contextmanager
def parsing(where: object, right: str) -> Iterator[None]:
  """Turns whatever a parser raises into a DataError.

  Args:
    where: what is read.
    right: what it must be.
  """
  try:
    yield
  except (DataError, KeyboardInterrupt):
    raise
  except FileNotFoundError:
    raise DataError(f"{where}: no such file, must be {right}") from None
  except Exception as error:  # each format has its own
    raise DataError(f"{where}: cannot be read ({one_line(error)}), must be {right}") from None


def one_line(error: BaseException) -> str:
  """Writes an error in one line of at most 200 characters."""
  return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
  """Reads an object of JSON; raises DataError.

  Args:
    path: the file.
    what: what it must be, for messages.
  """
  with parsing(path, f"{what}, a whole object of JSON"):
    content = json.loads(path.read_text(encoding="utf-8"))
  if not isinstance(content, dict):
    raise DataError(f"{path}: holds a {type(content).__name__}, must be {what}, an object of JSON")
  return content


def numbers(
  where: str, values: Any, like: tuple[int, ...] | None = None, first: int = 0
) -> np.ndarray:
  """Makes an array of the examples of a client.

  Args:
    where: file, client and key.
    values: nested lists or an array of numbers, an entry an example.
    like: the shape that examples must have; None for any.
    first: the number of the first, for messages.

  Returns:
    (n, *shape) booleans or integers as they are, or finite float32.

  Raises:
    DataError: they are no such numbers.
  """
  array = _array_of(values)
  if array.dtype.kind not in "biuf" or array.ndim < 1:
    raise DataError(f"{where}: must be a list of examples of one size, each of numbers")
  if like is not None and array.shape[1:] != like:
    raise DataError(
      f"{where}: holds examples of shape {array.shape[1:]} and those before have {like}, must be"
      " of one size"
    )
  if array.dtype.kind != "f":
    return array
  with np.errstate(over="ignore"):
    array = array.astype(np.float32, copy=False)
  bad = np.flatnonzero(~np.isfinite(array).all(tuple(range(1, array.ndim))))
  if len(bad):
    raise DataError(
      f"{where}: holds NaN or infinity in example {first + bad[0]}, must be finite in float32"
    )
  return array


def labels(where: str, values: Any, count: int, noun: str = "x") -> np.ndarray:
  """Makes an array of the labels of a client.

  Args:
    where: file, client and key.
    values: integers, floats that are to be predicted, or strings.
    count: how many there must be.
    noun: what they must be as many as.

  Raises:
    DataError: they are no such labels.
  """
  array = _array_of(values)
  if array.dtype.kind not in "biufUS" or array.ndim < 1:
    raise DataError(f"{where}: must be a list of labels, integers or strings")
  if len(array) != count:
    raise DataError(f"{where}: holds {len(array)} labels, must be {count} like {noun}")
  return array


def in_range(where: str, y: np.ndarray, num_classes: int) -> None:
  """Checks integer labels against the number of classes; raises DataError."""
  bad = np.flatnonzero((y < 0) | (y >= num_classes))
  if len(bad):
    raise DataError(
      f"{where}: holds the label {y[bad[0]]} in example {bad[0]}, must be 0 to {num_classes - 1}"
    )


def joined(where: object, arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Concatenates the arrays of clients, all of numbers or all of strings; raises DataError."""
  if not arrays:
    raise DataError(f"{where}: holds no client with examples, must hold at least one")
  if len({array.dtype.kind in "US" for array in arrays}) > 1:
    raise DataError(f"{where}: mixes labels that are numbers with strings, must be of one kind")
  return np.concatenate(arrays)


def repeated(names: Sequence[str], sizes: Sequence[int] | np.ndarray) -> np.ndarray:
  """Names the client of each example."""
  return np.repeat(np.array(names, dtype=np.str_), sizes)


def _array_of(values: Any) -> np.ndarray:
  """Makes an array; an empty one of objects, which callers refuse, where NumPy cannot."""
  try:
    return np.asarray(values)
  except (ValueError, TypeError, OverflowError):
    return np.empty(0, object)
