"""Values as differences to those of a reference, small where the two are close.

Bits of values are put in the order of what they stand for, as numbers without a sign, so that a
difference counts the values between two. Small differences of either sign become small numbers:
0, -1, 1, -2, 2, ... are 0, 1, 2, 3, 4, ... All of it is modulo 2^bits, and can be undone.
"""

import numpy as np


def subtract(bits: np.ndarray, old: np.ndarray, width: int) -> np.ndarray:
  """Takes values of a reference away from values.

  Args:
    bits: (n,) unsigned integers below 2^width: a sign above a magnitude.
    old: like them.
    width: how many bits of each count.
  """
  below = bits.dtype.type((1 << width - 1) - 1)
  difference = _ordered(bits, width) - _ordered(old, width)
  sign = difference >> bits.dtype.type(width - 1) & bits.dtype.type(1)
  return (difference & below) << bits.dtype.type(1) & _all(bits, width) ^ _fill(sign, width)


def add(numbers: np.ndarray, old: np.ndarray, width: int) -> np.ndarray:
  """Undoes `subtract`."""
  one = numbers.dtype.type(1)
  difference = numbers >> one ^ _fill(numbers & one, width)
  return _ordered(_ordered(old, width) + difference & _all(numbers, width), width)


def _ordered(bits: np.ndarray, width: int) -> np.ndarray:
  """Turns the magnitudes of negative values around; what was turned is turned back."""
  sign = bits >> bits.dtype.type(width - 1)
  return bits ^ _fill(sign, width - 1)


def _fill(bit: np.ndarray, width: int) -> np.ndarray:
  """Makes `width` bits that are all as one; in place of 0 and 1."""
  return bit * bit.dtype.type((1 << width) - 1)


def _all(bits: np.ndarray, width: int) -> np.generic:
  return bits.dtype.type((1 << width) - 1)
