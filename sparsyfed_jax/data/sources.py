"""Data sets as plain arrays: scikit-learn's digits, and any data set saved as an .npz file.

A file is checked when it is read, so that a mistake in it surfaces here, in one line that names the
array, and not as a NaN or a shape error inside a compiled round. `load` also takes the sets that
tensorflow_datasets has prepared, which `prepared` reads.
"""

import importlib.util
import os
import pathlib
import stat
from typing import Literal, TypeAlias

import jax
import numpy as np

from sparsyfed_jax.data import characters, prepared, scaling
from sparsyfed_jax.data.dataset import DataError, Dataset, split_80_20
from sparsyfed_jax.data.labels import Label
from sparsyfed_jax.data.mapped import blocks
from sparsyfed_jax.data.targets import numbered, targets

_KINDS = {
  stat.S_IFDIR: "a directory",
  stat.S_IFIFO: "a FIFO",
  stat.S_IFSOCK: "a socket",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
}
_SPLIT = ("x_train", "y_train", "x_test", "y_test")
_WHOLE = ("x", "y")
InputRange: TypeAlias = Literal["auto"] | scaling.Range | None
_LAYOUTS = "x_train, y_train, x_test, y_test[, client_train[, client_test]] or x, y[, client]"


def load(
  name: str,
  key: jax.Array,
  input_range: InputRange = "auto",
  task: str = "",
  reading: characters.Reading = characters.READING,
) -> Dataset:
  """Loads the data set that the flag --dataset names.

  Args:
    name: 'digits', 'npz:PATH', 'folder:PATH' (as `folders` opens it), 'text:PATH' or 'tfds:NAME',
      a set that tensorflow_datasets has prepared.
    key: a JAX PRNG key; decides the train/test split where the source has none.
    input_range: the stored values that a model sees as -1 and 1; None for the values as they are,
      'auto' for what `scaling.find_range` finds in the training set.
    task: what is learned, one of `dataset.TASKS`; by default of a text the next token, and of
      others classification.
    reading: how a text is read.

  Raises:
    DataError: the name is unknown or the data cannot be used.
  """
  dataset = _load(name, key, task, reading)
  if task not in ("", dataset.kind):
    raise DataError(f"--task={task}: must be {dataset.kind}, which --dataset={name} is for")
  if input_range == "auto" or dataset.kind == "next_token":
    return dataset
  mean, std = scaling.mean_and_std(input_range)
  return dataset._replace(mean=mean, std=std)


def _load(name: str, key: jax.Array, task: str, reading: characters.Reading) -> Dataset:
  kind, _, path = name.partition(":")
  if name == "digits":
    return digits(key)
  if kind == "npz" and path:
    return npz(path, key, task)
  if kind == "text" and path:
    return characters.load(path, reading)
  if kind == "tfds" and path:
    return prepared.load(path, key)
  if kind == "folder" and path:
    from sparsyfed_jax.data import folders  # which needs `from_arrays`

    return folders.load(path, key, task)
  raise DataError(
    f"--dataset={name}: unknown data set, must be 'tfds:NAME', 'text:PATH', 'folder:PATH',"
    " 'digits' or 'npz:PATH'"
  )


def _read_digits() -> np.ndarray:
  """Reads scikit-learn's own file, where it is: importing `sklearn.datasets` takes 0.7 s."""
  spec = importlib.util.find_spec("sklearn")
  for folder in (spec and spec.submodule_search_locations) or ():
    path = pathlib.Path(folder, "datasets", "data", "digits.csv.gz")
    if path.is_file():
      return np.loadtxt(path, delimiter=",")
  from sklearn.datasets import load_digits

  bunch = load_digits()
  return np.column_stack([bunch.data, bunch.target])


def digits(key: jax.Array) -> Dataset:
  """Loads scikit-learn's handwritten digits: 1797 images (8, 8, 1) uint8 from 0 to 16, 10 classes.

  Args:
    key: a JAX PRNG key; decides the random 80/20 train/test split.
  """
  table = _read_digits()
  x, y = table[:, :-1].reshape(-1, 8, 8, 1).astype(np.uint8), table[:, -1].astype(np.int32)
  train, test = split_80_20(len(y), key)
  return Dataset(
    name="digits",
    x_train=x[train],
    y_train=y[train],
    x_test=x[test],
    y_test=y[test],
    client_train=np.zeros(0, np.int32),
    num_clients=0,
    num_classes=10,
    mean=8.0,
    std=8.0,
    classes=tuple(range(10)),
  )


