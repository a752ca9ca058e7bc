"""Texts in the files of others: windows of characters with the one that follows, and snippets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsyfed_jax.data.characters import sequences, vocabulary
from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.data.readers.checks import repeated
from sparsyfed_jax.data.readers.record import Found, Part


class Windows(NamedTuple):
  """Strings of one length, and the character behind each.

  Example:
    >>> windows = Windows(["to b", "o be"], ["e", " "], ["ann", "ann"])
    >>> from_windows("toy", windows, None, "toy").train.y.tolist()
    [[-1, -1, -1, 3], [-1, -1, -1, 1]]
  """

  x: Sequence[str]
  y: Sequence[str]
  clients: Sequence[str] | None  # of each


class Snippets(NamedTuple):
  """The texts of clients, which begin a sequence each.

  Example:
    >>> found = from_snippets("toy", Snippets(["to be"], ["ann"]), None, 4, "toy")
    >>> found.train.x.tolist(), found.train.clients.tolist()
    ([[5, 4, 1, 2]], ['ann'])
  """

  texts: Sequence[str]
  clients: Sequence[str] | None  # of each


def check_windows(where: str, x: Sequence[object], y: Sequence[object], length: int | None) -> int:
  """Checks the windows of a client, and returns their length; raises DataError.

  Args:
    where: file and client.
    x: the windows, one or more.
    y: what comes next.
    length: of those before; None for any.
  """
  for i, (window, following) in enumerate(zip(x, y, strict=True)):
    if not isinstance(window, str) or not window:
      raise DataError(f"{where}: x: example {i} is no string of characters, must be one")
    length = length or len(window)
    if len(window) != length:
      raise DataError(
        f"{where}: x: example {i} has {len(window)} characters, must be {length} as those before"
      )
    if not isinstance(following, str) or len(following) != 1:
      raise DataError(f"{where}: y: example {i} is {following!r}, must be one character")
  assert length is not None
  return length


def from_windows(name: str, train: Windows, test: Windows | None, where: str) -> Found:
  """Makes examples of windows: all tokens are seen, and the one behind the last is predicted."""
  characters = vocabulary([*train.x, *train.y])
  return Found(
    name,
    _of_windows(train, characters),
    _of_windows(test, characters) if test else None,
    classes=_told(characters, where),
    is_text=True,
  )


def from_snippets(
  name: str, train: Snippets, test: Snippets | None, length: int, where: str
) -> Found:
  """Makes sequences of snippets, each place of which predicts the character behind it.

  Args:
    name: of the data set.
    train: of which the vocabulary is taken.
    test: None where the seed is to split the sequences.
    length: of a sequence.
    where: what is read, for messages.
  """
  characters = vocabulary(train.texts)
  found = [_of_snippets(part, characters, length) for part in (train, test) if part]
  for noun, part in zip(("training", "test"), found, strict=False):
    if not len(part.y):
      raise DataError(f"{where}: leaves no {noun} example; a text needs 2 characters or more")
  tested = found[1] if test else None
  return Found(name, found[0], tested, classes=_told(characters, where), is_text=True)


def _told(characters: tuple[str, ...], where: str) -> tuple[str, ...]:
  if len(characters) < 3:
    raise DataError(f"{where}: is a text of {len(characters) - 1} character, must be of 2 or more")
  return characters


def _of_windows(windows: Windows, characters: Sequence[str]) -> Part:
  numbers = {character: i for i, character in enumerate(characters)}
  x = np.array([[numbers.get(c, 0) for c in window] for window in windows.x], np.int32)
  y = np.full_like(x, -1)
  y[:, -1] = [numbers.get(c, 0) for c in windows.y]
  return Part(x, y, None if windows.clients is None else np.array(windows.clients))


def _of_snippets(snippets: Snippets, characters: Sequence[str], length: int) -> Part:
  x, y, owners = sequences(snippets.texts, characters, length)
  if snippets.clients is None:
    return Part(x, y)
  return Part(x, y, repeated(snippets.clients, np.bincount(owners, minlength=len(snippets.texts))))
