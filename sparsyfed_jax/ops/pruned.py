"""Layers whose activations are pruned in the backward pass.

SparsyFed (arXiv 2504.05153), section 3: the forward product uses the whole input. For the weight
gradient the input is kept without its small entries, pruned to the sparsity of the layer's weights.
The input gradient needs the weights alone and stays exact.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.choice import by_platform
from sparsyfed_jax.ops.backend.count import count_nonzero, count_one
from sparsyfed_jax.ops.rows import FIRST_AXIS, Where, of_examples
from sparsyfed_jax.ops.select import is_at_least, kth_magnitude
from sparsyfed_jax.ops.share import ceil_of_share


def prune_residual(
  op: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Makes a bilinear operation save only the large entries of its first argument for backward.

  Args:
    op: op(x, w), linear in each argument: a matrix product, a convolution.

  Returns:
    pruned(x, w, threshold): its value and its gradient with respect to x are those of op(x, w); its
    gradient with respect to w is that of `op(where(|x| >= threshold, x, 0), w)`. `threshold` is a
    () array of x's dtype without a gradient of its own; 0 prunes nothing. It raises an
    AssertionError where the threshold has another rank or dtype.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> x, w = jnp.array([[1.0, -2.0], [0.5, 3.0]]), jnp.ones((2, 1))
    >>> product = ops.prune_residual(jnp.matmul)
    >>> jax.grad(lambda w: product(x, w, jnp.array(2.0)).sum())(w).tolist()
    [[0.0], [1.0]]
  """

  @jax.custom_vjp
  def pruned(x: jax.Array, w: jax.Array, threshold: jax.Array) -> jax.Array:
    chex.assert_rank(threshold, 0)
    return op(x, w)

  def forward(x: jax.Array, w: jax.Array, threshold: jax.Array) -> Any:
    chex.assert_rank(threshold, 0)
    x, threshold = by_platform(x, threshold, gpu=_together, default=_as_they_are)
    return op(x, w), (_prune(x, threshold), w, threshold)

  def backward(residuals: Any, cotangent: jax.Array) -> Any:
    kept, w, threshold = residuals
    _, vjp = jax.vjp(op, kept, w)  # the compiler drops the forward product, which is unused
    return *vjp(cotangent), jnp.zeros_like(threshold)

  pruned.defvjp(forward, backward)
  return pruned


def _as_they_are(x: jax.Array, threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
  return x, threshold


def _together(x: jax.Array, threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
  # The compiler might keep what it searches until the backward pass, of all layers at once.
  return lax.optimization_barrier((x, threshold))


def _prune(x: jax.Array, threshold: jax.Array) -> jax.Array:
  return jnp.where(is_at_least(x, threshold), x, 0)


def activation_threshold(
  x: jax.Array,
  w: jax.Array,
  valid: jax.Array,
  floor: jax.Array | float = 0.0,
  rows: Where = FIRST_AXIS,
) -> jax.Array:
  """Finds the magnitude from which on a layer's input is kept at the density of its weights.

  Args:
    x: (batch, ...) float input of the layer.
    w: weights of the layer.
    valid: (batch,) bool; False for padding, which counts neither in k nor in the ranking.
    floor: () least share to keep.
    rows: where the batch is in x, if not on the first axis; None if x is the same for all examples.

  Returns:
    () array of x's dtype: the k-th largest magnitude among the n entries of valid examples. k is
    ceil(n * nonzeros(w) / size(w)), or ceil(n * floor) if that is more; both exact.

  Raises:
    AssertionError: `valid` is not (batch,) bool.
    ValueError: nobody knows where the batch is in x.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> x, w = jnp.array([[4.0, -3.0, 2.0, 1.0]]), jnp.array([1.0, 0.0])
    >>> float(ops.activation_threshold(x, w, jnp.array([True])))
    3.0
  """
  num_entries = _count_entries(x, valid, rows)
  k = _ceil_of_share(num_entries, count_nonzero(w), w.size)
  return _threshold_of(x, valid, jnp.maximum(k, ceil_of_share(num_entries, floor)), rows)


def share_threshold(
  x: jax.Array, valid: jax.Array, share: jax.Array | float, rows: Where = FIRST_AXIS
) -> jax.Array:
  """Finds the magnitude from which on a given share of a layer's input is kept.

  SWAT (Raihan & Aamodt, NeurIPS 2020, arXiv 2001.01969) keeps the same share in every layer.

  Args:
    x: (batch, ...) float input of the layer.
    valid: (batch,) bool; False for padding, which counts neither in k nor in the ranking.
    share: () to keep, in [0, 1]; may be traced.
    rows: where the batch is in x, if not on the first axis; None if x is the same for all examples.

  Returns:
    () array of x's dtype: the k-th largest magnitude among the n entries of valid examples, where k
    is ceil(n * share).

  Raises:
    AssertionError: `valid` is not (batch,) bool, or the share is not of rank 0.
    ValueError: nobody knows where the batch is in x.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> float(ops.share_threshold(jnp.array([[4.0, -3.0, 2.0, 1.0]]), jnp.array([True]), 0.25))
    4.0
  """
  k = ceil_of_share(_count_entries(x, valid, rows), share)
  return _threshold_of(x, valid, k, rows)


def _count_entries(x: jax.Array, valid: jax.Array, rows: Where) -> jax.Array:
  chex.assert_rank(valid, 1)
  if rows is None:
    return jnp.int32(x.size)
  return count_one(valid) * (x.size // valid.shape[0])


def _threshold_of(x: jax.Array, valid: jax.Array, k: jax.Array, rows: Where) -> jax.Array:
  is_counted = of_examples(valid, x.shape, rows)
  return kth_magnitude(x if is_counted is None else jnp.where(is_counted, x, 0), k)


def _ceil_of_share(n: jax.Array, part: jax.Array, whole: int) -> jax.Array:
  """ceil(n * part / whole) in int32, although n * part may not fit."""
  guess = (n.astype(jnp.float32) * (part.astype(jnp.float32) / whole)).astype(jnp.int32)
  # Both products wrap around alike, and what they differ by is small.
  missing = n * part - guess * whole
  return guess - (-missing // whole)
