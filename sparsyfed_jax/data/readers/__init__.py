"""Readers of the formats in which federated data lies about, a file a format.

Each file ends in its record, `READER`, which `READERS` lists; what a format needs besides NumPy is
imported when it is read.
"""

import os
import pathlib

import jax

from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.data.readers import hf, images, leaf, pfllib, speech, tff
from sparsyfed_jax.data.readers.finish import Opened, finish
from sparsyfed_jax.data.readers.record import Found, Part, Reader
from sparsyfed_jax.data.reading import READING, Reading

__all__ = ["READERS", "Found", "Opened", "Part", "Reader", "open_with"]

READERS: dict[str, Reader] = {
  module.READER.name: module.READER for module in (hf, leaf, tff, pfllib, images, speech)
}


def open_with(
  reader: Reader, path: str, key: jax.Array, reading: Reading = READING, task: str = ""
) -> Opened:
  """Reads a data set.

  Args:
    reader: of its format.
    path: where it lies; `~` stands for the home directory.
    key: a JAX PRNG key; decides the train/test split where the data has none.
    reading: which columns, and how texts are cut.
    task: what is learned; by default of a text the next token, and of others classification.

  Raises:
    DataError: it cannot be read, or not used.

  Example:
    >>> open_with(READERS["leaf"], "missing", jax.random.key(0))
    Traceback (most recent call last):
    sparsyfed_jax.data.dataset.DataError: missing: no such folder, must be one of LEAF...
  """
  place = pathlib.Path(os.path.expanduser(path))
  try:
    return finish(reader.open(place, reading, task), key, str(place), task)
  except OSError as error:
    raise DataError(f"{place}: cannot be read: {error.strerror or error}") from None
