"""Powers by square roots, which vectorise on a CPU where logarithms do not.

Every weight is raised to a power in every step, which on a CPU is what SparsyFed costs most.
"""

import jax
import jax.numpy as jnp


def is_by_roots(exponent: jax.Array) -> jax.Array:
  """Tells whether `power_by_roots` computes this power; () bool."""
  return (exponent >= 0) & (exponent < 2) & (4 * exponent == jnp.floor(4 * exponent))


def power_by_roots(x: jax.Array, exponent: jax.Array) -> jax.Array:
  """Computes x^exponent.

  Args:
    x: float array, not negative; 0^0 is 1.
    exponent: () of x's dtype: 0, 1/4, 1/2 and so on up to 7/4.

  Returns:
    Array like x, to a few units in the last place.
  """
  quarters = (4 * exponent).astype(jnp.int32)
  root = jnp.sqrt(x)
  power = jnp.where(quarters & 1, jnp.sqrt(root), 1)
  power *= jnp.where(quarters & 2, root, 1)
  return power * jnp.where(quarters & 4, x, 1)
