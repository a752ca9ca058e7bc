"""Counting of True entries.

XLA's CPU backend vectorises a reduction of several arrays at once, unlike a single integer sum, and
small arrays are counted together. Accelerators count array by array, each in its shape. On a TPU a
product with ones counts one mask of a large array: a reduction is estimated at twenty cycles for
each register that it reads, a product at one (libtpu 0.0.52). Compiling it takes half a second, so
that what is counted once a round stays a reduction.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.ops.backend.choice import by_platform

_MOST_SMALL = 2**11  # entries of an array that is counted together with others
# Masks of one reduction on a GPU: where it reduces columns its threads share 4,224 of 49,152 bytes
# for each, and the compiler does not look (jaxlib 0.10.2).
_MOST_ON_GPU = 8
_WORTH_A_PRODUCT = 2**19  # entries from which on a product is faster on a TPU
_MOST_EXACT = 2**24  # ones that float32 adds up
LANES, SUBLANES = 128, 8  # of a TPU's registers


def count_true(*masks: jax.Array) -> tuple[jax.Array, ...]:
  """Counts the True entries of several masks in one pass over the data they are computed from.

  All counts should be used: the compiler drops those that are not, and the last one left is an
  integer sum, which is slow on a CPU.

  Args:
    *masks: bool arrays of one shape, fewer than 2^31 entries.

  Returns:
    A () int32 for each mask.

  Raises:
    AssertionError: the masks differ in shape, or are not bool.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> x = jnp.array([3.0, -1.0, 0.0, 2.0])
    >>> [int(count) for count in ops.count_true(x > 0, x < 0)]
    [2, 1]
  """
  chex.assert_equal_shape(masks)
  chex.assert_type(masks, bool)
  return tuple(by_platform(masks, cpu=_count_flat, default=count_together))


def count_one(mask: jax.Array) -> jax.Array:
  """Counts the True entries of one mask.

  Args:
    mask: bool array of fewer than 2^31 entries.

  Returns:
    () int32.

  Raises:
    AssertionError: the mask is not bool.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> int(ops.count_one(jnp.array([True, False, True])))
    2
  """
  chex.assert_type(mask, bool)
  if not is_worth_a_product([mask]):
    return _count_one(mask)
  return by_platform(mask, cpu=_count_one, gpu=_count_one, default=_count_by_product)


def _count_one(mask: jax.Array) -> jax.Array:
  return count_true(mask)[0]


def count_nonzero(x: jax.Array) -> jax.Array:
  """Counts the entries that are not 0.

  Args:
    x: array of fewer than 2^31 entries; a NaN counts.

  Returns:
    () int32.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> int(ops.count_nonzero(jnp.array([[0.0, 2.0], [-1.0, -0.0]])))
    2
  """
  return count_one(x != 0)


def count_each(
  test: Callable[..., Sequence[jax.Array]], *lists: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
  """Counts the entries of each of several arrays that pass tests.

  Small arrays are counted together: a model has many, and a program with few loops compiles faster.

  Args:
    test: takes an array of each list and returns masks of their shape, entry by entry; all False
      where the arrays are 0.
    *lists: of arrays; those in the same place have one shape, of fewer than 2^31 entries.

  Returns:
    (num_arrays,) int32 for each mask.

  Raises:
    ValueError: the lists differ in length.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> leaves = [jnp.array([1.0, 0.0]), jnp.array([2.0, -3.0, 0.0])]
    >>> nonzero, positive = ops.count_each(lambda leaf: [leaf != 0, leaf > 0], leaves)
    >>> nonzero.tolist(), positive.tolist()
    ([1, 2], [1, 1])
  """
  if not list(zip(*lists, strict=True)):
    nothing = jnp.zeros(0, jnp.int32)
    return (nothing,) * len(test(*(nothing for _ in lists)))
  return by_platform(*lists, cpu=_count_in_groups, default=_count_in_turn, settings=(test,))


def count_together(masks: Sequence[jax.Array]) -> list[jax.Array]:
  """Counts the True entries of masks of one shape, which it leaves in shape.

  Accelerators would copy a large array to flatten it.

  Args:
    masks: bool arrays of one shape.

  Returns:
    A () int32 for each mask.
  """
  if len(masks) == 1:
    return [jnp.sum(masks[0], dtype=jnp.int32)]
  if len(masks) <= _MOST_ON_GPU:
    return _count_in_shape(masks)
  return list(by_platform(masks, gpu=_count_in_parts, default=_count_in_shape))


def is_worth_a_product(arrays: Sequence[jax.Array]) -> bool:
  """Tells whether a TPU counts arrays faster by `count_by_product`, and does so exactly."""
  num_rows = max(array.size // max(1, array.shape[-1] if array.ndim else 1) for array in arrays)
  return sum(array.size for array in arrays) >= _WORTH_A_PRODUCT and num_rows <= _MOST_EXACT


def count_by_product(masks: Sequence[jax.Array]) -> jax.Array:
  """Counts the True entries of all masks together, for a TPU.

  Args:
    masks: bool arrays of which `is_worth_a_product` is True.

  Returns:
    () int32.
  """
  return sum(map(_count_by_product, masks[1:]), _count_by_product(masks[0]))


def in_rows(array: jax.Array) -> jax.Array:
  """Makes (rows, lanes) of an array, filled up with zeros."""
  return jnp.pad(array.reshape(-1), (0, -array.size % LANES)).reshape(-1, LANES)


def _count_by_product(mask: jax.Array) -> jax.Array:
  mask = in_rows(mask) if mask.ndim < 2 else mask
  leading = mask.shape[:-1]
  # As many equal rows as fill registers: of a single one the compiler would make a reduction.
  ones = jnp.ones((SUBLANES, *leading), jnp.bfloat16)
  contracted = tuple(range(1, mask.ndim)), tuple(range(mask.ndim - 1))
  sums = lax.dot_general(
    ones, mask.astype(jnp.bfloat16), (contracted, ((), ())), preferred_element_type=jnp.float32
  )
  return jnp.sum(sums[0].astype(jnp.int32))


def _count_in_parts(masks: Sequence[jax.Array]) -> list[jax.Array]:
  parts = [masks[i : i + _MOST_ON_GPU] for i in range(0, len(masks), _MOST_ON_GPU)]
  return [count for part in parts for count in _count_in_shape(part)]


def _count_in_shape(masks: Sequence[jax.Array]) -> list[jax.Array]:
  return _variadic(masks, range(masks[0].ndim))


def _count_in_turn(*lists_and_test: Any) -> tuple[jax.Array, ...]:
  *lists, test = lists_and_test
  counts = [count_together(test(*arrays)) for arrays in zip(*lists, strict=True)]
  return tuple(jnp.stack(of_mask) for of_mask in zip(*counts, strict=True))


def _count_in_groups(*lists_and_test: Any) -> tuple[jax.Array, ...]:
  *lists, test = lists_and_test
  groups: dict[object, list[int]] = {}
  for i, beside in enumerate(zip(*lists, strict=True)):
    is_small = beside[0].size <= _MOST_SMALL
    groups.setdefault(tuple(array.dtype for array in beside) if is_small else i, []).append(i)
  counts = [
    count_rows(test(*(_as_rows([arrays[i] for i in group]) for arrays in lists)))
    for group in groups.values()
  ]
  places = np.argsort(np.concatenate(list(groups.values())))
  return tuple(
    jnp.concatenate([jnp.atleast_1d(count) for count in of_mask])[places]
    for of_mask in zip(*counts, strict=True)
  )


def _as_rows(arrays: Sequence[jax.Array]) -> jax.Array:
  if len(arrays) == 1:
    return arrays[0].reshape(-1)
  width = max(array.size for array in arrays)
  return jnp.stack([jnp.pad(array.reshape(-1), (0, width - array.size)) for array in arrays])


def _count_flat(masks: Sequence[jax.Array]) -> list[jax.Array]:
  return count_rows([mask.reshape(-1) for mask in masks])


def count_rows(masks: Sequence[jax.Array]) -> list[jax.Array]:
  """Counts along the last axis, by one reduction; int32 arrays without it.

  Args:
    masks: bool arrays of one shape, or counts that are added up.
  """
  last = (masks[0].ndim - 1,)
  if len(masks) > 1:
    return _variadic(masks, last)
  true, false = _variadic([masks[0], ~masks[0]], last)
  # Equal: the minimum only keeps both in use.
  return [jnp.minimum(true, masks[0].shape[-1] - false)]


def _variadic(masks: Sequence[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
  ones = tuple(mask.astype(jnp.int32) for mask in masks)

  def add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(p + q for p, q in zip(a, b, strict=True))

  return list(lax.reduce(ones, (jnp.int32(0),) * len(ones), add, axes))
