"""The product of a dense layer, whose gradient is fast for small batches."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.choice import by_platform

# Up to these, a kernel's gradient is a sum of outer products: one loop that ends in the update,
# where a matrix product would be written first and read again.
_MOST_ROWS, _MOST_FEATURES = 20, 200


def dot_general(
  lhs: jax.Array,
  rhs: jax.Array,
  dimension_numbers: Any,
  precision: Any = None,
  preferred_element_type: Any = None,
  **others: Any,
) -> jax.Array:
  """Multiplies like `jax.lax.dot_general`, whose arguments and result it has.

  Fits `flax.linen.Dense(dot_general=...)`. Lowered for CPUs, the gradient of the kernel is a sum of
  outer products where the rows are few.
  """
  is_dense = (
    rhs.ndim == 2
    and dimension_numbers == (((lhs.ndim - 1,), (0,)), ((), ()))
    and preferred_element_type is None
    and not others
  )
  num_rows = math.prod(lhs.shape[:-1])
  # Sums in 16 bits would lose digits that matrix products keep.
  if (
    not is_dense
    or not 1 <= num_rows <= _MOST_ROWS
    or rhs.shape[1] > _MOST_FEATURES
    or jnp.finfo(lhs.dtype).bits < 32
  ):
    return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type, **others)
  product = _product(lhs.reshape(num_rows, rhs.shape[0]), rhs, precision)
  return product.reshape(*lhs.shape[:-1], rhs.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, w: jax.Array, precision: Any) -> jax.Array:
  return jnp.matmul(x, w, precision=precision)


def _forward(x: jax.Array, w: jax.Array, precision: Any) -> Any:
  return _product(x, w, precision), (x, w)


def _backward(precision: Any, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, w = residuals
  of_kernel = by_platform(
    x, cotangent, cpu=_outer_products, default=_matrix_product, settings=(precision,)
  )
  return jnp.matmul(cotangent, w.T, precision=precision), of_kernel


def _outer_products(x: jax.Array, cotangent: jax.Array, precision: Any) -> jax.Array:
  return functools.reduce(jnp.add, map(jnp.outer, x, cotangent))


def _matrix_product(x: jax.Array, cotangent: jax.Array, precision: Any) -> jax.Array:
  return jnp.matmul(x.T, cotangent, precision=precision)


_product.defvjp(_forward, _backward)
