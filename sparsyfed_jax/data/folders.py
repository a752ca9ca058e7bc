"""Data sets as folders of .npy files, which may be larger than memory.

`examples.npy` and `test_examples.npy` are mapped, not read: a run with --data_placement=streamed
reads of them what a round needs. A folder holds

- `examples.npy`, (n, *shape), and `labels.npy`, (n, ...), the training set;
- `test_examples.npy` and `test_labels.npy`; without them the set is read and split 80/20;
- `clients.npy` and `test_clients.npy`, (n,) and (m,) ids, where examples have clients;
- `dataset.json`: `format_version`, 1; `name`; and `classes`, which the labels count from 0, or an
  empty list where the labels that occur are the classes, or nothing is classified; and with
  `num_clients` the ids are numbers, of which those from there on only test, and `client_names`
  lists what they are called.
"""

import json
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np

from sparsyfed_jax.data.arrays import from_arrays
from sparsyfed_jax.data.dataset import DataError, Dataset, Part, dataset_of
from sparsyfed_jax.data.readers.finish import Opened
from sparsyfed_jax.data.targets import numbered

_VERSION = 1
_FILES = {
  "x_train": "examples",
  "y_train": "labels",
  "client_train": "clients",
  "x_test": "test_examples",
  "y_test": "test_labels",
  "client_test": "test_clients",
}
_NEEDED = ("x_train", "y_train")
_WHOLE = {"x_train": "x", "y_train": "y", "client_train": "client"}  # names without a test set


def load(path: str, key: jax.Array, task: str = "") -> Opened:
  """Opens a folder, with the names of its clients if it has them.

  Examples of bytes, int16 or float32 stay in their files.

  Args:
    path: the folder; `~` stands for the home directory.
    key: a JAX PRNG key; not used where the folder has a test set.
    task: what is learned; by default what the labels are fit for: numbers are regressed, rows of
      booleans are labels, rows of whole numbers the tokens that come next, others are classes.

  Raises:
    DataError: the folder cannot be used; the message names the file and what would be right.

  Example:
    >>> import pathlib, tempfile
    >>> import jax
    >>> import numpy as np
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("examples", "test_examples"):
    ...   np.save(folder / f"{name}.npy", np.eye(4, dtype=np.uint8))
    >>> for name in ("labels", "test_labels"):
    ...   np.save(folder / f"{name}.npy", np.array([0, 1, 0, 1]))
    >>> text = '{"format_version": 1, "name": "eye", "classes": ["cat", "dog", "hen"]}'
    >>> _ = (folder / "dataset.json").write_text(text)
    >>> load(str(folder), jax.random.key(0)).dataset.num_classes
    3
  """
  folder = pathlib.Path(os.path.expanduser(path))
  title, classes, num_clients, names = _described(folder)
  arrays = {name: _opened(folder, name) for name in _FILES if _is_there(folder, name)}
  _check_names(folder, arrays)
  dataset = _made(folder, key, task, title, classes, arrays)
  if num_clients is None or "x_test" not in arrays or "client_train" not in arrays:
    return Opened(dataset)
  owners = [arrays.get(name, np.zeros(0, np.int32)) for name in ("client_train", "client_test")]
  low, high = min(own.min(initial=0) for own in owners), owners[0].max()
  if owners[0].dtype.kind not in "iu" or low < 0 or high >= num_clients:
    raise DataError(
      f"{folder}/clients.npy: holds {low} to {high}, must be 0 to {num_clients - 1}, as"
      f" dataset.json has {num_clients} clients"
    )
  client_train, client_test = (own.astype(np.int32) for own in owners)
  dataset = dataset._replace(
    client_train=client_train, client_test=client_test, num_clients=num_clients
  )
  least = max(num_clients, 1 + high, 1 + int(client_test.max(initial=-1)))
  if names and len(names) < least:
    raise DataError(
      f"{folder}/dataset.json: client_names: are {len(names)}, must be {least}, one a client"
    )
  return Opened(dataset, names)


def _made(
  folder: pathlib.Path,
  key: jax.Array,
  task: str,
  title: str,
  classes: tuple[Any, ...],
  arrays: dict[str, np.ndarray],
) -> Dataset:
  kind = task or _kind(arrays["y_train"])
  if kind == "next_token":
    return _tokens(folder, title, arrays, classes)
  if "x_test" not in arrays:
    arrays = {_WHOLE[known]: np.asarray(array) for known, array in arrays.items()}
  try:
    dataset = from_arrays(arrays, key, str(folder), title, kind)
  except DataError as error:
    raise DataError(_with_file_names(str(error))) from None
  if not classes or dataset.kind == "regression":
    return dataset
  if dataset.kind == "multi_label":
    if len(classes) != dataset.num_classes:
      raise DataError(
        f"{folder}/dataset.json: classes: are {len(classes)}, must be"
        f" {dataset.num_classes}, as labels.npy has columns"
      )
    return dataset._replace(classes=classes)
  y_train, y_test = (
    _numbers(folder, file, dataset.classes, labels, len(classes))
    for file, labels in (("labels", dataset.y_train), ("test_labels", dataset.y_test))
  )
  return dataset._replace(y_train=y_train, y_test=y_test, classes=classes, num_classes=len(classes))


