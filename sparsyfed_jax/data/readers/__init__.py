"""Readers of the formats in which federated data lies about, a file a format.

Each file ends in its record, `READER`, which `READERS` lists; what a format needs besides NumPy is
imported when it is read.
"""

import os
import pathlib

import jax

from sparsyfed_jax import strangers
from sparsyfed_jax.data.dataset import DataError, Part
from sparsyfed_jax.data.readers import hf, images, leaf, pfllib, speech, tff
from sparsyfed_jax.data.readers.finish import Opened, finish, in_memory
from sparsyfed_jax.data.readers.record import Found, Reader
from sparsyfed_jax.data.reading import READING, Reading

__all__ = ["READERS", "Found", "Opened", "Part", "Reader", "find", "open_with"]

# The formats, by their names in --dataset=NAME:PATH.
READERS: dict[str, Reader] = {
  module.READER.name: module.READER for module in (hf, leaf, tff, pfllib, images, speech)
}


def find(name: str) -> tuple[Reader, str] | None:
  """Finds the reader that a name of a data set begins with, and the path that follows.

  Args:
    name: FORMAT:PATH with a format of `READERS`, or package.module:READER:PATH or
      ./file.py:READER:PATH with a reader of one's own, whose code runs.

  Returns:
    None where the name is of another kind.

  Raises:
    DataError: a reader of one's own cannot be used.

  Example:
    >>> find("leaf:femnist")[1], find("npz:x.npz")
    ('femnist', None)
  """
  kind, _, path = name.partition(":")
  if kind in READERS:
    return (READERS[kind], path) if path else None
  if "." not in kind or not path:
    return None
  attribute, _, place = path.partition(":")
  right = f"{kind}:READER:PATH, of a Reader"
  if not attribute or not place:
    raise DataError(f"--dataset={name}: must be {right}")
  try:
    reader = strangers.load(kind, attribute)
  except ValueError as error:
    raise DataError(f"--dataset={name}: cannot be loaded ({error}), must be {right}") from error
  if not isinstance(reader, Reader):
    raise DataError(f"--dataset={name}: {attribute} is a {type(reader).__name__}, must be a Reader")
  return reader, place


def open_with(
  reader: Reader, path: str, key: jax.Array, reading: Reading = READING, task: str = ""
) -> Opened:
  """Reads a data set.

  Args:
    reader: of its format.
    path: where it lies; `~` stands for the home directory.
    key: a JAX PRNG key; decides the train/test split where the data has none.
    reading: which columns, how texts are cut, and whether examples stay in their files.
    task: what is learned; by default of a text the next token, and of others classification.

  Raises:
    DataError: it cannot be read, or not used.

  Example:
    >>> import jax
    >>> from sparsyfed_jax.data.readers import READERS
    >>> open_with(READERS["leaf"], "missing", jax.random.key(0))
    Traceback (most recent call last):
    sparsyfed_jax.data.dataset.DataError: missing: no such folder, must be one of LEAF...
  """
  place = pathlib.Path(os.path.expanduser(path))
  try:
    found = reader.open(place, reading, task)
    if not reading.in_place:
      found = in_memory(found)
    return finish(found, key, str(place), task)
  except OSError as error:
    raise DataError(f"{place}: cannot be read: {error.strerror or error}") from None
