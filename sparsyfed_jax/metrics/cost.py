"""Bytes of a model on the wire, positions included."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.ops import count_nonzero, count_one
from sparsyfed_jax.types import Variables

_VALUE_BYTES = 4
_INDEX_BYTES = 4


def dense_bytes(variables: Variables) -> int:
  """Counts the bytes of a dense model: four a value, statistics included."""
  return _VALUE_BYTES * trees.size(variables)


def payload_bytes(variables: Variables) -> jax.Array:
  """Counts the bytes of a model whose zeros need not be sent.

  Each prunable leaf is sent in the cheapest of three forms: all values; a bitmap and the values
  that are not 0; their indices and values. Every other leaf is sent whole.

  Args:
    variables: flax collections, "params" among them.

  Returns:
    () float32.
  """
  kernels, _ = trees.split_prunable(variables["params"])
  rest = trees.size(variables) - trees.size(kernels)
  total = jnp.float32(_VALUE_BYTES * rest)
  for leaf in kernels:
    values = _VALUE_BYTES * count_nonzero(leaf).astype(jnp.float32)
    bitmap = values + (leaf.size + 7) // 8
    indices = values * (1 + _INDEX_BYTES / _VALUE_BYTES)
    dense = jnp.float32(_VALUE_BYTES * leaf.size)
    total += jnp.minimum(dense, jnp.minimum(bitmap, indices))
  return total


def mask_bytes(masks: Sequence[jax.Array]) -> jax.Array:
  """Counts the bytes of masks alone, each as a bitmap or as indices; () float32."""
  total = jnp.float32(0)
  for mask in masks:
    indices = _INDEX_BYTES * count_one(mask).astype(jnp.float32)
    total += jnp.minimum(indices, float((mask.size + 7) // 8))
  return total
