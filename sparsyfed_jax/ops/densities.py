"""Densities of layers that share one budget of weights."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np


def erk_densities(shapes: Sequence[tuple[int, ...]], density: jax.Array | float) -> jax.Array:
  """Divides a budget of weights by Erdős–Rényi–kernel: small layers stay denser than large.

  A layer's density is in proportion to the sum of its kernel's sides over their product. Layers
  that would be more than dense are made dense and the others scaled up to the budget (Evci et al.,
  Rigging the lottery, ICML 2020, arXiv 1911.11134, section 3; used by FedDST).

  Args:
    shapes: of the layers' kernels.
    density: () of all layers together, in [0, 1]; may be traced.

  Returns:
    (num_layers,) float32 densities in [0, 1] whose mean, weighted by size, is `density`.

  Raises:
    AssertionError: the density is not of rank 0.

  Example:
    >>> from sparsyfed_jax import ops
    >>> print(ops.erk_densities([(10, 10), (100, 100)], 0.2).round(3))
    [1.    0.192]
  """
  chex.assert_rank(density, 0)
  sizes = np.array([np.prod(shape) for shape in shapes], np.float32)
  raw = np.array([np.sum(shape) for shape in shapes], np.float32) / sizes
  budget = jnp.asarray(density, jnp.float32) * sizes.sum()
  is_dense = jnp.zeros(len(shapes), bool)
  for _ in shapes:  # each turn makes a layer dense, or changes nothing any more
    left = budget - jnp.sum(jnp.where(is_dense, sizes, 0))
    scale = left / jnp.maximum(jnp.sum(jnp.where(is_dense, 0, raw * sizes)), 1e-9)
    is_dense |= scale * raw >= 1
  return jnp.where(is_dense, 1.0, jnp.clip(scale * raw, 0.0, 1.0))
