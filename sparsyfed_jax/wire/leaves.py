"""A leaf in a payload: its form, positions and values."""

import struct
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sparsyfed_jax.wire import differences, levels
from sparsyfed_jax.wire.positions import Places, as_numbers, read_positions, write_positions
from sparsyfed_jax.wire.reader import CodecError, Reader, pack_bits
from sparsyfed_jax.wire.rounding import level_bits, round_values, sent_dtype
from sparsyfed_jax.wire.schema import Spec
from sparsyfed_jax.wire.size import INTEGERS, dense_bytes, form_bytes, in_pairs, value_bytes
from sparsyfed_jax.wire.streams import Part

_DENSE, _SPARSE, _DELTA = 0, 1, 2


class Way(NamedTuple):
  """How the values of a payload are sent."""

  value_dtype: np.dtype | None
  keep_signed_zeros: bool
  in_streams: bool  # where numbers of levels have a byte each
  are_differences: bool


class _Values(NamedTuple):
  """How those of one leaf are: in `width` bits each, if they are numbers of levels from `ends`."""

  spec: Spec
  way: Way
  sent: np.dtype
  num_bits: int  # of the number of a level, or 0
  ends: tuple[np.float32, np.float32] = (np.float32(0), np.float32(0))

  @property
  def width(self) -> int:
    return self.num_bits or 8 * self.sent.itemsize


class Entries(NamedTuple):
  """The entries of a leaf, in index order."""

  bits: np.ndarray  # (size,) unsigned integers, 0 where entries are zero
  mask: np.ndarray  # (size,) bool, which are not zero
  places: np.ndarray  # where those are, ascending


def encode_leaf(spec: Spec, leaf: Any, old: Entries | None, way: Way) -> list[Part]:
  """Writes a leaf in its smallest form; `old` is of the reference, or None."""
  new = entries_of(leaf, spec, way.keep_signed_zeros)
  n = new.places.size
  change, grown = None, new.places
  if old is not None:
    grown = new.places[~old.mask[new.places]]
    change = old.places.size, grown.size
  one, paired = value_bytes(spec, way.value_dtype), in_pairs(spec, way.value_dtype)
  dense = dense_bytes(spec.size, one, paired)
  sizes = form_bytes(n, spec.size, one, dense, change, INTEGERS, paired)
  form = sizes.index(min(sizes))
  before = old if way.are_differences else None
  values, ends = _values_of(spec, way), b""
  if values.num_bits:
    values, ends = _with_ends(values, new.bits[new.places])
  head = [bytes([form]) + ends]
  if form == _DENSE:
    if not one:
      return [*head, pack_bits(new.mask)]
    return [*head, _write_values(new.bits, _at(before, slice(None)), values)]
  sent = []
  if one:
    sent = [_write_values(new.bits[new.places], _at(before, new.places), values)]
  if form == _SPARSE or old is None:
    return [*head, struct.pack("<I", n), *write_positions(new.places, spec.size), *sent]
  dropped = np.flatnonzero(~new.mask[old.places])
  # A place's number among the zero ones: without those before it that are not zero.
  grown_numbers = grown - np.searchsorted(old.places, grown)
  return [
    *head,
    struct.pack("<II", grown.size, dropped.size),
    *write_positions(dropped, old.places.size),
    *write_positions(grown_numbers, spec.size - old.places.size),
    *sent,
  ]


def decode_leaf(reader: Reader, spec: Spec, old: Entries | None, way: Way) -> np.ndarray:
  """Reads what `encode_leaf` wrote."""
  form = reader.uint(1)
  size = spec.size
  values = _values_of(spec, way)
  if values.num_bits:
    values = values._replace(ends=_read_ends(reader))
  before = old if way.are_differences else None
  places: Places
  if form == _DENSE:
    if spec.dtype.name == "bool":
      return reader.mask(size).reshape(spec.shape)
    bits = _read_values(reader, size, _at(before, slice(None)), values)
    return bits.view(spec.dtype).reshape(spec.shape)
  if form == _SPARSE:
    n = reader.uint(4)
    places = read_positions(reader, n, size, "entries")
  elif form == _DELTA and old is not None:
    places = _read_change(reader, old.places, size)
    n = places.size
  else:
    raise CodecError(f"form {form} is unknown{' without a reference' if form == _DELTA else ''}")
  if spec.dtype.name == "bool":
    mask = np.zeros(size, bool)
    mask[places] = True
    return mask.reshape(spec.shape)
  found = _read_values(reader, n, _at(before, places), values)
  if not found.all():
    raise CodecError("a value that is sent by its position is zero")
  bits = np.zeros(size, found.dtype)
  bits[places] = found
  return bits.view(spec.dtype).reshape(spec.shape)


def _at(entries: Entries | None, places: Places) -> np.ndarray | None:
  """Picks entries."""
  return None if entries is None else entries.bits[places]


def _read_change(reader: Reader, old_places: np.ndarray, size: int) -> np.ndarray:
  """Reads where entries are not zero, from where those of a reference are not."""
  num_grown, num_dropped = reader.uint(4), reader.uint(4)
  dropped = read_positions(reader, num_dropped, old_places.size, "dropped entries")
  num_free = size - old_places.size
  grown = as_numbers(read_positions(reader, num_grown, num_free, "grown entries"))
  # Before the i-th old place are old_places[i] - i zero ones.
  zeros_before = old_places - np.arange(old_places.size)
  grown += np.searchsorted(zeros_before, grown, side="right")
  kept = np.delete(old_places, dropped)
  return np.sort(np.concatenate([kept, grown]), kind="stable")  # merges two runs


