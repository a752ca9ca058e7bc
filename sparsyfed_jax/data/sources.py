"""Data sets as plain arrays: scikit-learn's digits, and any data set saved as an .npz file.

A file is checked when it is read, so that a mistake in it surfaces here, in one line that names the
array, and not as a NaN or a shape error inside a compiled round. `load` also takes the sets that
tensorflow_datasets has prepared, which `prepared` reads, and the formats of `readers`.
"""

import importlib.util
import os
import pathlib
import stat
from typing import Literal, TypeAlias

import jax
import numpy as np

from sparsyfed_jax.data import characters, folders, prepared, scaling
from sparsyfed_jax.data.arrays import TEST_ONLY, from_arrays
from sparsyfed_jax.data.dataset import DataError, Dataset, Part, dataset_of, split_80_20
from sparsyfed_jax.data.readers import READERS, Opened, find, open_with
from sparsyfed_jax.data.reading import READING, Reading

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
  reading: Reading = READING,
) -> Dataset:
  """Loads the data set that the flag --dataset names.

  Args:
    name: 'digits', 'npz:PATH', 'folder:PATH' (as `folders` opens it), 'text:PATH', 'tfds:NAME', a
      set that tensorflow_datasets has prepared, or 'FORMAT:PATH' with a format of `READERS`.
    key: a JAX PRNG key; decides the train/test split where the source has none.
    input_range: the stored values that a model sees as -1 and 1; None for the values as they are,
      'auto' for what `scaling.find_range` finds in the training set.
    task: what is learned, one of `dataset.TASKS`; by default of a text the next token, and of
      others classification.
    reading: how a text is read, and which columns of a table.

  Raises:
    DataError: the name is unknown or the data cannot be used.
  """
  return open_source(name, key, input_range, task, reading).dataset


def open_source(
  name: str,
  key: jax.Array,
  input_range: InputRange = "auto",
  task: str = "",
  reading: Reading = READING,
) -> Opened:
  """Loads a data set as `load` does, with the names of its clients where a reader tells them."""
  opened = _open(name, key, task, reading)
  dataset = opened.dataset
  if task not in ("", dataset.kind):
    raise DataError(f"--task={task}: must be {dataset.kind}, which --dataset={name} is for")
  if input_range == "auto" or dataset.kind == "next_token":
    return opened
  mean, std = scaling.mean_and_std(input_range)
  return opened._replace(dataset=dataset._replace(mean=mean, std=std))


def _open(name: str, key: jax.Array, task: str, reading: Reading) -> Opened:
  kind, _, path = name.partition(":")
  if name == "digits":
    return Opened(digits(key))
  if kind == "npz" and path:
    return Opened(npz(path, key, task))
  if kind == "text" and path:
    return Opened(characters.load(path, reading))
  if kind == "tfds" and path:
    return Opened(prepared.load(path, key))
  if kind == "folder" and path:
    return folders.load(path, key, task)
  if found := find(name):
    return open_with(*found, key, reading, task)
  others = ", ".join(f"'{reader}:PATH'" for reader in READERS)
  raise DataError(
    f"--dataset={name}: unknown data set, must be {others}, 'tfds:NAME', 'text:PATH',"
    " 'folder:PATH', 'digits' or 'npz:PATH'"
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
  train, test = split_80_20(Part(x, y), key, "digits")
  return dataset_of("digits", train, test, tuple(range(10)), limits=(0, 16))


def npz(path: str, key: jax.Array, task: str = "") -> Dataset:
  """Loads an .npz file, as `numpy.savez` writes it, and checks it.

  The file holds x_train, y_train, x_test, y_test and optionally client_train, the natural client
  of each training example, and client_test, and of those who are in that alone the ids of such as
  take part in no round, client_test_only; or x, y and optionally client, which the key splits
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
  clients = "client_train", "client_test", TEST_ONLY
  split = [name for name in (*_SPLIT, *clients) if name in found]
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
