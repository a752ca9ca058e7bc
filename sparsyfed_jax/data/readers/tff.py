"""The files of TensorFlow Federated's simulation data sets: HDF5, and today's SQLite.

HDF5 has a group of datasets a client, in one file for training and one for the test; SQLite a row
an example, of serialised tf.Example, and the splits of one or several sets. Both are read without
TensorFlow. A path may end in `:SET`, where a SQLite file has several: `:digits_only` takes the
splits `digits_only_train` and `digits_only_test`.
"""

import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparsyfed_jax.data.dataset import DataError, Part
from sparsyfed_jax.data.readers import checks, tf_example
from sparsyfed_jax.data.readers.kept import Kept
from sparsyfed_jax.data.readers.record import Found, Reader
from sparsyfed_jax.data.readers.texts import Snippets, from_snippets
from sparsyfed_jax.data.reading import Reading
from sparsyfed_jax.data.rows import Examples

if TYPE_CHECKING:
  import sqlite3

_EXAMPLES = ("pixels", "image", "snippets")  # the first that a set has
_LABELS = ("label",)
_HDF5 = (".h5", ".hdf5")
_OTHER_CLIENTS = "coarse_label"  # CIFAR-100's, whose test clients 0 to 99 are not those of train
_RIGHT = "a file of TensorFlow Federated"


class _Client(NamedTuple):
  where: str  # file, split and client
  name: str
  features: dict[str, Any]  # (n, ...) each, or lists of bytes


class _Split(NamedTuple):
  """The clients of a split, who are read one by one."""

  where: str
  names: Sequence[str]
  load: Callable[[str], _Client]

  def each(self) -> Iterator[_Client]:
    return map(self.load, self.names)


class _Source(NamedTuple):
  """The clients of both splits."""

  where: str
  name: str
  train: _Split
  test: _Split


def read(path: pathlib.Path, reading: Reading, task: str) -> Found:
  """Reads HDF5 or SQLite of TensorFlow Federated; raises DataError."""
  del task
  source = _open(path)
  for noun, split in (("train", source.train), ("test", source.test)):
    if not split.names:
      raise DataError(f"{source.where}: {noun}: holds no client, must hold at least one")
  first = source.train.load(source.train.names[0])
  key = _choose(first, reading.example_column, _EXAMPLES, "example_column")
  if _is_text(first.features[key]):
    texts, tested = (_snippets(split.each(), key) for split in (source.train, source.test))
    return from_snippets(source.name, texts, tested, reading.sequence_length, source.where)
  label = _choose(first, reading.label_column, _LABELS, "label_column")
  train = _part(source.train, key, label, reading.in_place, None)
  others = "test " * (_OTHER_CLIENTS in first.features)
  test = _part(source.test, key, label, reading.in_place, train.x.shape[1:], others)
  train, test = (part._replace(x=_as_images(part.x)) for part in (train, test))
  return Found(source.name, train, test)


def _open(path: pathlib.Path) -> _Source:
  kind, chosen = path, ""
  if not path.exists():
    head, _, chosen = str(path).rpartition(":")
    kind = pathlib.Path(head or path)
  if not kind.exists():
    raise DataError(f"{path}: no such file, must be {_RIGHT}, HDF5 or SQLite, or the folder of one")
  if kind.is_dir():
    files = sorted(f for f in kind.iterdir() if f.suffix in (*_HDF5, ".sqlite"))
    trained = [f for f in files if f.suffix == ".sqlite" or f.stem.endswith("_train")]
    if len(trained) != 1:
      listed = ", ".join(f.name for f in trained) or "none"
      raise DataError(f"{kind}: must hold one file of training examples, or be that; has {listed}")
    kind = trained[0]
  if kind.suffix in _HDF5:
    return _hdf5(kind)
  if kind.suffix == ".lzma":
    raise DataError(f"{kind}: is compressed, must be unpacked first: xz -d -S .lzma {kind.name}")
  return _sqlite(kind, chosen)


def _hdf5(file: pathlib.Path) -> _Source:
  name = re.sub("_(train|test)$", "", file.stem)
  files = [file.with_name(f"{name}_{part}{file.suffix}") for part in ("train", "test")]
  for own in files:
    if not own.is_file():
      raise DataError(f"{own}: no such file, must be {_RIGHT} beside {file.name}")
  train, test = map(_hdf5_split, files)
  return _Source(str(file), name, train, test)


def _hdf5_split(file: pathlib.Path) -> _Split:
  with checks.importing(file, "readers"):
    import h5py
  right = f"{_RIGHT}, HDF5 with a group examples"
  with checks.parsing(file, right):
    groups = h5py.File(file, "r").get("examples")
    if not isinstance(groups, h5py.Group):
      raise DataError(f"{file}: examples is missing, must be a group with one of each client")
    names = list(groups)

  def load(name: str) -> _Client:
    where = f"{file}: client {name!r}"
    with checks.parsing(file, right):
      if not isinstance(groups[name], h5py.Group):
        raise DataError(f"{where}: is no group, must be one of datasets")
      features = {key: _values(f"{where}: {key}", own) for key, own in groups[name].items()}
    return _Client(where, name, features)

  return _Split(str(file), names, load)


def _values(where: str, dataset: Any) -> Any:
  if not getattr(dataset, "shape", ()):
    raise DataError(f"{where}: must be a dataset with an entry an example")
  values = dataset[()]
  return list(values) if values.dtype.kind in "OS" else values


