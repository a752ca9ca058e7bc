"""The k-th largest key digit by digit, for accelerators.

There every operation costs a start, and every iteration of a loop a few: so a digit of four bits is
found at a time, by one reduction that counts how many keys reach each of 15 pivots, without a loop.
Fewer bits a digit take more operations, more take longer to compare than they save.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.count import count_together

_BITS = 4
_LANES = 128  # of a TPU's registers, along the last axis
_MOST_SMALL = 2**14  # entries of an array that is searched as it is, or together with others


def kth_key(keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  """Finds the k-th largest of the keys of all arrays.

  Args:
    keys: arrays of one unsigned dtype, whose highest bit is not set.
    k: () int32, at least 1.

  Returns:
    () array of the keys' dtype; 0 where there are fewer.
  """
  keys, dtype = _laid_out(keys), keys[0].dtype
  found = jnp.zeros((), dtype)
  for shift in reversed(range(0, jnp.iinfo(dtype).bits - 1, _BITS)):
    digits = range(1, 2 ** min(_BITS, jnp.iinfo(dtype).bits - 1 - shift))
    pivots = [found + jnp.asarray(digit << shift, dtype) for digit in digits]
    counts = [count_together([leaf >= pivot for pivot in pivots]) for leaf in keys]
    for pivot, *of_leaves in zip(pivots, *counts, strict=True):
      found = jnp.where(sum(of_leaves[1:], of_leaves[0]) >= k, pivot, found)
  return found


def _laid_out(keys: Sequence[jax.Array]) -> list[jax.Array]:
  """Puts small arrays into one, and large ones into rows that fill registers."""
  small = [leaf for leaf in keys if leaf.size <= _MOST_SMALL]
  large = [_in_rows(leaf) for leaf in keys if leaf.size > _MOST_SMALL]
  if len(small) > 1:
    small = [_written(jnp.concatenate([leaf.reshape(-1) for leaf in small]))]
  return small + large


def _in_rows(leaf: jax.Array) -> jax.Array:
  is_wide = leaf.ndim > 0 and leaf.shape[-1] % _LANES == 0
  return leaf if is_wide or leaf.size % _LANES else _written(leaf.reshape(-1, _LANES))


def _written(keys: jax.Array) -> jax.Array:
  """Has an array laid out once; else the compiler would lay out what it is compared with."""
  return lax.optimization_barrier(keys)
