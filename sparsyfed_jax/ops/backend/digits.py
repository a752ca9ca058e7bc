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


def laid_out(leaves: Sequence[jax.Array]) -> list[jax.Array]:
  """Writes arrays to memory as they are searched best; together they have the same entries.

  Small ones become one, and large ones rows that fill registers. What is searched is read from
  there in every pass; else the compiler would lay out anew what comes of each comparison.

  Args:
    leaves: arrays of one dtype.
  """
  small = [leaf for leaf in leaves if leaf.size <= _MOST_SMALL]
  large = [_in_rows(leaf) for leaf in leaves if leaf.size > _MOST_SMALL]
  if len(small) > 1:
    small = [jnp.concatenate([leaf.reshape(-1) for leaf in small])]
  return lax.optimization_barrier(small + large)


def _in_rows(leaf: jax.Array) -> jax.Array:
  is_wide = leaf.ndim > 0 and leaf.shape[-1] % _LANES == 0
  return leaf if is_wide or leaf.size % _LANES else leaf.reshape(-1, _LANES)


def kth_key(keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  """Finds the k-th largest of the keys of all arrays.

  Args:
    keys: arrays of one unsigned dtype, whose highest bit is not set.
    k: () int32, at least 1.

  Returns:
    () array of the keys' dtype; 0 where there are fewer.
  """
  dtype = keys[0].dtype
  found = jnp.zeros((), dtype)
  for shift in reversed(range(0, jnp.iinfo(dtype).bits - 1, _BITS)):
    found = _with_digit(keys, k, found, jnp.asarray(shift, dtype))
  return found


@jax.jit  # traced once for all digits
def _with_digit(
  keys: Sequence[jax.Array], k: jax.Array, found: jax.Array, shift: jax.Array
) -> jax.Array:
  # Of the highest digit the last pivots have the highest bit, and no key reaches them.
  pivots = [found + (jnp.asarray(digit, found.dtype) << shift) for digit in range(1, 2**_BITS)]
  counts = [count_together([leaf >= pivot for pivot in pivots]) for leaf in keys]
  for pivot, *of_leaves in zip(pivots, *counts, strict=True):
    found = jnp.where(sum(of_leaves[1:], of_leaves[0]) >= k, pivot, found)
  return found