def entries_of(leaf: Any, spec: Spec, keep_signed_zeros: bool) -> Entries:
  """Reads a leaf, and finds out which entries are zero."""
  array = np.ascontiguousarray(np.asarray(leaf).astype(spec.dtype, copy=False)).reshape(-1)
  bits = array.view(_unsigned(spec.dtype))
  if not keep_signed_zeros:
    is_signed_zero = _is_signed_zero(bits, spec)
    if is_signed_zero.any():
      bits = np.where(is_signed_zero, bits.dtype.type(0), bits)
  mask = bits != 0
  return Entries(bits, mask, np.flatnonzero(mask))


def _is_signed_zero(bits: np.ndarray, spec: Spec) -> np.ndarray:
  """Tells which entries, as unsigned integers, are -0.0."""
  if not jnp.issubdtype(spec.dtype, jnp.floating):
    return np.zeros(bits.shape, bool)
  return bits == bits.dtype.type(1 << 8 * bits.dtype.itemsize - 1)


def _unsigned(dtype: np.dtype) -> np.dtype:
  return np.dtype(f"u{dtype.itemsize}")


def _values_of(spec: Spec, way: Way) -> _Values:
  sent = sent_dtype(spec.dtype, len(spec.shape), way.value_dtype)
  return _Values(spec, way, sent, level_bits(spec.dtype, sent))


def _with_ends(values: _Values, bits: np.ndarray) -> tuple[_Values, bytes]:
  x = bits.view(np.float32)
  ends = levels.ends_of(x)
  if not np.isfinite(ends[1]):
    name, dtype = values.spec.name, values.sent.name
    raise ValueError(f"leaf {name!r}: has what is not finite; value_dtype={dtype} has no room")
  return values._replace(ends=ends), struct.pack("<ff", *ends)


def _read_ends(reader: Reader) -> tuple[np.float32, np.float32]:
  least, largest = np.frombuffer(reader.take(8), "<f4").astype(np.float32)
  if not 0 <= least <= largest < np.inf:
    raise CodecError(f"levels must go from 0 or more to a larger finite number: {least}, {largest}")
  return least, largest


def _write_values(bits: np.ndarray, old: np.ndarray | None, values: _Values) -> Part:
  """Writes values of a leaf, given as its own bits and, at the same places, a reference's."""
  sent = _round(bits, values, is_old=False)
  if old is not None and values.way.are_differences:
    sent = differences.subtract(sent, _round(old, values, is_old=True), values.width)
  if values.num_bits == 4 and not values.way.in_streams:
    sent = np.append(sent, np.zeros(sent.size % 2, np.uint8))
    sent = sent[0::2] | sent[1::2] << np.uint8(4)
  return sent.astype(sent.dtype.newbyteorder("<"), copy=False)


def _round(bits: np.ndarray, values: _Values, is_old: bool) -> np.ndarray:
  """Makes what is sent of a leaf's own bits, as unsigned integers; of a reference anything fits."""
  spec, sent = values.spec, values.sent
  if sent == spec.dtype:
    return bits
  x = bits.view(spec.dtype)
  if not values.num_bits and not is_old:
    return round_values(x, sent, spec.name).view(_unsigned(sent))
  with np.errstate(all="ignore"):
    if not values.num_bits:
      return x.astype(sent).view(_unsigned(sent))
    if is_old and not np.isfinite(x).all():
      x = np.nan_to_num(x)
    return levels.codes_of(x, *values.ends, values.num_bits)


def _read_values(reader: Reader, count: int, old: np.ndarray | None, values: _Values) -> np.ndarray:
  """Reads values as unsigned integers of the leaf's own width."""
  spec, sent, way = values.spec, values.sent, values.way
  found = _read_sent(reader, count, values)
  if old is not None and way.are_differences:
    found = differences.add(found, _round(old, values, is_old=True), values.width)
  if values.num_bits:
    found = levels.values_of(found, *values.ends, values.num_bits).view(np.uint32)
  elif sent != spec.dtype:
    with np.errstate(all="ignore"):  # NaNs
      found = found.view(sent).astype(spec.dtype).view(_unsigned(spec.dtype))
  if not way.keep_signed_zeros and np.any(_is_signed_zero(found, spec)):
    raise CodecError("a value is -0.0, and the payload does not keep the signs of zeros")
  return found


def _read_sent(reader: Reader, count: int, values: _Values) -> np.ndarray:
  """Reads what `_round` made, or differences of it."""
  if values.num_bits == 4 and not values.way.in_streams:
    packed = reader.values(count + 1 >> 1, 1)
    found = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(-1)
    if found[count:].any():
      raise CodecError("bits that fill up a byte are not 0")
    return found[:count]
  found = reader.values(count, values.sent.itemsize)
  if values.num_bits == 4 and np.any(found > 15):
    raise CodecError("the number of a level has more than 4 bits")
  return found.astype(_unsigned(values.sent))
