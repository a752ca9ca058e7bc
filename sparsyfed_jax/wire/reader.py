"""Bytes of a payload: read in order, and bitmaps."""

from typing import Any, TypeAlias

import numpy as np

Count: TypeAlias = Any  # an int, or an array of uint32


class CodecError(ValueError):
  """A payload that cannot be decoded; the one-line message says why.

  Example:
    >>> from sparsyfed_jax.wire import decode
    >>> decode(b"not a payload of this format")
    Traceback (most recent call last):
    sparsyfed_jax.wire.reader.CodecError: a payload begins with b'SFJ', not b'not'
  """


class Reader:
  """Reads a buffer from its start on; nothing is allocated for what the buffer does not hold."""

  def __init__(self, view: memoryview) -> None:
    self._view = view
    self._at = 0

  @property
  def left(self) -> int:
    """The bytes that are not read yet."""
    return len(self._view) - self._at

  def take(self, count: int) -> memoryview:
    """The next bytes; CodecError where there are fewer."""
    if count > self.left:
      raise CodecError(f"{count} bytes announced, {self.left} left")
    self._at += count
    return self._view[self._at - count : self._at]

  def uint(self, width: int) -> int:
    """A number of `width` bytes."""
    return int.from_bytes(self.take(width), "little")

  def mask(self, count: int) -> np.ndarray:
    """A bitmap of `count` bits, as bool."""
    packed = np.frombuffer(self.take(bitmap_bytes(count)), np.uint8)
    if count % 8 and packed[-1] >> count % 8:
      raise CodecError("bits that fill up a byte are not 0")
    return np.unpackbits(packed, count=count, bitorder="little").view(bool)


def pack_bits(mask: np.ndarray) -> memoryview:
  """Writes a bitmap of (n,) bool; bits that fill up the last byte are 0."""
  return np.packbits(mask, bitorder="little").data


def bitmap_bytes(bits: Count) -> Count:
  """Counts the bytes of a bitmap."""
  return (bits + 7) // 8
