"""Counting, fast on every backend."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.ops.backend.choice import by_platform

_MOST_SMALL = 2**11  # entries of an array that is counted together with others


def count_true(*masks: jax.Array) -> tuple[jax.Array, ...]:
  """Counts the True entries of several masks in one reading of what they come from.

  One variadic reduction: XLA's CPU backend vectorises it, unlike an integer sum. All counts should
  be used; the compiler drops those that are not, and the last one left is an integer sum.

  Args:
    *masks: bool arrays of one shape, fewer than 2^31 entries.

  Returns:
    A () int32 for each mask.
  """
  return tuple(_count_rows([mask.reshape(-1) for mask in masks]))


def count_one(mask: jax.Array) -> jax.Array:
  """Counts the True entries of one mask; () int32."""
  return _count_one_by_row(mask.reshape(-1))


def count_nonzero(x: jax.Array) -> jax.Array:
  """Counts the entries that are not 0; () int32."""
  return count_one(x != 0)


def count_each(
  test: Callable[..., Sequence[jax.Array]], *lists: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
  """Counts, in each of several arrays, the entries that pass tests.

  Small arrays are counted together: a model has many, and a program of few loops compiles sooner.

  Args:
    test: takes an array of each list and returns masks of their shape, entry by entry; all False
      where the arrays are 0.
    *lists: of arrays; those in the same place have one shape, of fewer than 2^31 entries.

  Returns:
    (num_arrays,) int32 for each mask.
  """
  groups: dict[object, list[int]] = {}
  for i, beside in enumerate(zip(*lists, strict=True)):
    is_small = beside[0].size <= _MOST_SMALL
    groups.setdefault(tuple(array.dtype for array in beside) if is_small else i, []).append(i)
  if not groups:
    nothing = jnp.zeros(0, jnp.int32)
    return (nothing,) * len(test(*(nothing for _ in lists)))
  counts = [
    _count_by_row(test(*(_as_rows([arrays[i] for i in group]) for arrays in lists)))
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


def _count_by_row(masks: Sequence[jax.Array]) -> list[jax.Array]:
  return [_count_one_by_row(masks[0])] if len(masks) == 1 else _count_rows(masks)


def _count_one_by_row(mask: jax.Array) -> jax.Array:
  return by_platform(mask, cpu=_count_with_rest, default=_sum)


def _count_with_rest(mask: jax.Array) -> jax.Array:
  true, false = _variadic([mask, ~mask])
  # Equal: the minimum only keeps both in use.
  return jnp.minimum(true, mask.shape[-1] - false)


def _count_rows(masks: Sequence[jax.Array]) -> list[jax.Array]:
  """Counts along the last axis."""
  return by_platform(masks, cpu=_variadic, default=_sums)


def _variadic(masks: Sequence[jax.Array]) -> list[jax.Array]:
  ones = tuple(mask.astype(jnp.int32) for mask in masks)

  def add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(p + q for p, q in zip(a, b, strict=True))

  return list(lax.reduce(ones, (jnp.int32(0),) * len(ones), add, (masks[0].ndim - 1,)))


def _sums(masks: Sequence[jax.Array]) -> list[jax.Array]:
  return list(map(_sum, masks))


def _sum(mask: jax.Array) -> jax.Array:
  return jnp.sum(mask, axis=-1, dtype=jnp.int32)
