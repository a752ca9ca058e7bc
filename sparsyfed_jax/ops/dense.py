"""The product of a dense layer, with a gradient that is fast for small batches and kernels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Up to these, a kernel's gradient is a sum of outer products: one loop that ends in the update,
# where a matrix product would be written first and read again.
_MOST_ROWS, _MOST_FEATURES = 20, 200
_LARGEST_KERNEL = 2**16  # with more, transposing takes as long as it saves


def dot_general(
  lhs: jax.Array,
  rhs: jax.Array,
  dimension_numbers: Any,
  precision: Any = None,
  preferred_element_type: Any = None,
  **others: Any,
) -> jax.Array:
  """Multiplies like `jax.lax.dot_general`, whose arguments and result it has.

  Fits `flax.linen.Dense(dot_general=...)`. On a CPU the gradient of the kernel is, with few
  rows, a sum of outer products; else of a small kernel a product whose first factor was transposed
  before: XLA's library for small products knows no other.
  """
  is_dense = (
    rhs.ndim == 2
    and dimension_numbers == (((lhs.ndim - 1,), (0,)), ((), ()))
    and preferred_element_type is None
    and not others
  )
  if not is_dense or jax.default_backend() != "cpu":
    return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type, **others)
  return _product(lhs.reshape(-1, rhs.shape[0]), rhs, precision).reshape(
    *lhs.shape[:-1], rhs.shape[1]
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, w: jax.Array, precision: Any) -> jax.Array:
  return jnp.matmul(x, w, precision=precision)


def _forward(x: jax.Array, w: jax.Array, precision: Any) -> Any:
  return _product(x, w, precision), (x, w)


def _backward(precision: Any, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, w = residuals
  of_input = jnp.matmul(cotangent, w.T, precision=precision)
  return of_input, _of_kernel(x, cotangent, precision)


def _of_kernel(x: jax.Array, cotangent: jax.Array, precision: Any) -> jax.Array:
  rows, features = cotangent.shape
  # Sums in 16 bits would lose digits that matrix products keep.
  if 1 <= rows <= _MOST_ROWS and features <= _MOST_FEATURES and jnp.finfo(x.dtype).bits >= 32:
    return functools.reduce(jnp.add, map(jnp.outer, x, cotangent))
  if x.shape[1] * features <= _LARGEST_KERNEL:
    x = lax.optimization_barrier(x.T).T
  return jnp.matmul(x.T, cotangent, precision=precision)


_product.defvjp(_forward, _backward)
