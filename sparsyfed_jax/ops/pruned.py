"""Layers whose activations are pruned in the backward pass.

SparsyFed (arXiv 2504.05153), section 3: the forward product uses the whole input; what is kept for
the weight gradient is the input without its small entries, pruned to the layer's own sparsity. The
input gradient needs the weights alone and stays exact.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsyfed_jax.ops.select import is_at_least, kth_magnitude


def prune_residual(
  op: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Makes a bilinear operation keep only the large entries of its first argument for backward.

  Args:
    op: op(x, w), linear in each argument: a matrix product, a convolution.

  Returns:
    pruned(x, w, threshold): its value and its gradient with respect to x are those of op(x, w); its
    gradient with respect to w is that of op(where(|x| >= threshold, x, 0), w). `threshold` is a
    scalar of x's dtype without a gradient of its own; 0 prunes nothing.
  """

  @jax.custom_vjp
  def pruned(x: jax.Array, w: jax.Array, threshold: jax.Array) -> jax.Array:
    return op(x, w)

  def forward(x: jax.Array, w: jax.Array, threshold: jax.Array) -> Any:
    kept = jnp.where(is_at_least(x, threshold), x, 0)
    return op(x, w), (kept, w, threshold)

  def backward(residuals: Any, cotangent: jax.Array) -> Any:
    kept, w, threshold = residuals
    _, vjp = jax.vjp(op, kept, w)  # its forward product is unused, and the compiler drops it
    return *vjp(cotangent), jnp.zeros_like(threshold)

  pruned.defvjp(forward, backward)
  return pruned


def activation_threshold(
  x: jax.Array, density: jax.Array, valid: jax.Array, floor: jax.Array | float
) -> jax.Array:
  """Finds the magnitude from which on a batch's activations are kept.

  Args:
    x: (batch, ...) float activations.
    density: () share of this layer's weights that are not 0.
    valid: (batch,) bool; False for padding, which counts neither in k nor in the ranking.
    floor: () least share to keep.

  Returns:
    () array of x's dtype: the k-th largest magnitude of the valid examples, where k is
    ceil(max(density, floor) * number of their entries), computed in float32.
  """
  num_entries = jnp.sum(valid, dtype=jnp.float32) * (x.size // x.shape[0])
  k = jnp.ceil(jnp.maximum(density, floor) * num_entries).astype(jnp.int32)
  rows = valid.reshape(-1, *[1] * (x.ndim - 1))
  return kth_magnitude(jnp.where(rows, x, 0), k)
