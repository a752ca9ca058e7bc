"""A leaf in a payload: its form, positions and values."""

import struct
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparsyfed_jax.wire.positions import Places, as_numbers, read_positions, write_positions
from sparsyfed_jax.wire.reader import CodecError, Reader, pack_bits
from sparsyfed_jax.wire.rounding import round_values, sent_dtype
from sparsyfed_jax.wire.schema import Spec
from sparsyfed_jax.wire.size import INTEGERS, dense_bytes, form_bytes, value_bytes
from sparsyfed_jax.wire.streams import Part

_DENSE, _SPARSE, _DELTA = 0, 1, 2


def encode_leaf(
  spec: Spec, leaf: Any, old: Any, value_dtype: np.dtype | None, keep_signed_zeros: bool
) -> list[Part]:
  """Writes a leaf in its smallest form; `old` is that of the reference, or None."""
  bits = entry_bits(leaf, spec, keep_signed_zeros)
  mask = bits != 0
  n = int(np.count_nonzero(mask))
  change = None
  if old is not None:
    old_mask = entry_bits(old, spec, keep_signed_zeros) != 0
    grown_mask = mask & ~old_mask
    change = int(np.count_nonzero(old_mask)), int(np.count_nonzero(grown_mask))
  one = value_bytes(spec.dtype, value_dtype)
  sizes = form_bytes(n, spec.size, one, dense_bytes(spec.size, one), change, INTEGERS)
  form = sizes.index(min(sizes))
  head = [bytes([form])]
  if form == _DENSE:
    return [*head, _values(bits, spec, value_dtype) if one else pack_bits(mask)]
  places = np.flatnonzero(mask)
  values = [_values(bits[places], spec, value_dtype)] if one else []
  if form == _SPARSE:
    return [*head, struct.pack("<I", n), *write_positions(places, spec.size), *values]
  old_places = np.flatnonzero(old_mask)
  dropped = np.flatnonzero(~mask[old_places])
  grown = np.flatnonzero(grown_mask)
  # A place's number among the zero ones: without those before it that are not zero.
  grown_numbers = grown - np.searchsorted(old_places, grown)
  return [
    *head,
    struct.pack("<II", grown.size, dropped.size),
    *write_positions(dropped, old_places.size),
    *write_positions(grown_numbers, spec.size - old_places.size),
    *values,
  ]


def decode_leaf(
  reader: Reader, spec: Spec, old: Any, value_dtype: np.dtype | None, keep_signed_zeros: bool
) -> np.ndarray:
  """Reads what `encode_leaf` wrote."""
  form = reader.uint(1)
  size = spec.size
  places: Places
  if form == _DENSE:
    if spec.dtype.name == "bool":
      return reader.mask(size).reshape(spec.shape)
    bits = _read_values(reader, size, spec, value_dtype, keep_signed_zeros)
    return bits.view(spec.dtype).reshape(spec.shape)
  if form == _SPARSE:
    n = reader.uint(4)
    places = read_positions(reader, n, size, "entries")
  elif form == _DELTA and old is not None:
    num_grown, num_dropped = reader.uint(4), reader.uint(4)
    old_places = np.flatnonzero(entry_bits(old, spec, keep_signed_zeros))
    dropped = read_positions(reader, num_dropped, old_places.size, "dropped entries")
    num_free = size - old_places.size
    grown = as_numbers(read_positions(reader, num_grown, num_free, "grown entries"))
    # Before the i-th old place are old_places[i] - i zero ones.
    zeros_before = old_places - np.arange(old_places.size)
    grown += np.searchsorted(zeros_before, grown, side="right")
    kept = np.delete(old_places, dropped)
    places = np.sort(np.concatenate([kept, grown]), kind="stable")  # merges two runs
    n = places.size
  else:
    raise CodecError(f"form {form} is unknown{' without a reference' if form == _DELTA else ''}")
  if spec.dtype.name == "bool":
    mask = np.zeros(size, bool)
    mask[places] = True
    return mask.reshape(spec.shape)
  values = _read_values(reader, n, spec, value_dtype, keep_signed_zeros)
  if not values.all():
    raise CodecError("a value that is sent by its position is zero")
  bits = np.zeros(size, values.dtype)
  bits[places] = values
  return bits.view(spec.dtype).reshape(spec.shape)


def entry_bits(leaf: Any, spec: Spec, keep_signed_zeros: bool) -> np.ndarray:
  """The entries of a leaf, in index order, as unsigned integers."""
  array = np.ascontiguousarray(np.asarray(leaf).astype(spec.dtype, copy=False)).reshape(-1)
  bits = array.view(_unsigned(spec.dtype))
  if keep_signed_zeros:
    return bits
  is_signed = _is_signed_zero(bits, spec)
  return np.where(is_signed, bits.dtype.type(0), bits) if np.any(is_signed) else bits


def _is_signed_zero(bits: np.ndarray, spec: Spec) -> np.ndarray | bool:
  """Tells which entries, as unsigned integers, are -0.0."""
  if not jnp.issubdtype(spec.dtype, jnp.floating):
    return False
  return bits == bits.dtype.type(1 << 8 * bits.dtype.itemsize - 1)


def _unsigned(dtype: np.dtype) -> np.dtype:
  return np.dtype(f"u{dtype.itemsize}")


def _little_endian(dtype: np.dtype) -> np.dtype:
  return np.dtype(f"<u{dtype.itemsize}")


def _values(bits: np.ndarray, spec: Spec, value_dtype: np.dtype | None) -> np.ndarray:
  sent = sent_dtype(spec.dtype, value_dtype)
  if sent != spec.dtype:
    bits = round_values(bits.view(spec.dtype), sent, spec.name).view(_unsigned(sent))
  return bits.astype(_little_endian(sent), copy=False)


def _read_values(
  reader: Reader,
  count: int,
  spec: Spec,
  value_dtype: np.dtype | None,
  keep_signed_zeros: bool,
) -> np.ndarray:
  """Reads values as unsigned integers of the leaf's own width."""
  sent = sent_dtype(spec.dtype, value_dtype)
  values = reader.values(count, sent.itemsize).astype(_unsigned(sent))
  if sent != spec.dtype:
    with np.errstate(all="ignore"):  # NaNs
      values = values.view(sent).astype(spec.dtype).view(_unsigned(spec.dtype))
  if not keep_signed_zeros and np.any(_is_signed_zero(values, spec)):
    raise CodecError("a value is -0.0, and the payload does not keep the signs of zeros")
  return values
