"""Values in 8 or 4 bits: signs and numbers of levels, which two numbers of a whole array fix.

An entry that is not 0 never becomes 0, because a mask travels as zeros, and 0 needs no level. So
the levels of magnitudes go from the least of them that is not 0 to the largest, in equal steps:
127 levels in 8 bits, 7 in 4. Both ends are hit exactly, so what is on the levels stays there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.types import Key

BITS = (8, 4)
_TINY = float(np.finfo(np.float32).smallest_normal)


class Levels(NamedTuple):
  """An array in few bits.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> levels = quantise(jnp.float32([0, 1, -8]), 4, jax.random.key(0))
    >>> levels.codes.tolist(), float(levels.largest)
    ([0, 1, 15], 8.0)
  """

  # (...) uint8: 0 where the entry is 0, else the level's number from 1, and in the bit above
  # those of the number whether the entry is negative
  codes: jax.Array
  least: jax.Array  # () float32, the magnitude of the first level; 0 where all entries are
  largest: jax.Array  # () float32, that of the last one


def quantise(x: jax.Array, bits: int, key: Key | None = None) -> Levels:
  """Rounds an array to levels, at random so that each entry's expectation is the entry.

  Alistarh et al., QSGD, NeurIPS 2017, arXiv 1610.02132, with levels that begin above 0.

  Args:
    x: (...) float32. What is not finite leaves no finite entry.
    bits: 8 or 4, of an entry.
    key: of the chance; None rounds to the nearest level.

  Raises:
    ValueError: another number of bits.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> x = jnp.linspace(0, 1, 1000)
    >>> error = dequantise(quantise(x, 8, jax.random.key(0)), 8) - x
    >>> bool(jnp.max(jnp.abs(error)) < 1 / 126), bool(abs(jnp.mean(error)) < 1e-3)
    (True, True)
  """
  last = num_levels(bits) - 1
  # Of subnormals, which backends flush to 0, bits tell.
  is_there = lax.bitcast_convert_type(x, jnp.uint32) << jnp.uint32(1) != 0
  magnitude = jnp.maximum(jnp.abs(x), _TINY)
  largest = jnp.max(magnitude, initial=0, where=is_there)
  least = jnp.minimum(jnp.min(magnitude, initial=jnp.inf, where=is_there), largest)
  span = largest - least
  place = (magnitude - least) * jnp.where(span > 0, last / jnp.where(span > 0, span, 1), 0)
  if key is None:
    number = jnp.round(place)
  else:
    whole = jnp.floor(place)
    number = whole + (jax.random.uniform(key, x.shape) < place - whole).astype(jnp.float32)
  number = jnp.where(jnp.isfinite(number), jnp.clip(number, 0, last), 0)
  number = jnp.where(magnitude >= largest, last, number).astype(jnp.uint8) + jnp.uint8(1)
  sign = jnp.signbit(x).astype(jnp.uint8) << jnp.uint8(bits - 1)
  codes = jnp.where(is_there, number | sign, jnp.uint8(0))
  return Levels(codes, least, largest)


def dequantise(levels: Levels, bits: int) -> jax.Array:
  """Makes the array that levels stand for; (...) float32, the same to the bit on all devices.

  Args:
    levels: as `quantise` makes them.
    bits: 8 or 4, of an entry.

  Raises:
    ValueError: another number of bits.

  Example:
    >>> import jax.numpy as jnp
    >>> dequantise(quantise(jnp.float32([0, 1, -8, 4.4]), 4), 4).tolist()
    [0.0, 1.0, -8.0, 4.5]
  """
  last = num_levels(bits) - 1
  number = (levels.codes & jnp.uint8(last + 1)).astype(jnp.float32) - 1
  step = (levels.largest - levels.least) * jnp.float32(1 / last)
  # Rounded to a bit less, or some compilers would round the product and the sum at once.
  magnitude = levels.least + lax.reduce_precision(number * step, 8, 22)
  magnitude = jnp.where(number == last, levels.largest, magnitude)
  signed = jnp.where(levels.codes > last + 1, -magnitude, magnitude)
  return jnp.where(number < 0, 0, signed)


def num_levels(bits: int) -> int:
  """Counts the levels of magnitudes in so many bits."""
  if bits not in BITS:
    raise ValueError(f"bits={bits!r}: must be 8 or 4")
  return 2 ** (bits - 1) - 1


def ends_of(x: np.ndarray) -> tuple[np.float32, np.float32]:
  """Finds the least and the largest magnitude of what is not 0, on the host.

  Args:
    x: (n,) float32, finite.
  """
  magnitude = np.abs(x[x != 0])
  if not magnitude.size:
    return np.float32(0), np.float32(0)
  return np.maximum(magnitude.min(), np.float32(_TINY)), np.maximum(magnitude.max(), _TINY)


def codes_of(x: np.ndarray, least: np.float32, largest: np.float32, bits: int) -> np.ndarray:
  """Rounds to the nearest levels, on the host; what is on one stays there, and so do -0.0 and 0.

  Args:
    x: (n,) float32, finite.
    least: as `ends_of` makes it.
    largest: as `ends_of` makes it; entries outside of both get the next level.
    bits: 8 or 4, of an entry.

  Returns:
    (n,) uint8, as of `quantise`; -0.0 has the sign and no level.
  """
  last = num_levels(bits) - 1
  span = np.float64(largest) - np.float64(least)
  place = np.abs(x).astype(np.float64)
  place -= np.float64(least)
  place *= last / span if span > 0 else 0
  np.rint(place, out=place)
  number = np.clip(place, 0, last, out=place).astype(np.uint8) + np.uint8(1)
  number *= x != 0
  return number | np.signbit(x).view(np.uint8) << np.uint8(bits - 1)


def values_of(codes: np.ndarray, least: np.float32, largest: np.float32, bits: int) -> np.ndarray:
  """Does as `dequantise`, on the host and to the bit; a sign without level is -0.0.

  Args:
    codes: (n,) uint8 below 2^bits.
    least: not negative.
    largest: at least `least`.
    bits: 8 or 4, of an entry.
  """
  last = num_levels(bits) - 1
  step = (largest - least) * np.float32(1 / last)
  product = (np.arange(last + 1, dtype=np.float32) * step).view(np.uint32)
  product = (product + (product >> 1 & 1)) & ~np.uint32(1)  # the reduced precision
  magnitude = least + product.view(np.float32)
  magnitude[-1] = largest
  table = np.concatenate([np.zeros(1, np.float32), magnitude])
  return np.concatenate([table, -table])[codes]
