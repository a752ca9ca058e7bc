"""Data sets as plain arrays: scikit-learn's digits, and any data set saved as an .npz file.

A file is checked when it is read, so that a mistake in it surfaces here, in one line that names the
array, and not as a NaN or a shape error inside a compiled round. `load` also takes the sets that
tensorflow_datasets has prepared, which `prepared` reads.
"""

import os

import jax
import numpy as np

from sparsyfed_jax.data import prepared
from sparsyfed_jax.data.dataset import PIXELS, DataError, Dataset, split_80_20

_SPLIT = ("x_train", "y_train", "x_test", "y_test")
_WHOLE = ("x", "y")
_LAYOUTS = "x_train, y_train, x_test, y_test[, client_train[, client_test]] or x, y[, client]"


def load(name: str, key: jax.Array) -> Dataset:
  """Loads the data set that the flag --dataset names.

  Args:
    name: 'digits', 'npz:PATH' or 'tfds:NAME', a set that tensorflow_datasets has prepared.
    key: a JAX PRNG key; decides the train/test split where the source has none.

  Raises:
    DataError: the name is unknown or the data cannot be used.
  """
  kind, _, path = name.partition(":")
  if name == "digits":
    return digits(key)
  if kind == "npz" and path:
    return npz(path, key)
  if kind == "tfds" and path:
    return prepared.load(path, key)
  raise DataError(
    f"--dataset={name}: unknown data set, must be 'tfds:NAME', 'digits' or 'npz:PATH'"
  )


def digits(key: jax.Array) -> Dataset:
  """Loads scikit-learn's handwritten digits: 1797 images (8, 8, 1) uint8 from 0 to 16, 10 classes.

  Args:
    key: a JAX PRNG key; decides the random 80/20 train/test split.
  """
  from sklearn.datasets import load_digits  # slow to import, and only needed here

  bunch = load_digits()
  x, y = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int32)
  train, test = split_80_20(len(y), key)
  no_clients = np.zeros(0, np.int32)
  return Dataset("digits", x[train], y[train], x[test], y[test], no_clients, 0, 10, 8.0, 8.0)


def npz(path: str, key: jax.Array) -> Dataset:
  """Loads an .npz file, as `numpy.savez` writes it, and checks it.

  The file holds x_train, y_train, x_test, y_test and optionally client_train, the natural client
  of each training example, and client_test; or x, y and optionally client, which the key splits
  80/20 (a client may then be left without training examples). Other arrays are ignored. Examples
  are of any rank, images NHWC; rank-3 arrays are taken for grey images (n, h, w) and get a channel
  axis. Pixels are uint8, int16 or float (kept as float32), labels and clients integers from 0.

  Args:
    path: the file; `~` stands for the home directory.
    key: a JAX PRNG key; not used where the file has a test set.

  Returns:
    The data set, named like the file without its ending. uint8 and int16 are scaled to [-1, 1] by
    `mean` and `std`, floats are left as they are.

  Raises:
    DataError: the file cannot be read or an array in it cannot be used.
  """
  arrays = _read(path)
  if "x" in arrays:
    x, y = _examples(path, arrays, "")
    if len(y) < 2:
      raise DataError(f"{path}: x: holds {len(y)} example, must be 2 or more to be split 80/20")
    clients, num_clients = _clients(path, arrays, "client", len(y))
    train, test = split_80_20(len(y), key)
    x_train, y_train, x_test, y_test = x[train], y[train], x[test], y[test]
    of_test = clients[test] if num_clients else clients
    clients = clients[train] if num_clients else clients
  else:
    x_train, y_train = _examples(path, arrays, "_train")
    x_test, y_test = _examples(path, arrays, "_test")
    clients, num_clients = _clients(path, arrays, "client_train", len(y_train))
    of_test = _test_clients(path, arrays, len(y_test), num_clients)
    if (x_train.shape[1:], x_train.dtype) != (x_test.shape[1:], x_test.dtype):
      raise DataError(
        f"{path}: x_test: examples are {x_test.dtype} of shape {x_test.shape[1:]}, must be like"
        f" x_train's, {x_train.dtype} of shape {x_train.shape[1:]}"
      )
  num_classes = int(max(y_train.max(), y_test.max())) + 1
  if num_classes < 2:
    raise DataError(f"{path}: labels: are all 0, must be of 2 or more classes")
  name = os.path.splitext(os.path.basename(path))[0]
  _, mean, std = PIXELS[x_train.dtype.str[1:]]
  return Dataset(
    name, x_train, y_train, x_test, y_test, clients, num_clients, num_classes, mean, std, of_test
  )


def _read(path: str) -> dict[str, np.ndarray]:
  """Reads the arrays of one of the two layouts."""
  try:
    file = open(os.path.expanduser(path), "rb")
  except FileNotFoundError:
    raise DataError(f"{path}: no such file, must be an .npz file") from None
  except IsADirectoryError:
    raise DataError(f"{path}: is a directory, must be an .npz file") from None
  except OSError as error:
    raise DataError(f"{path}: cannot be opened: {error.strerror}") from None
  with file:
    try:
      archive = np.load(file, allow_pickle=False)
    except Exception:  # whatever the bytes happen to provoke in the parsers of three formats
      archive = None
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise DataError(
        f"{path}: is not an .npz file or was cut short, must be a whole file from numpy.savez"
      )
    with archive:
      names = _layout(path, archive.files)
      return {name: _member(path, archive, name) for name in names}


