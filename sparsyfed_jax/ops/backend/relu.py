"""ReLU that a TPU differentiates by its result, which the next layer keeps anyway.

The compiler would pack a bit for each entry and unpack it again, and in float32 compare once more.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.choice import by_platform


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
  """Computes max(x, 0), whose gradient at 0 is 0, as `jax.nn.relu` does.

  Args:
    x: float array.

  Returns:
    Array like x.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> jax.grad(lambda x: ops.relu(x).sum())(jnp.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 1.0]
  """
  return jax.nn.relu(x)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  y = relu(x)
  return y, y


def _backward(y: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
  return (by_platform(y, cotangent, cpu=_pass, gpu=_pass, default=_pass_by_result),)


relu.defvjp(_forward, _backward)


def _pass(y: jax.Array, cotangent: jax.Array) -> jax.Array:
  return jnp.where(y > 0, cotangent, 0)


def _pass_by_result(y: jax.Array, cotangent: jax.Array) -> jax.Array:
  return _pass(lax.optimization_barrier(y), cotangent)
