"""Data sets whose examples stay in their files, compared with those in memory."""

import jax
import numpy as np

from sparsyfed_jax.data.dataset import flat
from sparsyfed_jax.data.readers import READERS, open_with
from sparsyfed_jax.data.reading import READING
from sparsyfed_jax.data.rows import Rows


def check_in_place(opened, reader, path, reading=READING, task="", key=None):
  """Checks that a set is the same in its place, and that its examples are read there."""
  key = jax.random.key(0) if key is None else key
  found = open_with(READERS[reader], str(path), key, reading._replace(in_place=True), task)
  assert found.clients == opened.clients
  rng = np.random.default_rng(0)
  for name, value in opened.dataset._asdict().items():
    other = getattr(found.dataset, name)
    if name not in ("x_train", "x_test"):
      np.testing.assert_array_equal(other, value, err_msg=name)
      continue
    assert isinstance(other, Rows) and isinstance(value, np.ndarray)
    assert (other.shape, other.dtype, other.size) == (value.shape, value.dtype, value.size)
    rows = rng.integers(0, len(value), 2 * len(value))
    np.testing.assert_array_equal(other[rows], value[rows])
    np.testing.assert_array_equal(flat(other)[1:], flat(value)[1:])
  return found.dataset