def _layout(path: str, found: list[str]) -> list[str]:
  """Returns the names of the arrays to read."""
  split = [name for name in (*_SPLIT, "client_train", "client_test") if name in found]
  whole = [name for name in (*_WHOLE, "client") if name in found]
  if split and whole:
    raise DataError(
      f"{path}: mixes two layouts, {', '.join(split)} with {', '.join(whole)}; must hold either"
      f" {_LAYOUTS}"
    )
  missing = [name for name in (_SPLIT if split else _WHOLE) if name not in found]
  if missing and all(name[0] == "y" for name in missing):
    raise DataError(f"{path}: has no labels, {' and '.join(missing)} missing; must hold {_LAYOUTS}")
  if missing:
    listed = ", ".join(found) or "no array"
    raise DataError(f"{path}: holds {listed}; must hold {_LAYOUTS}")
  return split or whole


def _member(path: str, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
  try:
    array = archive[name]
  except Exception as error:  # zip, decompressor and header parser each have their own
    if "allow_pickle" in str(error):
      raise DataError(
        f"{path}: {name}: is an array of Python objects, must be numbers; cast it before saving"
      ) from None
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise DataError(f"{path}: {name}: cannot be read, is damaged or cut short ({reason})") from None
  if not isinstance(array, np.ndarray):
    raise DataError(f"{path}: {name}: is not a NumPy array, must be written by numpy.savez")
  return array


def _examples(
  path: str, arrays: dict[str, np.ndarray], suffix: str
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the checked pixels (n, *shape) and labels (n,) int32 of x and y with this suffix."""
  where = f"{path}: x{suffix}"
  x = arrays[f"x{suffix}"]
  if x.ndim < 2:
    raise DataError(f"{where}: has shape {x.shape}, must be (n, features) or (n, h, w, channels)")
  if not x.size:
    raise DataError(f"{where}: has shape {x.shape}, is empty; must hold at least one example")
  if x.dtype.str[1:] not in PIXELS:
    raise DataError(f"{where}: is {x.dtype}, must be uint8, int16, float16, float32 or float64")
  with np.errstate(over="ignore"):  # a float64 too large becomes infinite, and is then reported
    x = x.astype(PIXELS[x.dtype.str[1:]][0], copy=False)
  if x.dtype.kind == "f" and not np.isfinite(x).all():
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
    raise DataError(
      f"{where}: holds NaN or infinity in {len(bad)} of {len(x)} examples, the first at index"
      f" {bad[0]}; must be finite in float32"
    )
  y = _ids(path, f"y{suffix}", arrays, "labels")
  if len(y) != len(x):
    raise DataError(f"{path}: y{suffix}: holds {len(y)} labels, must be {len(x)} like x{suffix}")
  return (x[..., None] if x.ndim == 3 else x), y


def _clients(
  path: str, arrays: dict[str, np.ndarray], name: str, num_examples: int
) -> tuple[np.ndarray, int]:
  """Returns the checked natural clients (n,) int32 and their number; (0,) and 0 without any."""
  if name not in arrays:
    return np.zeros(0, np.int32), 0
  clients = _ids(path, name, arrays, "client ids")
  if len(clients) != num_examples:
    raise DataError(f"{path}: {name}: holds {len(clients)} client ids, must be {num_examples}")
  if clients.max() >= num_examples:  # would be as many clients, nearly all of them empty
    raise DataError(
      f"{path}: {name}: holds client id {clients.max()} for {num_examples} examples, must be below"
      f" that; {_renumber(name)}"
    )
  return clients, int(clients.max()) + 1


def _test_clients(
  path: str, arrays: dict[str, np.ndarray], num_examples: int, num_clients: int
) -> np.ndarray:
  """Returns the checked natural clients (m,) int32 of a test set; (0,) without any."""
  if "client_test" not in arrays:
    return np.zeros(0, np.int32)
  if not num_clients:
    raise DataError(f"{path}: client_test: must come with client_train")
  clients = _ids(path, "client_test", arrays, "client ids")
  if len(clients) != num_examples:
    raise DataError(f"{path}: client_test: holds {len(clients)} client ids, must be {num_examples}")
  if clients.max() >= num_clients:
    raise DataError(
      f"{path}: client_test: holds client id {clients.max()}, must be below {num_clients}, the"
      " number of clients in client_train"
    )
  return clients


def _ids(path: str, name: str, arrays: dict[str, np.ndarray], noun: str) -> np.ndarray:
  """Returns the checked (n,) integers from 0 of an array as int32."""
  where, ids = f"{path}: {name}", arrays[name]
  if ids.ndim != 1:
    raise DataError(
      f"{where}: has shape {ids.shape}, must be a vector of {noun}; for one-hot rows save"
      f" {name}.argmax(1), for a column {name}.ravel()"
    )
  if ids.dtype.kind not in "iu":
    raise DataError(
      f"{where}: is {ids.dtype}, must be integer {noun}; cast whole numbers to int32, or"
      f" {_renumber(name)}"
    )
  bad = np.flatnonzero((ids < 0) | (ids >= np.iinfo(np.int32).max))
  if len(bad):
    raise DataError(
      f"{where}: holds {ids[bad[0]]} at index {bad[0]}, must be {noun} counted from 0;"
      f" {_renumber(name)}"
    )
  return ids.astype(np.int32)


def _renumber(name: str) -> str:
  return f"number them with np.unique({name}, return_inverse=True)[1]"
