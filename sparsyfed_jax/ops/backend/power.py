"""Powers of positive numbers, fast on every backend.

Every weight is raised to a power in every step, which on a CPU is what SparsyFed costs most: XLA's
logarithm and exponential there spend half of their time on cases that do not occur here.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.choice import by_platform

_SQRT_HALF = 0x3F3504F3  # bits of sqrt(1/2), from which on mantissas are taken
_MANTISSA_BITS = 23
_BIAS = 127
# ln(1 + f) = f - f^2 / 2 + f^3 P(f) for 1 + f between sqrt(1/2) and sqrt(2), with the coefficients
# of logf in the Cephes library, https://www.netlib.org/cephes/.
_LN = (
  3.3333331174e-1,
  -2.4999993993e-1,
  2.0000714765e-1,
  -1.6668057665e-1,
  1.4249322787e-1,
  -1.2420140846e-1,
  1.1676998740e-1,
  -1.1514610310e-1,
  7.0376836292e-2,
)
_LOG2_E = 1.4426950408889634
# 2^r = sum of (r ln 2)^n / n! for |r| <= 1/2.
_EXP2 = (
  1.0,
  0.6931471805599453,
  0.2402265069591007,
  0.05550410866482158,
  0.009618129107628477,
  0.0013333558146428443,
  0.00015403530393381606,
)


@jax.custom_jvp
def positive_power(x: jax.Array, exponent: jax.Array) -> jax.Array:
  """Computes x^exponent.

  On a CPU by polynomials, for numbers of up to 32 bits: x^(exponent) = 2^(exponent log2 x).

  Args:
    x: float array, positive and finite. Of float32's subnormals only the order is right.
    exponent: () of x's dtype.

  Returns:
    Array like x, to 3e-7 of its value where |exponent log2 x| is at most 1, and |exponent log2 x|
    times that elsewhere; exactly 1 for exponent 0; on a CPU infinity from 2.4e38 on and 0 instead
    of subnormals.
  """
  if jnp.finfo(x.dtype).bits > 32:
    return _plain(x, exponent)
  return by_platform(x, exponent, cpu=_by_polynomials, default=_plain)


def _plain(x, exponent):
  return jnp.exp(exponent * jnp.log(x))  # pow itself vectorises nowhere


def _by_polynomials(x, exponent):
  power = _exp2(exponent.astype(jnp.float32) * _log2(x.astype(jnp.float32)))
  return power.astype(x.dtype)


@positive_power.defjvp
def _positive_power_jvp(
  primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  (x, exponent), (x_dot, exponent_dot) = primals, tangents
  power = positive_power(x, exponent)
  return power, power * (exponent * x_dot / x + jnp.log(x) * exponent_dot)


def is_by_roots(exponent: jax.Array) -> jax.Array:
  """Tells whether `power_by_roots` computes this power; () bool."""
  return (exponent >= 0) & (exponent < 2) & (4 * exponent == jnp.floor(4 * exponent))


def power_by_roots(x: jax.Array, exponent: jax.Array) -> jax.Array:
  """Computes x^exponent by square roots, which takes a third of the time of `positive_power`.

  Args:
    x: float array, not negative; 0^0 is 1.
    exponent: () of x's dtype: 0, 1/4, 1/2 and so on up to 7/4.

  Returns:
    Array like x, to a few units in the last place.
  """
  quarters = (4 * exponent).astype(jnp.int32)
  root = jnp.sqrt(x)
  power = jnp.where(quarters & 1, jnp.sqrt(root), 1)
  power *= jnp.where(quarters & 2, root, 1)
  return power * jnp.where(quarters & 4, x, 1)


def _log2(x: jax.Array) -> jax.Array:
  bits = lax.bitcast_convert_type(x, jnp.int32)
  order = (bits - _SQRT_HALF) >> _MANTISSA_BITS
  f = lax.bitcast_convert_type(bits - (order << _MANTISSA_BITS), jnp.float32) - 1
  ln = f + f * f * (f * _polynomial(_LN, f) - 0.5)
  return order.astype(jnp.float32) + ln * _LOG2_E


def _exp2(y: jax.Array) -> jax.Array:
  y = jnp.clip(y, -_BIAS, _BIAS + 1)  # whose scales are 0 and infinity
  whole = jnp.floor(y + 0.5)
  scale = (whole.astype(jnp.int32) + _BIAS) << _MANTISSA_BITS
  return _polynomial(_EXP2, y - whole) * lax.bitcast_convert_type(scale, jnp.float32)


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
  value = jnp.full_like(x, coefficients[-1])
  for coefficient in coefficients[-2::-1]:
    value = coefficient + x * value
  return value