def npz(path: str, key: jax.Array, task: str = "") -> Dataset:
  """Loads an .npz file, as `numpy.savez` writes it, and checks it.

  The file holds x_train, y_train, x_test, y_test and optionally client_train, the natural client
  of each training example, and client_test; or x, y and optionally client, which the key splits
  80/20 (a client may then be left without training examples). Other arrays are ignored. Examples
  are of any rank, images NHWC; rank-3 arrays are taken for grey images (n, h, w) and get a channel
  axis. Values are booleans, integers or floats, scaled as `scaling.find_range` finds right for the
  training examples and stored as `scaling.narrow` says.

  Labels and clients are any integers, booleans or strings. Those that occur, in training or test
  examples, are numbered in sorted order. `targets` says what other tasks take for y.

  Args:
    path: the file; `~` stands for the home directory.
    key: a JAX PRNG key; not used where the file has a test set.
    task: what is learned; classification by default.

  Returns:
    The data set, named like the file without its ending.

  Raises:
    DataError: the file cannot be read or an array in it cannot be used.
  """
  name = os.path.splitext(os.path.basename(path))[0]
  return from_arrays(_read(path), key, path, name, task)


def from_arrays(
  arrays: dict[str, np.ndarray], key: jax.Array | None, path: str, name: str, task: str = ""
) -> Dataset:
  """Checks arrays of one of the two layouts of an .npz file, and makes a data set of them.

  Args:
    arrays: by name.
    key: a JAX PRNG key; not used where there is a test set.
    path: where they come from, for messages.
    name: of the data set.
    task: what is learned; classification by default.

  Raises:
    DataError: an array cannot be used.
  """
  if "x" in arrays:
    x = _examples(path, "x", arrays)
    if len(x) < 2:
      raise DataError(f"{path}: x: holds {len(x)} example, must be 2 or more to be split 80/20")
    (y,), classes, num_outputs = targets(path, ("y",), arrays, (len(x),), task)
    assert key is not None
    train, test = split_80_20(len(x), key)
    x_train, y_train, x_test, y_test = x[train], y[train], x[test], y[test]
    (clients,), owners = _clients(path, ("client",), arrays, (len(x),))
    client_train, client_test = (clients[train], clients[test]) if owners else (clients, clients)
  else:
    x_train, x_test = _examples(path, "x_train", arrays), _examples(path, "x_test", arrays)
    sizes = len(x_train), len(x_test)
    names = ("y_train", "y_test")
    (y_train, y_test), classes, num_outputs = targets(path, names, arrays, sizes, task)
    if (x_train.shape[1:], x_train.dtype) != (x_test.shape[1:], x_test.dtype):
      raise DataError(
        f"{path}: x_test: examples are {x_test.dtype} of shape {x_test.shape[1:]}, must be like"
        f" x_train's, {x_train.dtype} of shape {x_train.shape[1:]}"
      )
    both = ("client_train", "client_test")
    (client_train, client_test), owners = _clients(path, both, arrays, sizes)
  mean, std = scaling.mean_and_std(scaling.find_range(x_train))
  x_train, x_test = scaling.narrow(x_train, x_test)
  return Dataset(
    name=name,
    x_train=x_train,
    y_train=y_train,
    x_test=x_test,
    y_test=y_test,
    client_train=client_train,
    num_clients=len(owners),
    num_classes=num_outputs,
    mean=mean,
    std=std,
    client_test=client_test,
    classes=classes,
  )


def _read(path: str) -> dict[str, np.ndarray]:
  """Reads the arrays of one of the two layouts."""
  try:
    mode = os.stat(os.path.expanduser(path)).st_mode
    if not stat.S_ISREG(mode):  # opening a FIFO would wait for a writer
      raise DataError(
        f"{path}: is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, must be an .npz file"
      )
    file = open(os.path.expanduser(path), "rb")
  except FileNotFoundError:
    raise DataError(f"{path}: no such file, must be an .npz file") from None
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
      right = "numbers; cast it" if name[0] == "x" else "integers or strings; cast it with astype"
      raise DataError(
        f"{path}: {name}: is an array of Python objects, must be {right} before saving"
      ) from None
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise DataError(f"{path}: {name}: cannot be read, is damaged or cut short ({reason})") from None
  if not isinstance(array, np.ndarray):
    raise DataError(f"{path}: {name}: is not a NumPy array, must be written by numpy.savez")
  return array


def _examples(path: str, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
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
    finite = [np.isfinite(block).reshape(len(block), -1).all(1) for block in blocks(x)]
    bad = np.flatnonzero(~np.concatenate(finite))
    if len(bad):
      raise DataError(
        f"{where}: holds NaN or infinity in {len(bad)} of {len(x)} examples, the first at index"
        f" {bad[0]}; must be finite in float32"
      )
  return x[..., None] if x.ndim == 3 else x


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
