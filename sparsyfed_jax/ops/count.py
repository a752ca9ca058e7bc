"""Counting, fast on every backend."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def count_true(*masks: jax.Array) -> tuple[jax.Array, ...]:
  """Counts the True entries of several masks in one reading of what they come from.

  One variadic reduction: XLA's CPU backend vectorises it, unlike an integer sum.

  Args:
    *masks: bool arrays of one shape, fewer than 2^31 entries.

  Returns:
    A () int32 for each mask.
  """
  ones = tuple(mask.reshape(-1).astype(jnp.int32) for mask in masks)

  def add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(p + q for p, q in zip(a, b, strict=True))

  return tuple(lax.reduce(ones, (jnp.int32(0),) * len(ones), add, (0,)))


def count_nonzero(x: jax.Array) -> jax.Array:
  """Counts the entries that are not 0; () int32."""
  # The zeros ride along, because a reduction of one operand would be an integer sum again.
  return count_true(x != 0, x == 0)[0]
