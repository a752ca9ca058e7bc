"""The wire format of models: a pytree as bytes, zeros left out, the rest lossless to the bit.

-0.0 is a zero like 0.0 and is decoded as 0.0, so equal arrays have equal payloads. With
`keep_signed_zeros` it is a value: a method that trains inside masks then sends an active weight
that is 0 as -0.0, and the positions are its mask. Subnormals and the payloads of NaNs are values.

All numbers are little-endian, bit i of a bitmap is bit i % 8 of byte i // 8, and bits that fill up
a last byte are 0::

    payload    "SFJ", version 2, flags, schema, leaves, crc32 of everything before
    flags      bit 0: against a reference; bits 1 and 2: index of value_dtype in
               `rounding.VALUE_DTYPES`; bit 3: zeros keep their signs; bit 4: schema and leaves
               are in streams; bit 5 or 6, with bfloat16: float32 leaves of at least two axes have
               levels, of 8 or 4 bits; bit 7, with a reference and streams: values are differences
    schema     against a reference: crc32 of the leaves' paths, dtypes and shapes, then 8 bytes of
               BLAKE2b of where its entries are not zero: for each leaf a bitmap of its size and,
               for differences, the entries that are not zero. Otherwise nodes:
      node     0 None | 1 dict: uint32 count, then uint16 length, UTF-8 key and node each, keys
               ascending | 2 list, 3 tuple: uint32 count, then nodes | 16 + index in
               `schema.DTYPES`: a leaf, uint8 number of axes, then uint32 each
    leaf       its form and, with levels, float32 least and largest, then
      0 dense  all values
      1 sparse uint32 n, positions(n of size), the n values in index order
      2 delta  uint32 grown, uint32 dropped, positions(dropped of r) among the r places where the
               reference is not zero, positions(grown of size - r) among the others, then the values
               of all places that are not zero now, in index order

The form is the smallest, the first of those where sizes tie, without streams. A bool leaf has no
values; dense, it is a bitmap. A value with levels is a code of `levels.Levels`; those of 4 bits are
two to a byte, the first one in its low bits, and in streams one to a byte.

positions(k of u) is empty where k is 0 or u. Otherwise it is a bitmap of u bits or, where that is
smaller, Elias-Fano (Vigna, arXiv 1206.4300): of each of the k positions p_0 < p_1 < ... the
l = floor(log2(u / k)) low bits, as l planes of k bits, lowest plane first and all in one bitmap;
then a bitmap of k + ((u - 1) >> l) bits, in which bit i + (p_i >> l) is 1 for each i. The choice
follows from k and u, so nothing is sent for it.

streams are uint8 widths of values, of which bit i says that there are some of 2, 4, 8 or 1 bytes;
then the uint32 size of each stream, and the streams, each a frame of zstd without its size and
checksum: all but those values, in order; then for each width, ascending, the first bytes of its
values, the second ones, and so on. Differences are those of `differences.subtract`, in the dtype of
the values and, of codes, with the reference on the same levels; where it is zero it counts as 0.

Without streams a size depends on shapes, dtypes and counts of non-zeros alone:
`size.payload_bytes` counts it on the device.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax

from sparsyfed_jax.wire.leaves import Entries, Way, decode_leaf, encode_leaf, entries_of
from sparsyfed_jax.wire.reader import Buffer, CodecError, Reader, pack_bits
from sparsyfed_jax.wire.rounding import (
  BESIDE_LEVELS,
  LEVEL_BITS,
  VALUE_DTYPES,
  checked_value_dtype,
)
from sparsyfed_jax.wire.schema import (
  CRC_BYTES,
  DIGEST_BYTES,
  HEADER_BYTES,
  MAGIC,
  VERSION,
  Spec,
  against,
  make_layout,
  read_tree,
)
from sparsyfed_jax.wire.streams import Part, as_bytes, compress, decompress

Payload: TypeAlias = bytes | bytearray | memoryview

_SIGNS = 8  # the flag
_STREAMS = 16
_LEVELS = {"int8": 32, "int4": 64}
_DIFFERENCES = 128


def encode(
  tree: Any,
  reference: Any = None,
  value_dtype: Any = None,
  keep_signed_zeros: bool = False,
  compression_level: int | None = None,
  differences: bool = False,
) -> bytes:
  """Writes a tree as bytes.

  Args:
    tree: arrays of NumPy or JAX, or scalars, of `schema.DTYPES`, each of at most 2^31 - 1
      entries. Python's own numbers count as NumPy's, 64 bits. Without `reference` they are in
      nested mappings with keys of type str, lists and tuples, or None or a single leaf; against a
      `reference`, in any pytree.
    reference: what the receiver holds already: a pytree of the structure, shapes and dtypes of
      `tree`, which are not sent then.
    value_dtype: None is lossless. float32, bfloat16 or float16: leaves of float32 and float64 that
      are wider are rounded to it, to the nearest, ties to even. What would become 0 without being
      it becomes the smallest normal number of `value_dtype`, with its sign, so that masks survive.
      int8 or int4: float32 leaves of at least two axes are rounded to levels (see `quantise`), to
      the nearest, so that what is on levels stays as it is; others to bfloat16.
    keep_signed_zeros: whether -0.0 is a value, in `tree` and in `reference`; it is 0.0 otherwise.
    compression_level: 1 to 22, of zstd, which codes what is left in streams; it needs the package
      zstandard, and so does who decodes. None leaves that out. 3 takes milliseconds for eleven
      million weights of which 5 % are not zero, 19 a third of a second for 4 % less.
    differences: whether the streams have values as differences to those of `reference` at the same
      places, which `decode` needs to the bit then. Of a model that was trained for a round they are
      smaller.

  Returns:
    The payload; its length is the same for all trees whose entries are equal.

  Raises:
    TypeError: a leaf, a key or a container of another type.
    ValueError: `tree` does not fit `reference`; an unknown `value_dtype`, or a finite value too
      large for it, or any that is not finite for levels; a tree beyond the format's limits; an
      unknown `compression_level`, or one without zstandard; or `differences` without it or without
      a reference.

  Example:
    >>> import numpy as np
    >>> model = {"kernel": np.where(np.arange(1000) % 20, 0, 1).astype(np.float32)}
    >>> payload = encode(model)
    >>> len(payload) < 1000
    True
    >>> np.array_equal(decode(payload)["kernel"], model["kernel"])
    True
  """
  if differences and (reference is None or compression_level is None):
    raise ValueError("differences=True: needs a reference and a compression_level")
  way = Way(
    checked_value_dtype(value_dtype), keep_signed_zeros, compression_level is not None, differences
  )
  layout = make_layout(tree, reference)
  flags = (reference is not None) | _flags_of(way)
  parts: list[Part] = [layout.schema]
  references: list[Entries | None] = [None] * len(layout.leaves)
  if layout.references is not None:
    digest, references = _read_reference(layout.specs, layout.references, way)
    parts.append(digest)
  for spec, leaf, old in zip(layout.specs, layout.leaves, references, strict=True):
    parts += encode_leaf(spec, leaf, old, way)
  if compression_level is not None:
    parts = [*compress(parts, compression_level)]
  whole = [MAGIC + bytes([VERSION, flags]), *map(as_bytes, parts)]
  crc = 0
  for part in whole:
    crc = zlib.crc32(part, crc)
  return b"".join([*whole, struct.pack("<I", crc)])


def decode(payload: Payload, reference: Any = None, max_bytes: int = 2**30) -> Any:
  """Reads what `encode` wrote; any other bytes give a CodecError, with little spent on them.

  A payload that `encode` would have written in another form of a leaf is accepted; one that claims
  a non-zero where the value is zero is not.

  Args:
    payload: the bytes.
    reference: what `encode` was given, or a tree whose entries are zero at the same places; its
      values are read where there are `differences` alone.
    max_bytes: limit of the decoded arrays together. A leaf of zeros is short on the wire, however
      large it is. Besides the arrays, their positions need up to 10 bytes an entry of one leaf at
      a time, 40 against a reference. Of a reference itself they need a byte an entry, 9 where it
      is not zero, and copies of the leaves that have -0.0.

  Returns:
    Dicts, lists and tuples, or a pytree of the structure of `reference`, of NumPy arrays that own
    their memory, with the dtypes and shapes that `encode` found.

  Raises:
    CodecError: the payload is damaged, of another version, or too large; or `reference` has other
      leaves than that of `encode`, or is zero at other places.
    TypeError: a leaf of `reference` is not an array that `encode` takes.

  Example:
    >>> decode(encode({"bias": [1, 2]}))
    {'bias': [array(1), array(2)]}
  """
  view = memoryview(payload).cast("B")
  if len(view) < HEADER_BYTES + CRC_BYTES:
    raise CodecError(f"a payload has at least {HEADER_BYTES + CRC_BYTES} bytes, not {len(view)}")
  reader = Reader(Buffer(view[:-CRC_BYTES]))
  if reader.take(len(MAGIC)) != MAGIC:
    raise CodecError(f"a payload begins with {MAGIC!r}, not {bytes(view[: len(MAGIC)])!r}")
  version = reader.uint(1)
  if version != VERSION:
    raise CodecError(f"the payload has version {version}; this reads version {VERSION}")
  if zlib.crc32(view[:-CRC_BYTES]) != int.from_bytes(view[-CRC_BYTES:], "little"):
    raise CodecError("the payload is damaged: its crc32 does not fit")
  flags = reader.uint(1)
  way = _way_of(flags)
  if bool(flags & 1) != (reference is not None):
    need = "needs the reference that it was encoded against" if flags & 1 else "has no reference"
    raise CodecError(f"the payload {need}")
  if flags & _STREAMS:
    reader = decompress(reader)

  if reference is None:
    specs, treedef = read_tree(reader)
    references: list[Entries | None] = [None] * len(specs)
  else:
    specs, old_leaves, treedef, schema = against(reference)
    if reader.take(len(schema)) != schema:
      raise CodecError("the payload was encoded against another reference: the schemas differ")
    digest, references = _read_reference(specs, old_leaves, way)
    if reader.take(DIGEST_BYTES) != digest:
      other = "values are others" if way.are_differences else "zeros are at other places"
      raise CodecError(f"the payload was encoded against another reference: its {other}")
  total = sum(spec.size * spec.dtype.itemsize for spec in specs)
  if total > max_bytes:
    raise CodecError(f"the arrays have {total} bytes, more than max_bytes={max_bytes}")
  leaves = []
  for spec, old in zip(specs, references, strict=True):
    try:
      leaves.append(decode_leaf(reader, spec, old, way))
    except CodecError as error:
      raise CodecError(f"leaf {spec.name!r}: {error}") from None
  if left := reader.left():
    raise CodecError(f"{left} bytes follow the last leaf")
  return jax.tree.unflatten(treedef, leaves)


def _flags_of(way: Way) -> int:
  name = None if way.value_dtype is None else way.value_dtype.name
  plain = BESIDE_LEVELS if name in LEVEL_BITS else name
  return (
    VALUE_DTYPES.index(plain) << 1
    | _SIGNS * way.keep_signed_zeros
    | _STREAMS * way.in_streams
    | _LEVELS.get(name or "", 0)
    | _DIFFERENCES * way.are_differences
  )


def _way_of(flags: int) -> Way:
  """Reads what `_flags_of` made; CodecError where it made none of these."""
  name = VALUE_DTYPES[flags >> 1 & 3]
  for level_name, flag in _LEVELS.items():
    name = level_name if name == BESIDE_LEVELS and flags & flag else name
  way = Way(
    checked_value_dtype(name),
    bool(flags & _SIGNS),
    bool(flags & _STREAMS),
    bool(flags & _DIFFERENCES),
  )
  has_reference = flags & 1
  if _flags_of(way) | has_reference != flags:
    raise CodecError(f"flags {flags} are unknown: levels have one number of bits, and bfloat16")
  if way.are_differences and not (has_reference and way.in_streams):
    raise CodecError(f"flags {flags} are unknown: differences need a reference and streams")
  return way


def _read_reference(
  specs: Sequence[Spec], leaves: Sequence[Any], way: Way
) -> tuple[bytes, list[Entries | None]]:
  """Digests which entries of a reference are not zero and, for differences, what they are."""
  digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
  found: list[Entries | None] = []
  for spec, leaf in zip(specs, leaves, strict=True):
    entries = entries_of(leaf, spec, way.keep_signed_zeros)
    found.append(entries)
    digest.update(pack_bits(entries.mask))
    if way.are_differences:
      values = entries.bits[entries.places]
      digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
  return digest.digest(), found
