"""The JSON files of LEAF (Caldas et al. 2018, https://arxiv.org/abs/1812.01097).

A folder `data/train` and one `data/test` hold files of `users`, `num_samples` and `user_data`, the
x and y of each user. Users are the clients, over all files. Where its script has split by user,
those of the test take part in no round.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sparsyfed_jax.data.dataset import DataError, Part
from sparsyfed_jax.data.readers import checks
from sparsyfed_jax.data.readers.kept import Kept
from sparsyfed_jax.data.readers.record import Found, Reader
from sparsyfed_jax.data.readers.texts import Windows, check_windows, from_windows
from sparsyfed_jax.data.reading import Reading

_KEYS = ("users", "num_samples", "user_data")
_FILE = "a file of LEAF with users, num_samples and user_data"
_IMAGE = 784  # values of an image of 28 x 28, which FEMNIST has in a row


class _User(NamedTuple):
  where: str  # file and client
  file: pathlib.Path
  name: str
  x: list[str] | np.ndarray
  y: list[Any]


def read(path: pathlib.Path, reading: Reading, task: str) -> Found:
  """Reads a folder of LEAF; raises DataError.

  x are lists of numbers, of which 784 are an image of 28 x 28, or strings of one length, behind
  which y is the next character.
  """
  del task
  checks.folder(path, "LEAF, with data/train and data/test")
  top = path / "data" if (path / "data" / "train").is_dir() else path
  name = path.parent.name if path.name == "data" else path.name
  train, test = (_users(top / part) for part in ("train", "test"))
  first = next(train, None)
  if first is None:
    raise _without_users(top / "train")
  train = itertools.chain([first], train)
  if isinstance(first.x, list):
    return _text(name, list(train), list(test), str(path), top)
  own = _part(top / "train", train, reading.in_place, None)
  shape = own.x.shape[1:]
  tested = _part(top / "test", test, reading.in_place, shape)
  if shape == (_IMAGE,):
    own, tested = (part._replace(x=part.x.reshape(-1, 28, 28, 1)) for part in (own, tested))
  return Found(name, own, tested)


def _text(name: str, train: list[_User], test: list[_User], where: str, top: pathlib.Path) -> Found:
  if not test:
    raise _without_users(top / "test")
  length: int | None = None
  for user in (*train, *test):
    length = check_windows(user.where, list(user.x), user.y, length)
  return from_windows(name, _windows(train), _windows(test), where)


def _without_users(folder: pathlib.Path) -> DataError:
  return DataError(f"{folder}: holds no user with examples, must hold at least one")


def _users(folder: pathlib.Path) -> Iterator[_User]:
  checks.folder(folder, "files of LEAF")
  files = sorted(folder.glob("*.json"))
  if not files:
    raise DataError(f"{folder}: holds no .json file, must hold those of LEAF")
  seen: dict[str, pathlib.Path] = {}
  for file in files:
    for user in _users_of(file):
      if user.name in seen:
        raise DataError(f"{user.where}: is in {seen[user.name].name} too, must be in one file")
      seen[user.name] = file
      if user.y:
        yield user
      elif folder.name == "train":
        raise DataError(f"{user.where}: has no examples, must have one or more")


def _users_of(file: pathlib.Path) -> Iterator[_User]:
  content = checks.read_json(file, _FILE)
  for key in _KEYS:
    if key not in content:
      raise DataError(f"{file}: {key} is missing, must be {_FILE}")
  names, counts, data = (content[key] for key in _KEYS)
  if not isinstance(names, list) or not isinstance(counts, list) or not isinstance(data, dict):
    raise DataError(f"{file}: users and num_samples must be lists, user_data an object")
  if len(names) != len(counts):
    raise DataError(f"{file}: num_samples: holds {len(counts)} numbers, must be {len(names)}")
  known = set(map(str, names))
  if len(known) != len(names) or not known <= set(data):
    apart = [*sorted(known - set(data)), "one twice"][0]
    raise DataError(f"{file}: users: must be in user_data, each once; differs in {apart}")
  for name in sorted(set(data) - known):  # LEAF leaves those with one example, without it
    if not isinstance(data[name], dict) or data[name].get("y"):
      raise DataError(f"{file}: client {name!r}: must be among users, as it has examples")
  for name, count in zip(map(str, names), counts, strict=True):
    where = f"{file}: client {name!r}"
    own = data.pop(name)  # lists of floats take many times what arrays do
    for key in ("x", "y"):
      if not isinstance(own, dict) or not isinstance(own.get(key), list):
        raise DataError(f"{where}: {key} is missing, must be a list of examples")
    if len(own["x"]) != len(own["y"]):
      raise DataError(f"{where}: y: holds {len(own['y'])} labels, must be {len(own['x'])} like x")
    if len(own["y"]) != count:
      raise DataError(f"{where}: num_samples is {count}, must be {len(own['y'])}, as it has")
    is_text = bool(own["x"]) and isinstance(own["x"][0], str)
    x = own["x"] if is_text or not own["x"] else checks.numbers(f"{where}: x", own["x"])
    yield _User(where, file, name, x, own["y"])


def _part(
  folder: pathlib.Path, users: Iterable[_User], in_place: bool, shape: tuple[int, ...] | None
) -> Part:
  kept, y, names, places = Kept(in_place), [], [], []
  for user in users:
    x = checks.numbers(f"{user.where}: x", user.x, shape)
    y.append(checks.labels(f"{user.where}: y", user.y, len(x)))
    shape = x.shape[1:]
    names.append(user.name)
    places.append((user.file, user.name))
    kept.add(x)
  if not names:
    raise _without_users(folder)

  @functools.lru_cache(1)
  def again(file: pathlib.Path) -> dict[str, np.ndarray]:
    return {user.name: np.asarray(user.x) for user in _users_of(file)}

  def read(piece: int, rows: np.ndarray) -> np.ndarray:
    file, name = places[piece]
    return again(file)[name][rows]

  owners = checks.repeated(names, [len(own) for own in y])
  return Part(kept.examples(read), checks.joined(folder, y), owners)


def _windows(users: list[_User]) -> Windows:
  names = np.repeat([user.name for user in users], [len(user.y) for user in users])
  return Windows(
    [window for user in users for window in user.x],
    [following for user in users for following in user.y],
    names.tolist(),
  )


READER = Reader("leaf", read, has_text=True)
