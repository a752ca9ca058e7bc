"""Densities of layers that share one budget of weights."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np


def erk_densities(
  shapes: Sequence[tuple[int, ...]], density: jax.Array | float, of_sparsities: bool = False
) -> jax.Array:
  """Divides a budget of weights by Erdős–Rényi–kernel: small layers stay denser than large.

  A layer's density is in proportion to the sum of its kernel's sides over their product. Layers
  that would be more than dense are made dense and the others scaled up to the budget (Evci et al.,
  Rigging the lottery, ICML 2020, arXiv 1911.11134, section 3; used by FedDST).

  Args:
    shapes: of the layers' kernels.
    density: () of all layers together, in [0, 1]; may be traced.
    of_sparsities: whether a layer's sparsity is in proportion to 1 minus that quotient instead, as
      in the released code of FedDST, which leaves large layers sparser. Layers that would have less
      than nothing are emptied there.

  Returns:
    (num_layers,) float32 densities in [0, 1] whose mean, weighted by size, is `density`.

  Raises:
    AssertionError: the density is not of rank 0.

  Example:
    >>> from sparsyfed_jax import ops
    >>> print(ops.erk_densities([(10, 10), (100, 100)], 0.2).round(3))
    [1.    0.192]
    >>> found = ops.erk_densities([(10, 10), (100, 100)], 0.2, of_sparsities=True)
    >>> [f"{density:.3f}" for density in found]
    ['0.346', '0.199']
  """
  chex.assert_rank(density, 0)
  sizes = np.array([np.prod(shape) for shape in shapes], np.float32)
  raw = np.array([np.sum(shape) for shape in shapes], np.float32) / sizes
  share = jnp.asarray(density, jnp.float32)
  if of_sparsities:
    return 1 - _in_proportion(np.clip(1 - raw, 0, 1), sizes, 1 - share)
  return _in_proportion(raw, sizes, share)


def _in_proportion(raw: np.ndarray, sizes: np.ndarray, share: jax.Array) -> jax.Array:
  """Scales shares of layers, at most to 1 each, so that together they are a share of the whole."""
  budget = share * sizes.sum()
  is_whole = jnp.zeros(len(sizes), bool)
  for _ in sizes:  # each turn makes a layer whole, or changes nothing any more
    left = budget - jnp.sum(jnp.where(is_whole, sizes, 0))
    scale = left / jnp.maximum(jnp.sum(jnp.where(is_whole, 0, raw * sizes)), 1e-9)
    is_whole |= scale * raw >= 1
  return jnp.where(is_whole, 1.0, jnp.clip(scale * raw, 0.0, 1.0))
