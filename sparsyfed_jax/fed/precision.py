"""Values as they arrive when they are sent in fewer bits."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def round_to_wire(tree: Any, dtype: Any) -> Any:
  """Rounds the floats of a pytree to what another dtype can hold, as the wire format does.

  An entry that is not 0 stays so, at the least normal magnitude of `dtype`, because a mask travels
  as zeros; one that `dtype` has no room for becomes infinite.

  Args:
    tree: pytree of arrays; integers stay as they are.
    dtype: `jnp.float32`, `jnp.bfloat16` or `jnp.float16`.
  """
  if dtype == jnp.float32:
    return tree
  least = float(jnp.finfo(dtype).smallest_normal)

  def round_leaf(leaf: jax.Array) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    # The barrier keeps the compiler from taking both conversions away.
    rounded = lax.optimization_barrier(leaf.astype(dtype)).astype(leaf.dtype)
    return jnp.where((leaf != 0) & (rounded == 0), jnp.copysign(least, leaf), rounded)

  return jax.tree.map(round_leaf, tree)
