"""The folders that PFLlib's generators write: `train/<client>.npz` and `test/<client>.npz`.

Each file has one entry, a pickled dict of x and y. A pickle may run any code; here it is read by an
unpickler that knows NumPy's arrays and dtypes alone, and everything else in it is an error.
"""

import functools
import io
import pathlib
import pickle
import re
import zipfile
from typing import Any, NamedTuple

import numpy as np

from sparsyfed_jax.data.dataset import DataError, Part
from sparsyfed_jax.data.readers import checks
from sparsyfed_jax.data.readers.kept import Kept
from sparsyfed_jax.data.readers.record import Found, Reader
from sparsyfed_jax.data.reading import Reading

_RIGHT = "a file of PFLlib"
_COUNTS = "Size of samples for labels in clients"


class _Dtype:
  """A pickled dtype."""

  def __init__(self, name: str, *_: object) -> None:
    self.name, self.order = name, "="

  def __setstate__(self, state: Any) -> None:
    self.order = state[1]

  def found(self) -> np.dtype[Any]:
    if not re.fullmatch(r"O8|b1|[iuf][1248]|[SU]\d{1,9}", self.name) or self.order not in "<>|=":
      raise pickle.UnpicklingError(f"holds an array of {self.name!r}, must be of numbers")
    return np.dtype(self.order + self.name)


class _Array:
  """A pickled array, whose state is never given to NumPy: it would trust the sizes in it."""

  def __init__(self, *_: object) -> None:
    self.value: Any = None

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, is_fortran, content = state
    if dtype.found() == np.dtype(object):
      self.value = content
    else:
      flat = np.frombuffer(content, dtype.found())
      self.value = flat.reshape(shape, order="F" if is_fortran else "C")


class _ArraysAlone(pickle.Unpickler):
  """Unpickles arrays, and what needs no import: dicts, lists, numbers and strings."""

  def find_class(self, module: str, name: str) -> Any:
    """Finds what stands for arrays; raises UnpicklingError of all else. Nothing is imported."""
    known = {"_reconstruct": _Array, "dtype": _Dtype, "ndarray": None}
    # NumPy 1 and 2 have them in different modules.
    if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in known:
      return known[name]
    raise pickle.UnpicklingError(f"holds {module}.{name}, must hold NumPy arrays and dicts alone")


def read(path: pathlib.Path, reading: Reading, task: str) -> Found:
  """Reads a folder of PFLlib; raises DataError.

  Images, which it stores with the channels first, become NHWC.
  """
  del task
  checks.folder(path, "PFLlib, with train and test")
  train, test = (_part(path / part, reading.in_place) for part in ("train", "test"))
  if test.like != train.like:
    raise DataError(
      f"{path / 'test'}: x: holds examples of shape {test.like} and those of train have"
      f" {train.like}, must be of one size"
    )
  _check_config(path / "config.json", train.part, test.part)
  return Found(path.name, train.part, test.part)


class _Split(NamedTuple):
  part: Part
  like: tuple[int, ...]  # the shape of an example as it is stored


def _part(folder: pathlib.Path, in_place: bool) -> _Split:
  checks.folder(folder, "files of PFLlib, <client>.npz")
  found = {int(file.stem): file for file in folder.glob("*.npz") if file.stem.isdecimal()}
  if not found:
    raise DataError(f"{folder}: holds no <client>.npz such as 0.npz, must hold one a client")
  clients = sorted(found)
  shape: tuple[int, ...] | None = None
  kept, y = Kept(in_place), []
  for client in clients:
    where = f"{found[client]}: client {client}"
    content = _unpickle(found[client])
    for key in ("x", "y"):
      if key not in content:
        raise DataError(f"{where}: {key} is missing, must be in its dict")
    x = checks.numbers(f"{where}: x", content["x"], shape)
    y.append(checks.labels(f"{where}: y", content["y"], len(x)))
    if not len(x) and folder.name == "train":
      raise DataError(f"{where}: has no examples, must have one or more")
    shape = x.shape[1:] if shape is None else shape
    kept.add(_channels_last(x))
  assert shape is not None

  @functools.lru_cache(1)
  def again(piece: int) -> np.ndarray:
    return _channels_last(checks.numbers("x", _unpickle(found[clients[piece]])["x"]))

  owners = np.repeat(np.array(clients, np.int64), [len(own) for own in y])
  examples = kept.examples(lambda piece, rows: again(piece)[rows])
  return _Split(Part(examples, checks.joined(folder, y), owners), shape)


def _channels_last(x: np.ndarray) -> np.ndarray:
  return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def _unpickle(file: pathlib.Path) -> dict[str, Any]:
  with checks.parsing(file, f"{_RIGHT}, whose entry data is a dict of x and y"):
    with zipfile.ZipFile(file) as archive:
      member = io.BytesIO(archive.read("data.npy"))
    version = np.lib.format.read_magic(member)
    header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
      version, np.lib.format.read_array_header_2_0
    )
    _, _, dtype = header(member)
    if dtype != np.dtype(object):
      raise DataError(f"{file}: data: is of {dtype}, must be a pickled dict of x and y")
    found = _ArraysAlone(member).load()
  content = found.value if isinstance(found, _Array) else found
  content = content[0] if isinstance(content, list) and len(content) == 1 else content
  if not isinstance(content, dict):
    raise DataError(f"{file}: data: holds a {type(content).__name__}, must be a dict of x and y")
  return {
    key: value.value if isinstance(value, _Array) else value for key, value in content.items()
  }


def _check_config(file: pathlib.Path, train: Part, test: Part) -> None:
  """Checks the examples against what the generator wrote of them, where it did."""
  if not file.exists():
    return
  content = checks.read_json(file, "the config.json of PFLlib")
  assert train.clients is not None and test.clients is not None
  clients = np.union1d(train.clients, test.clients)
  told = content.get("num_clients")
  if told is not None and (told != len(clients) or clients[-1] != len(clients) - 1):
    raise DataError(f"{file}: num_clients is {told}, must be {len(clients)}, as there are files")
  y = np.concatenate([train.y, test.y])
  classes = content.get("num_classes")
  if isinstance(classes, int) and y.dtype.kind in "iu":
    checks.in_range(f"{file}: num_classes is {classes}: y", y, classes)
  with checks.parsing(file, "the config.json of PFLlib"):
    counts = content.get(_COUNTS) or []
    sizes = np.bincount(np.concatenate([train.clients, test.clients]))
    for client, own in enumerate(counts):
      total = sum(count for _, count in own)
      if total != sizes[client]:
        raise DataError(
          f"{file}: client {client}: {_COUNTS} add up to {total}, must be {sizes[client]}, as its"
          " files have"
        )


READER = Reader("pfllib", read)
