"""Data sets made of arrays, which are checked."""

from collections.abc import Mapping
from typing import Literal

import jax
import numpy as np

from sparsyfed_jax.data import scaling
from sparsyfed_jax.data.dataset import (
  DataError,
  Dataset,
  Part,
  check_splits,
  dataset_of,
  split_80_20,
)
from sparsyfed_jax.data.labels import Label, number, problem
from sparsyfed_jax.data.mapped import blocks
from sparsyfed_jax.data.rows import Examples, Rows
from sparsyfed_jax.data.scaling import Range
from sparsyfed_jax.data.targets import numbered, targets

TEST_ONLY = "client_test_only"  # ids of clients that take part in no round


def from_arrays(
  arrays: Mapping[str, Examples],
  key: jax.Array | None,
  path: str,
  name: str,
  task: str = "",
  limits: Range | Literal["auto"] | None = "auto",
) -> Dataset:
  """Checks arrays of one of the two layouts of an .npz file, and makes a data set of them.

  Args:
    arrays: by name; examples may lie in files.
    key: a JAX PRNG key; not used where there is a test set.
    path: where they come from, for messages.
    name: of the data set.
    task: what is learned; classification by default.
    limits: the values that a model sees as -1 and 1, by default as `scaling.find_range` finds them;
      None for the values as they are.

  Raises:
    DataError: an array cannot be used.
  """
  others = {known: np.asarray(array) for known, array in arrays.items() if known[0] != "x"}
  if "x" in arrays:
    x = _examples(path, "x", arrays)
    check_splits(len(x), f"{path}: x")
    (y,), classes, num_outputs = targets(path, ("y",), others, (len(x),), task)
    (clients,), owners = _clients(path, ("client",), others, (len(x),))
    assert key is not None
    train, test = split_80_20(Part(x, y, clients if owners else None), key, f"{path}: x")
  else:
    x_train, x_test = _examples(path, "x_train", arrays), _examples(path, "x_test", arrays)
    sizes = len(x_train), len(x_test)
    names = ("y_train", "y_test")
    (y_train, y_test), classes, num_outputs = targets(path, names, others, sizes, task)
    if (x_train.shape[1:], x_train.dtype) != (x_test.shape[1:], x_test.dtype):
      raise DataError(
        f"{path}: x_test: examples are {x_test.dtype} of shape {x_test.shape[1:]}, must be like"
        f" x_train's, {x_train.dtype} of shape {x_train.shape[1:]}"
      )
    both = ("client_train", "client_test")
    (client_train, client_test), owners = _clients(path, both, others, sizes)
    if TEST_ONLY in others:
      (client_train, client_test), owners = _testers_last(
        f"{path}: {TEST_ONLY}", (client_train, client_test), owners, others[TEST_ONLY]
      )
    train, test = Part(x_train, y_train, client_train), Part(x_test, y_test, client_test)
  limits = scaling.find_range(train.x) if limits == "auto" else limits
  x_train, x_test = scaling.narrow(train.x, test.x)
  parts = train._replace(x=x_train), test._replace(x=x_test)
  return dataset_of(name, *parts, classes, len(owners), limits, num_outputs)


def _testers_last(
  where: str, numbers: tuple[np.ndarray, np.ndarray], owners: tuple[Label, ...], only: np.ndarray
) -> tuple[list[np.ndarray], tuple[Label, ...]]:
  """Gives clients that only test the numbers behind those of all others, which are returned."""
  reason = problem(only, TEST_ONLY, "client ids")
  if reason:
    raise DataError(f"{where}: {reason}")
  names = set(number(only)[1])
  told = set(owners[i] for i in np.setdiff1d(numbers[1], numbers[0]))
  if names - told:
    name = sorted(map(str, names - told))[0]
    raise DataError(f"{where}: holds {name}, must be in client_test and not in client_train")
  rest = tuple(owner for owner in owners if owner not in names)
  places = {owner: i for i, owner in enumerate((*rest, *sorted(names)))}
  moved = np.array([places[owner] for owner in owners], np.int32)
  return [moved[own] for own in numbers], rest


def _examples(path: str, name: str, arrays: Mapping[str, Examples]) -> Examples:
  """Returns the checked examples (n, *shape) of an array: bool, integers or float32."""
  where = f"{path}: {name}"
  x = arrays[name]
  if x.ndim < 2:
    raise DataError(f"{where}: has shape {x.shape}, must be (n, features) or (n, h, w, channels)")
  if not x.size:
    raise DataError(f"{where}: has shape {x.shape}, is empty; must hold at least one example")
  if x.dtype.kind not in "biuf":
    raise DataError(f"{where}: is {x.dtype}, must be booleans, integers or floats")
  if scaling.looks_channels_first(x.shape[1:]):
    raise DataError(
      f"{where}: has shape {x.shape}, looks like images with the channels first (NCHW), must be"
      f" NHWC; save {name}.transpose(0, 2, 3, 1)"
    )
  x = x.astype(x.dtype.newbyteorder("="), copy=False)
  if x.dtype.kind == "f":
    with np.errstate(over="ignore"):  # a float64 too large becomes infinite, and is then reported
      x = x.astype(np.float32, copy=False)
    bad = _not_finite(x)
    if len(bad):
      raise DataError(
        f"{where}: holds NaN or infinity in {len(bad)} of {len(x)} examples, the first at index"
        f" {bad[0]}; must be finite in float32"
      )
  return x.reshape(*x.shape, 1) if x.ndim == 3 else x


def _not_finite(x: Examples) -> np.ndarray:
  """Finds the examples that are not finite; `Rows` are by what reads them."""
  if isinstance(x, Rows):
    return np.zeros(0, int)
  finite = [np.isfinite(block).reshape(len(block), -1).all(1) for block in blocks(x)]
  return np.flatnonzero(~np.concatenate(finite))


def _clients(
  path: str, names: tuple[str, ...], arrays: dict[str, np.ndarray], sizes: tuple[int, ...]
) -> tuple[list[np.ndarray], tuple[Label, ...]]:
  """Returns the natural clients of the examples, int32, and their ids; (0,) where unknown."""
  nobody = np.zeros(0, np.int32)
  if names[0] not in arrays:
    if any(name in arrays for name in names):
      raise DataError(f"{path}: {names[1]}: must come with {names[0]}")
    return [nobody] * len(names), ()
  known = tuple(name for name in names if name in arrays)
  numbers, ids = numbered(path, known, arrays, "client ids", sizes)
  return [*numbers, *[nobody] * (len(names) - len(known))], ids
