"""The JSON files of LEAF (Caldas et al. 2018, https://arxiv.org/abs/1812.01097).

A folder `data/train` and one `data/test` hold files of `users`, `num_samples` and `user_data`, the
x and y of each user. Users are the clients, over all files. Where its script has split by user,
those of the test take part in no round.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.data.readers import checks
from sparsyfed_jax.data.readers.record import Found, Part, Reader
from sparsyfed_jax.data.readers.texts import Windows, check_windows, from_windows
from sparsyfed_jax.data.reading import Reading

_KEYS = ("users", "num_samples", "user_data")
_FILE = "a file of LEAF with users, num_samples and user_data"
_IMAGE = 784  # values of an image of 28 x 28, which FEMNIST has in a row


class _User(NamedTuple):
  where: str  # file and client
  name: str
  x: list[str] | np.ndarray
  y: list[Any]


def read(path: pathlib.Path, reading: Reading, task: str) -> Found:
  """Reads a folder of LEAF; raises DataError.

  x are lists of numbers, of which 784 are an image of 28 x 28, or strings of one length, behind
  which y is the next character.
  """
  del reading, task
  checks.folder(path, "LEAF, with data/train and data/test")
  top = path / "data" if (path / "data" / "train").is_dir() else path
  name = path.parent.name if path.name == "data" else path.name
  train = list(_users(top / "train", is_test=False))
  test = list(_users(top / "test", is_test=True))
  for part, users in (("train", train), ("test", test)):
    if not users:
      raise DataError(f"{top / part}: holds no user with examples, must hold at least one")
  if isinstance(train[0].x, list):
    length: int | None = None
    for user in (*train, *test):
      length = check_windows(user.where, list(user.x), user.y, length)
    return from_windows(name, _windows(train), _windows(test), str(path))
  shape = np.shape(train[0].x)[1:]
  return Found(name, _part(top, train, shape), _part(top, test, shape))


def _users(folder: pathlib.Path, is_test: bool) -> Iterator[_User]:
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
      elif not is_test:
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
    yield _User(where, name, x, own["y"])


def _part(top: pathlib.Path, users: list[_User], shape: tuple[int, ...]) -> Part:
  x, y = [], []
  for user in users:
    x.append(checks.numbers(f"{user.where}: x", user.x, shape))
    y.append(checks.labels(f"{user.where}: y", user.y, len(user.x)))
  images = checks.joined(top, x)
  if shape == (_IMAGE,):
    images = images.reshape(-1, 28, 28, 1)
  sizes = [len(user.y) for user in users]
  return Part(images, checks.joined(top, y), checks.repeated([u.name for u in users], sizes))


def _windows(users: list[_User]) -> Windows:
  names = np.repeat([user.name for user in users], [len(user.y) for user in users])
  return Windows(
    [window for user in users for window in user.x],
    [following for user in users for following in user.y],
    names.tolist(),
  )


READER = Reader("leaf", read, has_text=True)
