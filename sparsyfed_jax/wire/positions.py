"""Ascending positions in a payload: a bitmap, or Elias-Fano where that is smaller."""

from typing import TypeAlias

import numpy as np

from sparsyfed_jax.wire.reader import CodecError, Reader, bitmap_bytes, pack_bits
from sparsyfed_jax.wire.size import INTEGERS, elias_fano_bits, num_low_bits, positions_bytes

Places: TypeAlias = np.ndarray | slice  # whatever indexes a flat array


def _uses_bitmap(k: int, size: int) -> bool:
  return positions_bytes(k, size, INTEGERS) == bitmap_bytes(size)


def write_positions(positions: np.ndarray, size: int) -> list[memoryview]:
  """Writes ascending positions below `size`."""
  k = positions.size
  if k in (0, size):
    return []
  if _uses_bitmap(k, size):
    mask = np.zeros(size, bool)
    mask[positions] = True
    return [pack_bits(mask)]
  num_low = num_low_bits(k, size, INTEGERS)
  planes = np.empty((num_low, k), np.uint8)
  for i, plane in enumerate(planes):
    np.bitwise_and(positions >> i, 1, out=plane, casting="unsafe")
  high = np.zeros(elias_fano_bits(k, size, INTEGERS)[1], bool)
  high[(positions >> num_low) + np.arange(k)] = True
  return [pack_bits(planes.reshape(-1)), pack_bits(high)]


def read_positions(reader: Reader, k: int, size: int, what: str) -> Places:
  """Reads what `write_positions` wrote: a slice, a mask or ascending positions."""
  if k > size:
    raise CodecError(f"{k} {what} among {size}")
  if k in (0, size):
    return slice(0, k)
  if _uses_bitmap(k, size):
    mask = reader.mask(size)
    if np.count_nonzero(mask) != k:
      raise CodecError(f"{np.count_nonzero(mask)} {what} marked, {k} announced")
    return mask
  num_low = num_low_bits(k, size, INTEGERS)
  low_bits, high_bits = elias_fano_bits(k, size, INTEGERS)
  planes = reader.mask(low_bits).reshape(num_low, k)
  high = np.flatnonzero(reader.mask(high_bits))
  if high.size != k:
    raise CodecError(f"{high.size} {what} coded, {k} announced")
  positions = (high - np.arange(k)) << num_low
  for i, plane in enumerate(planes):
    positions |= plane.astype(np.int64) << i
  if positions[-1] >= size or np.any(positions[1:] <= positions[:-1]):
    raise CodecError(f"the positions of {what} do not ascend below {size}")
  return positions


def as_numbers(places: Places) -> np.ndarray:
  """Makes indices of what `read_positions` returns."""
  if isinstance(places, slice):
    return np.arange(places.stop)
  return np.flatnonzero(places) if places.dtype == bool else places
