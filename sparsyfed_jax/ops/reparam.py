"""Powerpropagation: weights as a power of the trained parameters.

Schwarz et al., Powerpropagation: A sparsity inducing weight reparameterisation, NeurIPS 2021, arXiv
2110.00296; used by SparsyFed, Guastella et al., ICLR 2025, arXiv 2504.05153, section 3.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import custom_derivatives, lax

from sparsyfed_jax.ops.backend.choice import short_cut
from sparsyfed_jax.ops.backend.power import is_by_roots, power_by_roots


@jax.custom_jvp
def powerprop(theta: jax.Array, beta: jax.Array | float) -> jax.Array:
  """Computes `w = sign(theta) |theta|^beta` (Powerpropagation, arXiv 2110.00296).

  The derivative `beta |theta|^(beta-1)` is 1 at theta = 0 for beta = 1 and 0 there for any other
  beta: with beta > 1 a parameter that is 0 gets no gradient and stays 0.

  Args:
    theta: float array.
    beta: () exponent, at least 1; may be traced and differentiated.

  Returns:
    Array like theta.

  Raises:
    AssertionError: beta is not of rank 0.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> theta = jnp.array([-3.0, 0.0, 0.5])
    >>> ops.powerprop(theta, 2.0).tolist()
    [-9.0, 0.0, 0.25]
    >>> jax.grad(lambda theta: ops.powerprop(theta, 2.0).sum())(theta).tolist()
    [6.0, 0.0, 1.0]
  """
  chex.assert_rank(beta, 0)
  # On a CPU. The usual exponents, 1.25 among them, need roots alone.
  beta = jnp.asarray(beta, theta.dtype)
  return short_cut(is_by_roots(beta - 1), _by_roots, _by_logarithms, theta, beta)


def _by_roots(theta: jax.Array, beta: jax.Array) -> jax.Array:
  return theta * power_by_roots(jnp.abs(theta), beta - 1)


def _by_logarithms(theta: jax.Array, beta: jax.Array) -> jax.Array:
  return theta * _power(theta, beta)


def powerprop_inverse(w: jax.Array, beta: jax.Array | float) -> jax.Array:
  """Computes `theta = sign(w) |w|^(1/beta)`, whose `powerprop` is w.

  Args:
    w: float array.
    beta: () exponent, at least 1; may be traced.

  Returns:
    Array like w.

  Raises:
    AssertionError: beta is not of rank 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> [f"{theta:.3f}" for theta in ops.powerprop_inverse(jnp.array([-9.0, 0.0, 0.25]), 2.0)]
    ['-3.000', '0.000', '0.500']
  """
  chex.assert_rank(beta, 0)
  exponent = 1.0 / jnp.asarray(beta, w.dtype)
  magnitude = jnp.exp(exponent * jnp.log(jnp.where(w == 0, 1, jnp.abs(w))))
  return jnp.where((w == 0) | (exponent == 1), w, jnp.sign(w) * magnitude)


def spectral_exponent(theta: jax.Array, num_steps: int = 5) -> jax.Array:
  """Computes the exponent `1 + mean(|theta|) / sigma` of a layer, in place of a chosen beta.

  sigma is the largest singular value of `|theta|` as a matrix, by power iteration. `|theta|` has
  no negative entry, so neither has its first singular vector (Perron & Frobenius), and a vector of
  ones is close to it: a few steps from there are enough, and nothing is random. (SparsyFed's
  release takes one step from a random start.)

  Args:
    theta: (..., out_features) float array, a flax kernel.
    num_steps: of the power iteration.

  Returns:
    () array of theta's dtype without a gradient; 1 where theta is 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> print(ops.spectral_exponent(jnp.eye(4)).round(3))
    1.25
  """
  matrix = lax.stop_gradient(jnp.abs(theta)).reshape(-1, theta.shape[-1])
  tiny = jnp.finfo(theta.dtype).tiny

  def normalised(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), tiny)

  right = normalised(jnp.ones(matrix.shape[1], matrix.dtype))
  for _ in range(num_steps):
    left = normalised(matrix @ right)
    right = normalised(left @ matrix)
  sigma = jnp.linalg.norm(matrix @ right)
  return 1 + jnp.mean(matrix) / jnp.maximum(sigma, tiny)


def spectral_exponent_of_weights(w: jax.Array, num_steps: int = 30) -> jax.Array:
  """Computes the `spectral_exponent` of the parameters whose powers are the weights of a layer.

  It is that e for which `e = spectral_exponent(powerprop_inverse(w, e))`, by iteration.

  Args:
    w: (..., out_features) float array, a flax kernel.
    num_steps: of the iteration.

  Returns:
    () array of w's dtype, between 1 and 2.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> w = jnp.arange(6.0).reshape(2, 3)
    >>> theta = ops.powerprop_inverse(w, ops.spectral_exponent_of_weights(w))
    >>> print(ops.powerprop(theta, ops.spectral_exponent(theta)).round(2))
    [[0. 1. 2.]
     [3. 4. 5.]]
  """

  def step(_: int, exponent: jax.Array) -> jax.Array:
    return spectral_exponent(powerprop_inverse(w, exponent))

  return lax.fori_loop(0, num_steps, step, spectral_exponent(w))


def _power(theta: jax.Array, beta: jax.Array | float) -> jax.Array:
  """|theta|^(beta-1)."""
  exponent = jnp.asarray(beta, theta.dtype) - 1
  magnitude = jnp.minimum(jnp.abs(theta), jnp.finfo(theta.dtype).max)  # 0 * log(inf) is NaN
  power = jnp.exp(exponent * jnp.log(jnp.where(theta == 0, 1, magnitude)))  # pow is slower
  return jnp.where(theta == 0, jnp.where(exponent == 0, 1, 0), power)


@jax.custom_jvp
def _slope(theta: jax.Array, beta: jax.Array | float, w: jax.Array) -> jax.Array:
  """Computes |theta|^(beta-1) from w, so that the gradient needs no other residual."""
  largest = jnp.finfo(theta.dtype).max
  ratio = jnp.minimum(jnp.abs(w), largest) / jnp.minimum(jnp.abs(theta), largest)
  return jnp.where(theta == 0, jnp.where(jnp.asarray(beta) == 1, 1, 0).astype(theta.dtype), ratio)


@_slope.defjvp
def _slope_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  theta, beta, w = primals
  beta = jnp.asarray(beta, theta.dtype)
  theta_dot, beta_dot, _ = tangents  # w follows from the others
  _, slope_dot = jax.jvp(_power, (theta, beta), (theta_dot, beta_dot.astype(theta.dtype)))
  return _slope(theta, beta, w), slope_dot


def _powerprop_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  theta, beta = primals
  theta_dot, beta_dot = tangents
  w = powerprop(theta, beta)
  w_dot = jnp.zeros_like(w)
  if not _is_zero(theta_dot):
    w_dot = jnp.asarray(beta, theta.dtype) * _slope(theta, beta, w) * theta_dot
  if not _is_zero(beta_dot):  # costs a logarithm of every weight
    log = jnp.log(jnp.where(theta == 0, 1, jnp.abs(theta)))
    w_dot = w_dot + w * log * beta_dot.astype(theta.dtype)
  return w, w_dot


def _is_zero(tangent: Any) -> bool:
  return isinstance(tangent, custom_derivatives.SymbolicZero)


powerprop.defjvp(_powerprop_jvp, symbolic_zeros=True)
