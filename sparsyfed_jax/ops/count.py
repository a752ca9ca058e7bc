"""Counting, fast on every backend."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def count_true(*masks: jax.Array) -> tuple[jax.Array, ...]:
  """Counts the True entries of several masks in one reading of what they come from.

  One variadic reduction: XLA's CPU backend vectorises it, unlike an integer sum. All counts should
  be used; the compiler drops those that are not, and the last one left is an integer sum.

  Args:
    *masks: bool arrays of one shape, fewer than 2^31 entries.

  Returns:
    A () int32 for each mask.
  """
  ones = tuple(mask.reshape(-1).astype(jnp.int32) for mask in masks)

  def add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(p + q for p, q in zip(a, b, strict=True))

  return tuple(lax.reduce(ones, (jnp.int32(0),) * len(ones), add, (0,)))


def count_one(mask: jax.Array) -> jax.Array:
  """Counts the True entries of one mask; () int32."""
  true, false = count_true(mask, ~mask)
  return jnp.minimum(true, mask.size - false)  # equal: the minimum only keeps both in use


def count_nonzero(x: jax.Array) -> jax.Array:
  """Counts the entries that are not 0; () int32."""
  return count_one(x != 0)
