"""Exact counts of the entries that make up a share, although the share is a float32.

float32 cannot hold 0.05, and its product with ten million entries is off by more than the rounding
of the result allows. So a share is read as the number of millionths that it is nearest to, if
float32 tells no difference, and the product is one of integers: exact for every share of up to six
decimals and every count below 2^31. Any other share, such as one on the way of a ramp, is as exact
as float32, and its product is taken for whole where float32 tells no difference.
"""

import chex
import jax
import jax.numpy as jnp

from sparsyfed_jax.ops.backend.choice import short_cut

_MILLION = 10**6
# A share that was computed from decimals has been rounded a few times, by 2^-24 of it at most each.
_ROUNDED = 2.0**-22
_PRODUCT_ROUNDED = 2.0**-20


def num_kept(size: jax.Array | int, density: jax.Array | float) -> jax.Array:
  """Computes how many of `size` entries are left when round(sparsity * size) are pruned.

  Half rounds to even in what is pruned, not in what is kept: 5 of 11 entries are kept at density
  0.5.

  Args:
    size: () integer below 2^31; may be traced.
    density: () 1 - sparsity, in [0, 1]; may be traced.

  Returns:
    () int32.

  Raises:
    AssertionError: an argument is not of rank 0.

  Example:
    >>> from sparsyfed_jax import ops
    >>> int(ops.num_kept(1000, 0.05)), int(ops.num_kept(11, 0.5))
    (50, 5)
  """
  whole, rest = _product(density, size)
  is_odd = (jnp.asarray(size, jnp.int32) - whole) % 2
  return whole + (2 * rest + is_odd > _MILLION).astype(jnp.int32)


def ceil_of_share(size: jax.Array | int, share: jax.Array | float) -> jax.Array:
  """Computes ceil(share * size); arguments, result and errors as in `num_kept`.

  Example:
    >>> from sparsyfed_jax import ops
    >>> int(ops.ceil_of_share(1001, 0.05))
    51
  """
  whole, rest = _product(share, size)
  return whole + (rest > 0).astype(jnp.int32)


def floor_of_share(size: jax.Array | int, share: jax.Array | float) -> jax.Array:
  """Computes floor(share * size); arguments, result and errors as in `num_kept`.

  Example:
    >>> from sparsyfed_jax import ops
    >>> int(ops.floor_of_share(1001, 0.05))
    50
  """
  return _product(share, size)[0]


def _product(share: jax.Array | float, size: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """Computes share * size as a whole number and millionths; () int32 each."""
  chex.assert_rank([share, size], 0)
  share, size = jnp.asarray(share, jnp.float32), jnp.asarray(size, jnp.int32)
  # Written to memory; else a CPU divides anew for every entry that is compared with the result.
  return short_cut(share <= 0, _nothing, _exact_product, share, size)


def _nothing(share: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
  return jnp.int32(0), jnp.int32(0)


def _exact_product(share: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
  scaled = share * _MILLION
  nearest = jnp.round(scaled)
  is_decimal = jnp.abs(scaled - nearest) <= _ROUNDED * scaled
  # Of size = high * 10^6 + low and millionths = thousands * 1000 + ones: no product reaches 2^31.
  millionths = nearest.astype(jnp.int32)
  high, low = size // _MILLION, size % _MILLION
  thousands, ones = (millionths // 1000) * low, (millionths % 1000) * low
  rest = thousands % 1000 * 1000 + ones % _MILLION
  whole = millionths * high + thousands // 1000 + ones // _MILLION
  missing = jnp.where(is_decimal, 0, scaled - nearest) * size.astype(jnp.float32)
  rest = rest + jnp.round(missing).astype(jnp.int32)
  whole, rest = whole + rest // _MILLION, rest % _MILLION
  # As whole as float32 can tell.
  margin = jnp.minimum(_PRODUCT_ROUNDED * scaled * size.astype(jnp.float32), _MILLION // 4)
  margin = jnp.where(is_decimal, 0, margin).astype(jnp.int32)
  whole = whole + (rest >= _MILLION - margin).astype(jnp.int32)
  is_whole = (rest <= margin) | (rest >= _MILLION - margin)
  return whole, jnp.where(is_whole, 0, rest)
