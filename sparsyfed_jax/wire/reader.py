"""Bytes of a payload: read in order, and bitmaps."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

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


class Source(Protocol):
  """Where a reader has its bytes from."""

  def left(self) -> int:
    """Counts the bytes not read yet; a source that cannot reads one, and returns 1 or 0."""

  def take(self, count: int) -> bytes | memoryview:
    """The next bytes; CodecError where there are fewer."""


class Buffer:
  """A source that is in memory; nothing is allocated for what it does not hold."""

  def __init__(self, view: memoryview) -> None:
    self._view = view
    self._at = 0

  def left(self) -> int:
    """Counts the bytes that are not read yet."""
    return len(self._view) - self._at

  def take(self, count: int) -> memoryview:
    """The next bytes; CodecError where there are fewer."""
    if count > self.left():
      raise CodecError(f"{count} bytes announced, {self.left()} left")
    self._at += count
    return self._view[self._at - count : self._at]


class Reader:
  """Reads a payload from its start on."""

  def __init__(self, source: Source, planes: Mapping[int, Sequence[Source]] | None = None) -> None:
    """`planes` has the sources of each byte of values of some widths; others are in `source`."""
    self._source = source
    self._planes = planes or {}

  def left(self) -> int:
    """Counts the bytes that are not read yet, as far as sources can; 0 if all are."""
    planes = [plane for planes in self._planes.values() for plane in planes]
    return sum(source.left() for source in (self._source, *planes))

  def take(self, count: int) -> bytes | memoryview:
    """The next bytes; CodecError where there are fewer."""
    return self._source.take(count)

  def values(self, count: int, width: int) -> np.ndarray:
    """The next values of `width` bytes, as unsigned integers."""
    dtype = np.dtype(f"<u{width}")
    if width not in self._planes:
      return np.frombuffer(self.take(count * width), dtype)
    planes = [np.frombuffer(plane.take(count), np.uint8) for plane in self._planes[width]]
    return np.stack(planes, axis=-1).reshape(-1).view(dtype)

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
