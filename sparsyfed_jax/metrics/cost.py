"""The size of a dense model on the wire; `sparsyfed_jax.wire.size` counts that of any model."""

from sparsyfed_jax import trees
from sparsyfed_jax.types import Variables

_VALUE_BYTES = 4


def dense_bytes(variables: Variables) -> int:
  """Counts the bytes of a dense model: four a value, statistics included.

  Example:
    >>> import numpy as np
    >>> dense_bytes({"params": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}})
    36
  """
  return _VALUE_BYTES * trees.size(variables)
