"""Texts as sequences of characters, dealt to clients by chapters, blocks of lines or a column.

Each client keeps the last fifth of its part for the test, so that no character is in both. The
vocabulary is that of the training parts; what only tests have is one token, number 0.
"""

import csv
import io
import os
import re
import stat
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from sparsyfed_jax.data.dataset import DataError, Dataset, Part, dataset_of
from sparsyfed_jax.data.reading import Reading

CLIENTS = ("blocks", "chapters", "column")
UNKNOWN = "\ufffd"  # token 0
TEST_SHARE = 5  # one character in so many
_PADDING = -1  # the target behind the end of a sequence
# The texts of clients, by their names.
Pieces: TypeAlias = dict[str, str]


def load(path: str, reading: Reading) -> Dataset:
  """Reads a text file, or with clients by column a CSV file with a header, both in UTF-8.

  Args:
    path: the file; `~` stands for the home directory.
    reading: how.

  Returns:
    The data set, named like the file without its ending.

  Raises:
    DataError: the file cannot be read, or not so.
  """
  name = os.path.splitext(os.path.basename(path))[0]
  return from_pieces(cut(_read(path), reading, path), reading.sequence_length, name, path)


def cut(content: str, reading: Reading, where: str) -> Pieces:
  """Deals a text to clients.

  Args:
    content: the text.
    reading: how.
    where: what the text is called in messages.

  Returns:
    The text of each client, in the order in which they come.

  Raises:
    DataError: the text has no such clients.
  """
  if not content.strip():
    raise DataError(f"{where}: is empty, must hold a text")
  if reading.clients not in CLIENTS:
    raise DataError(f"{where}: clients={reading.clients}: must be one of {', '.join(CLIENTS)}")
  if reading.clients == "chapters":
    return _chapters(content, reading.pattern, where)
  if reading.clients == "column":
    return _columns(content, reading.columns, where)
  return _blocks(content, reading.num_clients, where)


