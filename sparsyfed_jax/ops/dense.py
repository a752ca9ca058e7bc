"""The product of a dense layer, fast where every client has a kernel of its own."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

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

  Fits `flax.linen.Dense(dot_general=...)`. On a CPU the gradient of a small kernel is a product
  whose first factor was transposed before: XLA's library for small products knows no other.
  """
  is_dense = (
    rhs.ndim == 2
    and dimension_numbers == (((lhs.ndim - 1,), (0,)), ((), ()))
    and rhs.size <= _LARGEST_KERNEL
    and preferred_element_type is None
    and not others
  )
  if not is_dense or jax.default_backend() != "cpu":
    return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type, **others)
  return _product(lhs.reshape(-1, rhs.shape[0]), rhs, precision).reshape(
    *lhs.shape[:-1], rhs.shape[1]
  )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, w: jax.Array, precision: Any) -> jax.Array:
  return jnp.matmul(x, w, precision=precision)


def _forward(x: jax.Array, w: jax.Array, precision: Any) -> Any:
  return _product(x, w, precision), (x, w)


def _backward(precision: Any, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, w = residuals
  transposed = lax.optimization_barrier(x.T)
  return (
    jnp.matmul(cotangent, w.T, precision=precision),
    jnp.matmul(transposed, cotangent, precision=precision),
  )


_product.defvjp(_forward, _backward)
