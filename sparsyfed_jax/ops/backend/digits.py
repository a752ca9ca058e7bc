"""The k-th largest key digit by digit, for accelerators.

There every operation costs a start, and every iteration of a loop a few: so a digit of four bits is
found at a time, by one reduction that counts how many keys reach each of 15 pivots, without a loop.
Fewer bits a digit take more operations, more take longer to compare than they save.
"""

from collections.abc import Sequence
from functools import partial

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
  if is_wide or leaf.size % _LANES:
    return leaf
  if _LANES % leaf.shape[-1]:
    return leaf.reshape((-1, _LANES) if leaf[0].size % _LANES else (leaf.shape[0], -1))
  return jnp.moveaxis(leaf, 0, -2).reshape(-1, _LANES)


def kth_key(keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  """Finds the k-th largest of the keys of all arrays.

  Args:
    keys: arrays of one unsigned dtype, whose highest bit is not set.
    k: () int32, at least 1.

  Returns:
    () array of the keys' dtype; 0 where there are fewer.
  """
  unsigned = keys[0].dtype
  num_bits = jnp.iinfo(unsigned).bits
  signed = jnp.dtype(f"int{num_bits}")
  found, keys = jnp.zeros((), signed), [leaf.astype(signed) for leaf in keys]
  for shift in reversed(range(0, num_bits - 1, _BITS)):
    num_digits = 2 ** min(_BITS, num_bits - 1 - shift)
    found = _with_digit(keys, k, found, jnp.asarray(shift, signed), num_digits)
  return found.astype(unsigned)


@partial(jax.jit, static_argnums=4)  # traced once for all digits but the first
def _with_digit(
  keys: Sequence[jax.Array], k: jax.Array, found: jax.Array, shift: jax.Array, num_digits: int
) -> jax.Array:
  # Distances from what is found, so that all are compared with constants.
  steps = [jnp.asarray(digit, found.dtype) << shift for digit in range(1, num_digits)]
  counts = [count_together([leaf - found >= step for step in steps]) for leaf in keys]
  reached = [sum(of_leaves[1:], of_leaves[0]) >= k for of_leaves in zip(*counts, strict=True)]
  digit = sum(one.astype(found.dtype) for one in reached)
  return found + (digit << shift)