def from_pieces(pieces: Pieces, length: int, name: str, where: str = "") -> Dataset:
  """Makes examples of the texts of clients.

  A sequence has `length` characters and predicts as many, each the one that follows. The last one
  of a part may be shorter; its places behind the end have the target -1.

  Args:
    pieces: the text of each client.
    length: of a sequence, 1 or more.
    name: of the data set.
    where: what the texts are called in messages.

  Raises:
    DataError: the texts are too short.
  """
  where = where or name
  if length < 1:
    raise DataError(f"{where}: sequence_length={length}: must be at least 1")
  ends = [len(piece) - len(piece) // TEST_SHARE for piece in pieces.values()]
  train = [piece[:end] for piece, end in zip(pieces.values(), ends, strict=True)]
  test = [piece[end:] for piece, end in zip(pieces.values(), ends, strict=True)]
  characters = vocabulary(train)
  x_train, y_train, client_train = sequences(train, characters, length)
  x_test, y_test, client_test = sequences(test, characters, length)
  for noun, y in (("training", y_train), ("test", y_test)):
    if not len(y):
      raise DataError(
        f"{where}: leaves no {noun} example, as its {len(pieces)} clients have {sum(ends)}"
        " characters; a client needs 10 or more for both"
      )
  parts = Part(x_train, y_train, client_train), Part(x_test, y_test, client_test)
  return dataset_of(name, *parts, characters, len(pieces))


def vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
  """Lists the characters of texts in sorted order, behind that which stands for all others."""
  return (UNKNOWN, *sorted(set().union(*texts) - {UNKNOWN}))


def sequences(
  texts: Sequence[str], characters: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts texts into sequences of `length` tokens, each with as many that come next.

  Args:
    texts: each of which begins a sequence.
    characters: of the tokens, from `vocabulary`.
    length: of a sequence, 1 or more.

  Returns:
    (n, length) int32 tokens, those that come next, -1 behind the end, and (n,) int32, the number
    of each one's text.
  """
  numbers = {character: i for i, character in enumerate(characters)}
  rows = [_rows([numbers.get(c, 0) for c in text], length) for text in texts]
  owners = np.repeat(np.arange(len(rows)), [len(x) for x, _ in rows])
  x, y = (np.concatenate(arrays) for arrays in zip(*rows, strict=True))
  return x, y, owners.astype(np.int32)


def _rows(tokens: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a part into examples: (rows, length) int32 tokens, and those that come next."""
  count = max(len(tokens) - 1, 0)  # of predictions
  num_rows = -(-count // length)
  x, y = np.zeros(num_rows * length, np.int32), np.full(num_rows * length, _PADDING, np.int32)
  x[:count], y[:count] = tokens[:count], tokens[1 : count + 1]
  return x.reshape(num_rows, length), y.reshape(num_rows, length)


def _blocks(content: str, num_clients: int, where: str) -> Pieces:
  lines = content.splitlines(keepends=True)
  if not 1 <= num_clients <= len(lines):
    raise DataError(
      f"{where}: num_clients={num_clients}: must be between 1 and {len(lines)}, the number of lines"
    )
  ends = np.linspace(0, len(lines), num_clients + 1).round().astype(int)
  return {
    f"lines {first + 1} to {last}": "".join(lines[first:last])
    for first, last in zip(ends[:-1], ends[1:], strict=True)
  }


def _chapters(content: str, pattern: str, where: str) -> Pieces:
  try:
    found = list(re.finditer(pattern, content))
  except re.error as error:
    raise DataError(
      f"{where}: pattern={pattern!r}: must be a regular expression ({error})"
    ) from None
  if len(found) < 2 or any(match.end() == match.start() for match in found):
    raise DataError(
      f"{where}: pattern={pattern!r}: must find the headings of 2 or more chapters, finds"
      f" {len([match for match in found if match.end() > match.start()])}"
    )
  starts = [match.start() for match in found]
  pieces: Pieces = {}
  if content[: starts[0]].strip():
    pieces["before the first heading"] = content[: starts[0]]
  for match, end in zip(found, [*starts[1:], len(content)], strict=True):
    heading = " ".join(match.group().split())
    while heading in pieces:  # such as "Act I" of the next play
      heading += "'"
    pieces[heading] = content[match.start() : end]
  return pieces


def _columns(content: str, columns: tuple[str, str], where: str) -> Pieces:
  if len(columns) != 2 or columns[0] == columns[1]:
    listed = ",".join(columns)
    raise DataError(f"{where}: columns={listed}: must be two names, of the text and of the client")
  reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
  try:
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
      found = ", ".join(reader.fieldnames or ())
      raise DataError(f"{where}: columns: {missing[0]} is not in its header, which has {found}")
    rows = list(reader)
  except csv.Error as error:
    raise DataError(f"{where}: line {reader.line_num}: is not CSV ({error})") from None
  pieces: dict[str, list[str]] = {}
  for number, row in enumerate(rows, start=1):
    if any(row[name] is None for name in columns):
      raise DataError(f"{where}: row {number}: has fewer entries than the header")
    pieces.setdefault(row[columns[1]], []).append(row[columns[0]])
  if not pieces:
    raise DataError(f"{where}: has no row below its header")
  return {client: _joined(texts) for client, texts in pieces.items()}


def _joined(texts: Iterable[str]) -> str:
  return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts)


def _read(path: str) -> str:
  try:
    if not stat.S_ISREG(os.stat(os.path.expanduser(path)).st_mode):  # a FIFO waits for a writer
      raise DataError(f"{path}: is no regular file, must be a text file")
    with open(os.path.expanduser(path), encoding="utf-8-sig", newline=None) as file:
      return file.read()
  except DataError:
    raise
  except FileNotFoundError:
    raise DataError(f"{path}: no such file, must be a text file") from None
  except UnicodeDecodeError as error:
    raise DataError(f"{path}: is not UTF-8 at byte {error.start}, must be a text file") from None
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise DataError(f"{path}: cannot be opened: {reason}") from None
