"""The k-th largest key digit by digit, for accelerators.

There every operation costs a start, and every iteration of a loop a few: so a digit of several bits
is found at a time, by one reduction that counts how many keys reach each of its pivots, without a
loop. Fewer bits a digit take more operations, more take longer to compare than they save.

On a TPU a pass with 63 pivots takes little longer than one with 15: digits of six bits are six
passes over float32 keys, not eight. With 127 the compiler writes what it compares to memory. Many
keys are searched bit by bit in a loop, as a product with ones counts them in a tenth of the
cycles that a reduction takes.

On a GPU keys are searched in long rows, four bits at a time. XLA counts a row by one block of
threads, and adds few counts up within the kernel that takes the digit from them; where it reduces
columns instead, 15 counts take more memory than its threads share.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.count import (
  LANES,
  count_by_product,
  count_rows,
  count_together,
  in_rows,
  is_worth_a_product,
)

_MOST_BITS, _MOST_BITS_ON_GPU = 6, 4  # of a digit
_MOST_SMALL = 2**14  # entries of an array that is searched as it is, or together with others
_MOST_BESIDE = 2**18  # the same where products count
# Rows on a GPU: as few as keep it busy, where XLA counts one by one kernel (jaxlib 0.10.2).
_FEW_ROWS, _MOST_ADDED = 16, 32
_LONGEST_ROW = 2**14
_SHORT_ROW = 2**10
_Count: TypeAlias = Callable[[Sequence[jax.Array]], list[jax.Array]]


def laid_out(leaves: Sequence[jax.Array]) -> list[jax.Array]:
  """Writes arrays to memory as they are searched best; together they have the same entries.

  Small ones become one, and large ones rows that fill registers. What is searched is read from
  there in every pass; else the compiler would lay out anew what comes of each comparison.

  Args:
    leaves: arrays of one dtype.
  """
  leaves = list(map(_as_computed, leaves))
  if is_worth_a_product(leaves):
    return _in_rows_together(leaves)
  small, large = _small_as_one(leaves)
  return lax.optimization_barrier([*small, *map(_in_registers, large)])


def in_long_rows(leaves: Sequence[jax.Array]) -> list[jax.Array]:
  """Does as `laid_out` for `kth_key_of_rows`: (rows, length) arrays, filled up with zeros."""
  small, large = _small_as_one(leaves)
  return lax.optimization_barrier([_in_long_rows(leaf) for leaf in small + large])


def _in_rows_together(leaves: Sequence[jax.Array]) -> list[jax.Array]:
  # Every array is an operation for each bit, so what is small or of rows already is joined.
  joined, apart = [], []
  for leaf in leaves:
    if leaf.size <= _MOST_BESIDE or leaf.ndim < 2 or leaf.shape[-1] == LANES:
      joined.append(in_rows(leaf))
    else:
      apart.append(_in_registers(leaf))
  return [jnp.concatenate(joined), *apart] if joined else apart


def _small_as_one(leaves: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
  small = [leaf for leaf in leaves if leaf.size <= _MOST_SMALL]
  large = [leaf for leaf in leaves if leaf.size > _MOST_SMALL]
  if len(small) > 1:
    small = [jnp.concatenate([leaf.reshape(-1) for leaf in small])]
  return small, large


def _as_computed(leaf: jax.Array) -> jax.Array:
  # So that the convolution that it comes from writes it besides its own result.
  return lax.optimization_barrier(leaf) if _is_moved(leaf) else leaf


def _is_moved(leaf: jax.Array) -> bool:
  if leaf.ndim < 2 or leaf.size <= _MOST_SMALL:
    return False
  return leaf.shape[-1] < LANES and LANES % leaf.shape[-1] == 0 and leaf.size % LANES == 0


def _in_registers(leaf: jax.Array) -> jax.Array:
  if _is_moved(leaf):
    return jnp.moveaxis(leaf, 0, -2).reshape(-1, LANES)
  if leaf.shape[-1] % LANES == 0 or leaf.size % LANES:
    return leaf
  return leaf.reshape((-1, LANES) if leaf[0].size % LANES else (leaf.shape[0], -1))


def _in_long_rows(leaf: jax.Array) -> jax.Array:
  few = min(_FEW_ROWS, leaf.size // _SHORT_ROW)
  num_rows = max(1, few, -(-leaf.size // _LONGEST_ROW))
  return jnp.pad(leaf.reshape(-1), (0, -leaf.size % num_rows)).reshape(num_rows, -1)


def kth_key(keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  """Finds the k-th largest of the keys of all arrays.

  Args:
    keys: arrays of one unsigned dtype, whose highest bit is not set.
    k: () int32, at least 1.

  Returns:
    () array of the keys' dtype; 0 where there are fewer.
  """
  if is_worth_a_product(keys):
    return _kth_key_by_bits(keys, k)
  return _kth_key(keys, k, count_together, _MOST_BITS)


def _kth_key_by_bits(keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  num_bits = jnp.iinfo(keys[0].dtype).bits - 1

  def with_bit(i: jax.Array, found: jax.Array) -> jax.Array:
    higher = found | (jnp.asarray(1, found.dtype) << (num_bits - 1 - i).astype(found.dtype))
    return jnp.where(count_by_product([leaf >= higher for leaf in keys]) >= k, higher, found)

  return lax.fori_loop(0, num_bits, with_bit, jnp.zeros((), keys[0].dtype))


def kth_key_of_rows(keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  """Does as `kth_key`, for a GPU and keys that are `in_long_rows`."""
  return _kth_key(keys, k, _count_long_rows, _MOST_BITS_ON_GPU)


def _count_long_rows(masks: Sequence[jax.Array]) -> list[jax.Array]:
  by_row = count_rows(masks)
  num_rows = len(masks[0])
  if num_rows > _MOST_ADDED:
    return count_rows(by_row)
  return [sum(counts[1:], counts[0]) for counts in map(list, by_row)]


def _kth_key(keys: Sequence[jax.Array], k: jax.Array, count: _Count, most_bits: int) -> jax.Array:
  unsigned = keys[0].dtype
  num_bits = jnp.iinfo(unsigned).bits
  signed = jnp.dtype(f"int{num_bits}")
  found, keys = jnp.zeros((), signed), [leaf.astype(signed) for leaf in keys]
  below = num_bits - 1  # bits that are not found yet
  for digits_left in reversed(range(1, -(-below // most_bits) + 1)):
    bits = below // digits_left
    below -= bits
    found = _with_digit(keys, k, found, jnp.asarray(below, signed), 2**bits, count)
  return found.astype(unsigned)


@partial(jax.jit, static_argnums=(4, 5))  # traced once for digits of one length
def _with_digit(
  keys: Sequence[jax.Array],
  k: jax.Array,
  found: jax.Array,
  shift: jax.Array,
  num_digits: int,
  count: _Count,
) -> jax.Array:
  # Distances from what is found, so that all are compared with constants.
  steps = [jnp.asarray(digit, found.dtype) << shift for digit in range(1, num_digits)]
  counts = [count([leaf - found >= step for step in steps]) for leaf in keys]
  reached = [sum(of_leaves[1:], of_leaves[0]) >= k for of_leaves in zip(*counts, strict=True)]
  digit = sum(one.astype(found.dtype) for one in reached)
  return found + (digit << shift)