def _sqlite(file: pathlib.Path, chosen: str) -> _Source:
  with checks.importing(file, "readers"):
    import sqlite3
  with checks.parsing(file, f"{_RIGHT}, SQLite with examples and client_metadata"):
    link = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
    rows = link.execute(
      "SELECT split_name, client_id, num_examples FROM client_metadata ORDER BY rowid"
    ).fetchall()
    link.execute("SELECT split_name, client_id, serialized_example_proto FROM examples LIMIT 1")
  counts: dict[str, dict[str, int]] = {}
  for split, client, count in rows:
    counts.setdefault(split, {})[client] = count
  sets = [name.removesuffix("train").rstrip("_") for name in counts if name.endswith("train")]
  wanted = [name for name in sets if name == chosen] if chosen else sets
  if len(wanted) != 1:
    listed = ", ".join(f"{file}:{name}" for name in sets if name) or "no split that ends in train"
    raise DataError(f"{file}{':' * bool(chosen)}{chosen}: must name one of its sets: {listed}")
  prefix = f"{wanted[0]}_" if wanted[0] else ""
  if f"{prefix}test" not in counts:
    raise DataError(f"{file}: has no split {prefix}test, must have one beside {prefix}train")
  name = "_".join(filter(None, [file.stem, wanted[0]]))
  splits = (f"{prefix}{part}" for part in ("train", "test"))
  train, test = (_rows(file, link, own, counts[own]) for own in splits)
  return _Source(str(file), name, train, test)


def _rows(
  file: pathlib.Path, link: "sqlite3.Connection", split: str, counts: dict[str, int]
) -> _Split:
  def load(name: str) -> _Client:
    where = f"{file}: {split}: client {name!r}"
    with checks.parsing(where, "rows of serialised tf.Example"):
      found = link.execute(
        "SELECT serialized_example_proto FROM examples WHERE split_name = ? AND client_id = ?"
        " ORDER BY rowid",
        (split, name),
      ).fetchall()
    if len(found) != counts[name]:
      raise DataError(
        f"{where}: has {len(found)} examples, must be {counts[name]} by client_metadata"
      )
    with checks.parsing(where, "rows of serialised tf.Example"):
      return _Client(where, name, _stacked(where, [tf_example.parse(row) for (row,) in found]))

  return _Split(f"{file}: {split}", list(counts), load)


def _stacked(where: str, examples: list[dict[str, tf_example.Value]]) -> dict[str, Any]:
  features: dict[str, Any] = {}
  for key in examples[0] if examples else ():
    values = []
    for i, example in enumerate(examples):
      if key not in example:
        raise DataError(f"{where}: {key} is missing in example {i}, must be in all")
      if len(example[key]) != len(examples[0][key]):
        raise DataError(
          f"{where}: {key}: has {len(example[key])} values in example {i}, must be"
          f" {len(examples[0][key])} as in example 0"
        )
      values.append(example[key])
    if isinstance(values[0], list):
      features[key] = [own[0] if own else b"" for own in values]
    else:
      features[key] = np.stack(values)
  return features


def _choose(client: _Client, chosen: str, usual: tuple[str, ...], flag: str) -> str:
  has = sorted(client.features)
  for key in (chosen,) if chosen else usual:
    if key in has:
      return key
  wanted = chosen or " or ".join(usual)
  raise DataError(f"{client.where}: {wanted} is missing, must be there; --{flag} chooses of {has}")


def _is_text(values: Any) -> bool:
  return isinstance(values, list)


def _snippets(clients: Iterable[_Client], key: str) -> Snippets:
  texts, names = [], []
  for client in clients:
    for i, value in enumerate(_of(client, key)):
      try:
        texts.append(value.decode("utf-8") if isinstance(value, bytes) else str(value))
      except UnicodeDecodeError:
        raise DataError(f"{client.where}: {key}: example {i} is not UTF-8, must be") from None
      names.append(client.name)
  return Snippets(texts, names)


def _of(client: _Client, key: str) -> Any:
  if key not in client.features:
    raise DataError(f"{client.where}: {key} is missing, must be there")
  return client.features[key]


def _part(
  split: _Split,
  key: str,
  label: str,
  in_place: bool,
  shape: tuple[int, ...] | None,
  prefix: str = "",
) -> Part:
  kept, y = Kept(in_place), []
  for client in split.each():
    x = checks.numbers(f"{client.where}: {key}", _of(client, key), shape)
    shape = x.shape[1:]
    if not len(x):
      raise DataError(f"{client.where}: has no examples, must have one or more")
    own = np.asarray(_of(client, label))
    own = own[:, 0] if own.ndim == 2 and own.shape[1] == 1 else own
    y.append(checks.labels(f"{client.where}: {label}", own, len(x), key))
    kept.add(x)

  @functools.lru_cache(1)
  def again(piece: int) -> np.ndarray:
    return np.asarray(_of(split.load(split.names[piece]), key))

  owners = checks.repeated([prefix + name for name in split.names], [len(own) for own in y])
  examples = kept.examples(lambda piece, rows: again(piece)[rows])
  return Part(examples, checks.joined(split.where, y), owners)


def _as_images(x: Examples) -> Examples:
  """Gives flat rows of a square image of 1 or 3 channels its shape."""
  if x.ndim != 2:
    return x
  for channels in (1, 3):
    side = math.isqrt(x.shape[1] // channels)
    if side > 4 and side * side * channels == x.shape[1]:
      return x.reshape(-1, side, side, channels)
  return x


READER = Reader("tff", read, extra="readers", has_text=True)
