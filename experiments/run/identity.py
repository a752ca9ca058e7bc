"""Digests and versions of what a run depends on besides its flags, and how two of them differ."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sparsyfed_jax.data.dataset import Dataset
from sparsyfed_jax.data.mapped import blocks
from sparsyfed_jax.data.rows import Rows


def examples_digest(dataset: Dataset) -> str:
  """Returns the SHA-256, in hexadecimal, of all that a data set holds but its name."""
  return digest(value for name, value in dataset._asdict().items() if name != "name")


def digest(values: Iterable[Any]) -> str:
  """Returns the SHA-256, in hexadecimal, of arrays and plain values, with their types and shapes.

  Args:
    values: arrays, numbers, strings, None, or tuples of plain values.
  """
  total = hashlib.sha256()
  for value in values:
    if isinstance(value, np.ndarray | Rows):
      total.update(f"{value.dtype.str}{value.shape}".encode())
      for block in blocks(value) if value.ndim else [value]:
        total.update(np.ascontiguousarray(block).data)
    else:
      total.update(f"{type(value).__name__}{value!r};".encode())
  return total.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Names the keys of which two mappings hold different values, or one alone holds any."""
  names = dict.fromkeys([*before, *now])
  return [name for name in names if before.get(name) != now.get(name)]