def _described(
  folder: pathlib.Path,
) -> tuple[str, tuple[Any, ...], int | None, tuple[Any, ...]]:
  """Reads the name, the classes, and how many clients train and what they are called, if told."""
  if not folder.is_dir():
    raise DataError(f"{folder}: no such folder, must hold dataset.json, examples.npy, labels.npy")
  where = folder / "dataset.json"
  try:
    known = json.loads(where.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise DataError(f"{where}: no such file; experiments.convert writes such folders") from None
  except (OSError, ValueError) as error:
    raise DataError(f"{where}: cannot be read ({' '.join(str(error).split())})") from None
  if not isinstance(known, dict) or known.get("format_version") != _VERSION:
    found = known.get("format_version") if isinstance(known, dict) else None
    raise DataError(f"{where}: format_version: is {found!r}, must be {_VERSION}")
  name, classes = known.get("name"), known.get("classes") or []
  if not isinstance(name, str) or not name:
    raise DataError(f"{where}: name: is {name!r}, must be a text")
  is_list = isinstance(classes, list) and all(isinstance(one, str | int) for one in classes)
  if not is_list or len(set(classes)) != len(classes) or len(classes) == 1:
    raise DataError(f"{where}: classes: must be a list of different texts or of whole numbers")
  num_clients = known.get("num_clients")
  if num_clients is not None and (type(num_clients) is not int or num_clients < 1):
    raise DataError(f"{where}: num_clients: is {num_clients!r}, must be a number of at least 1")
  names = known.get("client_names") or []
  if not isinstance(names, list) or not all(isinstance(one, str | int) for one in names):
    raise DataError(f"{where}: client_names: must be a list of texts or of whole numbers")
  return name, tuple(classes), num_clients, tuple(names)


def _is_there(folder: pathlib.Path, name: str) -> bool:
  return name in _NEEDED or (folder / f"{_FILES[name]}.npy").exists()


def _opened(folder: pathlib.Path, name: str) -> np.ndarray:
  """Maps the examples and reads all else."""
  where = folder / f"{_FILES[name]}.npy"
  try:
    array = np.load(where, mmap_mode="r" if name[0] == "x" else None, allow_pickle=False)
  except FileNotFoundError:
    raise DataError(f"{where}: no such file; a folder needs examples.npy and labels.npy") from None
  except Exception as error:  # whatever the bytes happen to provoke
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise DataError(f"{where}: is no .npy file or was cut short ({reason})") from None
  if not isinstance(array, np.ndarray):
    raise DataError(f"{where}: is no .npy file, must be as numpy.save writes it")
  return array


def _check_names(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  if ("x_test" in arrays) != ("y_test" in arrays):
    missing = "test_labels" if "x_test" in arrays else "test_examples"
    raise DataError(f"{folder}: has no {missing}.npy; must hold both files of the test set or none")
  if "client_test" in arrays and "x_test" not in arrays:
    raise DataError(f"{folder}/test_clients.npy: must come with test_examples.npy")


def _kind(labels: np.ndarray) -> str:
  if labels.dtype.kind == "f":
    return "regression"
  if labels.ndim == 2:
    return "multi_label" if labels.dtype == np.bool_ else "next_token"
  return "classification"


def _tokens(
  folder: pathlib.Path, title: str, arrays: dict[str, np.ndarray], classes: tuple[Any, ...]
) -> Dataset:
  """Takes sequences of numbers of `classes`, -1 behind the end of what is to be predicted."""
  if not classes:
    raise DataError(f"{folder}/dataset.json: classes: must name the tokens that labels.npy counts")
  if "x_test" not in arrays:
    raise DataError(f"{folder}: has no test_examples.npy, which sequences of tokens need")
  read = {name: np.asarray(array) for name, array in arrays.items()}
  for name in ("x_train", "y_train", "x_test", "y_test"):
    array, least = read[name], -1 if name[0] == "y" else 0
    shape = read[f"x{name[1:]}"].shape
    is_right = array.dtype.kind in "iu" and array.ndim == 2 and array.size and array.shape == shape
    if not is_right or array.shape[1:] != read["x_train"].shape[1:]:
      raise DataError(
        f"{folder}/{_FILES[name]}.npy: is {array.dtype} of shape {array.shape}, must be (n, length)"
        " whole numbers, as many of examples as of labels"
      )
    low, high = int(array.min()), int(array.max())
    if low < least or high >= len(classes):
      raise DataError(
        f"{folder}/{_FILES[name]}.npy: holds {low} to {high}, must be {least} to"
        f" {len(classes) - 1}, as dataset.json names {len(classes)} classes"
      )
    read[name] = array.astype(np.int32)
  owners: list[np.ndarray] = []
  ids: tuple[Any, ...] = ()
  known = tuple(name for name in ("client_train", "client_test") if name in read)
  if known:
    sizes = len(read["x_train"]), len(read["x_test"])
    try:
      owners, ids = numbered(str(folder), known, read, "client ids", sizes)
    except DataError as error:
      raise DataError(_with_file_names(str(error))) from None
  client_train, client_test = (*owners, None, None)[:2]
  train = Part(read["x_train"], read["y_train"], client_train)
  test = Part(read["x_test"], read["y_test"], client_test)
  return dataset_of(title, train, test, classes, len(ids))


def _numbers(
  folder: pathlib.Path, file: str, found: tuple[Any, ...], numbers: np.ndarray, num_classes: int
) -> np.ndarray:
  """Gives labels back the numbers that they have in the file, where they are numbers of classes."""
  if not isinstance(found[0], int) or not 0 <= min(found) <= max(found) < num_classes:
    raise DataError(
      f"{folder}/{file}.npy: holds {found[0]} to {found[-1]}, must be 0 to {num_classes - 1}, as"
      f" dataset.json names {num_classes} classes"
    )
  return np.array(found, np.int32)[numbers]


def _with_file_names(message: str) -> str:
  files = _FILES | {known: _FILES[name] for name, known in _WHOLE.items()}
  pattern = re.compile(rf"(?<=: )({'|'.join(files)})(?=:)")
  return pattern.sub(lambda match: f"{files[match[1]]}.npy", message)
