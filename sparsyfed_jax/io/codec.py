"""The wire format of models: a pytree as bytes, zeros left out, the rest lossless to the bit.

-0.0 is a zero like 0.0 and is decoded as 0.0, so equal arrays have equal payloads. With
`keep_signed_zeros` it is a value: a method that trains inside masks then sends an active weight
that is 0 as -0.0, and the positions are its mask. Subnormals and the payloads of NaNs are values.

All numbers are little-endian, bit i of a bitmap is bit i % 8 of byte i // 8, and bits that fill up
a last byte are 0::

    payload    "SFJ", version 2, flags, schema, leaves, crc32 of everything before
    flags      bit 0: against a reference; bits 1 and 2: index of value_dtype in `VALUE_DTYPES`;
               bit 3: zeros keep their signs
    schema     against a reference: crc32 of the leaves' paths, dtypes and shapes, then 8 bytes of
               BLAKE2b of where its entries are not zero: for each leaf a bitmap of its size.
               Otherwise nodes:
      node     0 None | 1 dict: uint32 count, then uint16 length, UTF-8 key and node each, keys
               ascending | 2 list, 3 tuple: uint32 count, then nodes | 16 + index in `DTYPES`: a
               leaf, uint8 number of axes, then uint32 each
    leaf       its form, then
      0 dense  all values
      1 sparse uint32 n, positions(n of size), the n values in index order
      2 delta  uint32 grown, uint32 dropped, positions(dropped of r) among the r places where the
               reference is not zero, positions(grown of size - r) among the others, then the values
               of all places that are not zero now, in index order

The form is the smallest, the first of those where sizes tie. A bool leaf has no values; dense, it
is a bitmap.

positions(k of u) is empty where k is 0 or u. Otherwise it is a bitmap of u bits or, where that is
smaller, Elias-Fano (Vigna, arXiv 1206.4300): of each of the k positions p_0 < p_1 < ... the
l = floor(log2(u / k)) low bits, as l planes of k bits, lowest plane first and all in one bitmap;
then a bitmap of k + ((u - 1) >> l) bits, in which bit i + (p_i >> l) is 1 for each i. The choice
follows from k and u, so nothing is sent for it.

A size depends on shapes, dtypes and counts of non-zeros alone. The functions of sizes here take
Python's integers or traced arrays, so that `wire.payload_bytes` counts on the device.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax import trees

Buffer: TypeAlias = bytes | memoryview
Payload: TypeAlias = bytes | bytearray | memoryview
Count: TypeAlias = Any  # an int, or an array of uint32
Places: TypeAlias = np.ndarray | slice  # whatever indexes a flat array

VERSION = 2
DTYPES = (
  *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
  *("float16", "bfloat16", "float32", "float64"),
)
VALUE_DTYPES = (None, "float32", "bfloat16", "float16")
MAX_ENTRIES = 2**31 - 1  # of a leaf

_MAGIC = b"SFJ"
_NONE, _DICT, _LIST, _TUPLE, _LEAF = 0, 1, 2, 3, 16
_DENSE, _SPARSE, _DELTA = 0, 1, 2
_MAX_DEPTH = 64
_MAX_NODES = 2**16  # an object of Python each, however short the payload
_MAX_AXES = 64  # NumPy's own limit
_HEADER_BYTES = len(_MAGIC) + 2
_CRC_BYTES = 4
_DIGEST_BYTES = 8
_SIGNS = 8  # the flag
_NUM_FLAGS = 16


class CodecError(ValueError):
  """A payload that cannot be decoded; the one-line message says why."""


class Spec(NamedTuple):
  """What is known of a leaf besides its values."""

  name: str  # its path, for messages
  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    """The number of entries."""
    return math.prod(self.shape)


class Layout(NamedTuple):
  """What encoding and counting share: the leaves in order, and the bytes that announce them."""

  specs: list[Spec]
  leaves: list[Any]
  references: list[Any] | None  # beside the leaves
  schema: bytes


class Arithmetic(NamedTuple):
  """What sizes are computed with."""

  floor_log2: Callable[[Count], Count]  # of 1 and more
  minimum: Callable[[Count, Count], Count]
  where: Callable[[Any, Count, Count], Count]


INTEGERS = Arithmetic(lambda x: x.bit_length() - 1, min, lambda c, a, b: a if c else b)


def encode(
  tree: Any,
  reference: Any = None,
  value_dtype: Any = None,
  keep_signed_zeros: bool = False,
) -> bytes:
  """Writes a tree as bytes.

  Args:
    tree: arrays of NumPy or JAX, or scalars, of the dtypes `DTYPES`, each of at most 2^31 - 1
      entries. Python's own numbers count as NumPy's, 64 bits. Without `reference` they are in
      nested mappings with keys of type str, lists and tuples, or None or a single leaf; against a
      `reference`, in any pytree.
    reference: what the receiver holds already: a pytree of the structure, shapes and dtypes of
      `tree`, which are not sent then.
    value_dtype: None is lossless. float32, bfloat16 or float16: leaves of float32 and float64 that
      are wider are rounded to it, to the nearest, ties to even. What would become 0 without being
      it becomes the smallest normal number of `value_dtype`, with its sign, so that masks survive.
    keep_signed_zeros: whether -0.0 is a value, in `tree` and in `reference`; it is 0.0 otherwise.

  Returns:
    The payload; its length is the same for all trees whose entries are equal.

  Raises:
    TypeError: a leaf, a key or a container of another type.
    ValueError: `tree` does not fit `reference`; an unknown `value_dtype`, or a finite value too
      large for it; or a tree beyond the format's limits.
  """
  value_dtype = checked_value_dtype(value_dtype)
  layout = make_layout(tree, reference)
  value_name = None if value_dtype is None else value_dtype.name
  flags = (reference is not None) | VALUE_DTYPES.index(value_name) << 1 | _SIGNS * keep_signed_zeros
  parts: list[Buffer] = [_MAGIC + bytes([VERSION, flags]), layout.schema]
  references = [None] * len(layout.leaves) if layout.references is None else layout.references
  if layout.references is not None:
    parts.append(_mask_digest(layout.specs, references, keep_signed_zeros))
  for spec, leaf, old in zip(layout.specs, layout.leaves, references, strict=True):
    parts += _encode_leaf(spec, leaf, old, value_dtype, keep_signed_zeros)
  crc = 0
  for part in parts:
    crc = zlib.crc32(part, crc)
  return b"".join([*parts, struct.pack("<I", crc)])


def decode(payload: Payload, reference: Any = None, max_bytes: int = 2**30) -> Any:
  """Reads what `encode` wrote; any other bytes give a CodecError, with little spent on them.

  A payload that `encode` would have written in another form of a leaf is accepted; one that claims
  a non-zero where the value is zero is not.

  Args:
    payload: the bytes.
    reference: what `encode` was given, or a tree whose entries are zero at the same places; its
      values are not read.
    max_bytes: limit of the decoded arrays together. A leaf of zeros is short on the wire, however
      large it is. Besides the arrays, their positions need up to 10 bytes an entry of one leaf at
      a time, 40 against a reference.

  Returns:
    Dicts, lists and tuples, or a pytree of the structure of `reference`, of NumPy arrays that own
    their memory, with the dtypes and shapes that `encode` found.

  Raises:
    CodecError: the payload is damaged, of another version, or too large; or `reference` has other
      leaves than that of `encode`, or is zero at other places.
    TypeError: a leaf of `reference` is not an array that `encode` takes.
  """
  view = memoryview(payload).cast("B")
  if len(view) < _HEADER_BYTES + _CRC_BYTES:
    raise CodecError(f"a payload has at least {_HEADER_BYTES + _CRC_BYTES} bytes, not {len(view)}")
  reader = _Reader(view[:-_CRC_BYTES])
  if reader.take(len(_MAGIC)) != _MAGIC:
    raise CodecError(f"a payload begins with {_MAGIC!r}, not {bytes(view[: len(_MAGIC)])!r}")
  version = reader.uint(1)
  if version != VERSION:
    raise CodecError(f"the payload has version {version}; this reads version {VERSION}")
  if zlib.crc32(view[:-_CRC_BYTES]) != int.from_bytes(view[-_CRC_BYTES:], "little"):
    raise CodecError("the payload is damaged: its crc32 does not fit")
  flags = reader.uint(1)
  if flags >= _NUM_FLAGS:
    raise CodecError(f"flags must be below {_NUM_FLAGS}, found {flags}")
  value_dtype = checked_value_dtype(VALUE_DTYPES[flags >> 1 & 3])
  keep_signed_zeros = bool(flags & _SIGNS)
  if bool(flags & 1) != (reference is not None):
    need = "needs the reference that it was encoded against" if flags & 1 else "has no reference"
    raise CodecError(f"the payload {need}")

  if reference is None:
    specs: list[Spec] = []
    treedef = jax.tree.structure(_read_node(reader, specs, [_MAX_NODES], 0))
    references = [None] * len(specs)
  else:
    specs, references, treedef, schema = _against(reference)
    if reader.take(len(schema)) != schema:
      raise CodecError("the payload was encoded against another reference: the schemas differ")
    if reader.take(_DIGEST_BYTES) != _mask_digest(specs, references, keep_signed_zeros):
      raise CodecError(
        "the payload was encoded against another reference: its zeros are at other places"
      )
  total = sum(spec.size * spec.dtype.itemsize for spec in specs)
  if total > max_bytes:
    raise CodecError(f"the arrays have {total} bytes, more than max_bytes={max_bytes}")
  leaves = []
  for spec, old in zip(specs, references, strict=True):
    try:
      leaves.append(_decode_leaf(reader, spec, old, value_dtype, keep_signed_zeros))
    except CodecError as error:
      raise CodecError(f"leaf {spec.name!r}: {error}") from None
  if reader.left:
    raise CodecError(f"{reader.left} bytes follow the last leaf")
  return jax.tree.unflatten(treedef, leaves)


def checked_value_dtype(value_dtype: Any) -> np.dtype | None:
  """Takes a `value_dtype` in any of NumPy's spellings; ValueError for one that is not offered."""
  if value_dtype is None:
    return None
  try:
    dtype = jnp.dtype(value_dtype)
  except TypeError:
    dtype = None
  if dtype is None or dtype.name not in VALUE_DTYPES:
    raise ValueError(
      f"value_dtype must be None, float32, bfloat16 or float16, found {value_dtype!r}"
    )
  return jnp.dtype(dtype.name)


def make_layout(tree: Any, reference: Any = None) -> Layout:
  """Takes a tree apart, which may be of traced arrays; raises what `encode` does."""
  if reference is None:
    leaves: list[Any] = []
    specs: list[Spec] = []
    schema = b"".join(_write_node(tree, (), leaves, specs, [_MAX_NODES]))
    return Layout(specs, leaves, None, schema)
  specs, references, treedef, schema = _against(reference)
  flat, found = jax.tree_util.tree_flatten_with_path(tree)
  if found != treedef:
    raise ValueError("tree and reference must have one structure, and theirs differ")
  for spec, (_, leaf) in zip(specs, flat, strict=True):
    other = _spec(spec.name, leaf)
    if other != spec:
      raise ValueError(
        f"leaf {spec.name!r}: {other.dtype}{list(other.shape)} in tree, "
        f"{spec.dtype}{list(spec.shape)} in reference; they must be the same"
      )
  return Layout(specs, [leaf for _, leaf in flat], references, schema)


def fixed_bytes(layout: Layout) -> int:
  """Counts the bytes that do not depend on values: all but what follows the leaves' forms."""
  digest = 0 if layout.references is None else _DIGEST_BYTES
  return _HEADER_BYTES + len(layout.schema) + digest + len(layout.specs) + _CRC_BYTES


def value_bytes(dtype: np.dtype, value_dtype: np.dtype | None) -> int:
  """Counts the bytes of one value of a leaf of `dtype`."""
  return 0 if dtype.name == "bool" else _sent_dtype(dtype, value_dtype).itemsize


def dense_bytes(size: int, one: int) -> int:
  """Counts the bytes of a dense leaf of `size` values of `one` bytes each, 0 for bool."""
  return size * one if one else (size + 7) // 8


def form_bytes(
  n: Count,
  size: Count,
  one: Count,
  dense: Count,
  change: tuple[Count, Count] | None,
  arithmetic: Arithmetic,
) -> tuple[Count, ...]:
  """Counts the bytes of a leaf after its form: dense, sparse and, with `change`, delta.

  Args:
    n: entries that are not zero.
    size: entries.
    one: what `value_bytes` gives.
    dense: what `dense_bytes` gives.
    change: entries that are not zero in the reference, and those of n that are zero there; None
      without a reference.
    arithmetic: what to compute with. In uint32 it is exact while max(dense, 2 size) + size / 4 + 16
      is below 2^32.
  """
  sparse = 4 + positions_bytes(n, size, arithmetic) + n * one
  if change is None:
    return dense, sparse
  r, grown = change
  places = positions_bytes(r + grown - n, r, arithmetic)  # dropped ones
  places += positions_bytes(grown, size - r, arithmetic)
  return dense, sparse, 8 + places + n * one


def positions_bytes(k: Count, size: Count, arithmetic: Arithmetic) -> Count:
  """Counts the bytes of k positions below `size`."""
  low, high = _elias_fano_bits(k, size, arithmetic)
  coded = arithmetic.minimum(_in_bytes(size), _in_bytes(low) + _in_bytes(high))
  return arithmetic.where((k == 0) | (k == size), 0, coded)


def _elias_fano_bits(k: Count, size: Count, arithmetic: Arithmetic) -> tuple[Count, Count]:
  """The bits of the low parts and of the high parts; anything where k is 0."""
  num_low = _num_low_bits(k, size, arithmetic)
  return k * num_low, k + ((size - 1) >> num_low)


def _num_low_bits(k: Count, size: Count, arithmetic: Arithmetic) -> Count:
  return arithmetic.floor_log2(size // arithmetic.where(k == 0, 1, k) | 1)  # | 1: where size is 0


def _in_bytes(bits: Count) -> Count:
  return (bits + 7) // 8


def _sent_dtype(dtype: np.dtype, value_dtype: np.dtype | None) -> np.dtype:
  if value_dtype is None or dtype.name not in ("float32", "float64"):
    return dtype
  return value_dtype if value_dtype.itemsize < dtype.itemsize else dtype


# Trees.


def _spec(name: str, leaf: Any) -> Spec:
  dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
  known = getattr(dtype, "name", None)
  if known not in DTYPES:
    raise TypeError(
      f"leaf {name!r} must be an array of a dtype of {', '.join(DTYPES)}, "
      f"found {type(leaf).__name__} of {dtype}"
    )
  spec = Spec(name, jnp.dtype(known), tuple(np.shape(leaf)))
  if not _is_small_enough(spec.shape):
    raise ValueError(f"leaf {name!r} may have {MAX_ENTRIES} entries, found {list(spec.shape)}")
  return spec


def _is_small_enough(shape: Sequence[int]) -> bool:
  # Axes of length 0 apart: NumPy does the same.
  return len(shape) <= _MAX_AXES and math.prod(n for n in shape if n) <= MAX_ENTRIES


def _against(reference: Any) -> tuple[list[Spec], list[Any], Any, bytes]:
  """The leaves of a reference, its structure, and the bytes that stand for both."""
  flat, treedef = jax.tree_util.tree_flatten_with_path(reference)
  specs = [_spec(trees.path_name(path), leaf) for path, leaf in flat]
  # Not the structure itself: what stands for that in text may differ from process to process.
  text = "".join(f"{spec.name!r} {spec.dtype.name}{list(spec.shape)}\n" for spec in specs)
  crc = zlib.crc32(text.encode("utf-8", "surrogatepass"))
  return specs, [leaf for _, leaf in flat], treedef, struct.pack("<I", crc)


def _mask_digest(
  specs: Sequence[Spec], references: Sequence[Any], keep_signed_zeros: bool
) -> bytes:
  """Digests which entries of a reference are not zero."""
  digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
  for spec, leaf in zip(specs, references, strict=True):
    digest.update(_packed(_bits(leaf, spec, keep_signed_zeros) != 0))
  return digest.digest()


def _write_node(
  node: Any, path: tuple[str, ...], leaves: list[Any], specs: list[Spec], budget: list[int]
) -> Iterator[bytes]:
  """Writes a node and those below it; `budget` has the number of nodes that may still come."""
  if len(path) > _MAX_DEPTH:
    raise ValueError(f"tree may be nested {_MAX_DEPTH} deep, and is deeper at {'/'.join(path)!r}")
  budget[0] -= 1
  if budget[0] < 0:
    raise ValueError(f"tree may have {_MAX_NODES} leaves and containers, and has more")
  if node is None:
    yield bytes([_NONE])
  elif isinstance(node, Mapping):
    for key in node:
      if not isinstance(key, str):
        raise TypeError(f"keys must be str without a reference, found {key!r}")
    yield struct.pack("<BI", _DICT, len(node))
    for key in sorted(node):  # in JAX's order
      try:
        text = key.encode()
        yield struct.pack("<H", len(text)) + text
      except (UnicodeEncodeError, struct.error):
        raise ValueError(
          f"keys must be UTF-8 of less than 65536 bytes, found {key[:40]!r}"
        ) from None
      yield from _write_node(node[key], (*path, key), leaves, specs, budget)
  elif type(node) in (list, tuple):
    yield struct.pack("<BI", _LIST if isinstance(node, list) else _TUPLE, len(node))
    for i, child in enumerate(node):
      yield from _write_node(child, (*path, str(i)), leaves, specs, budget)
  elif isinstance(node, list | tuple):
    raise TypeError(
      f"containers must be mappings, lists and tuples without a reference, found "
      f"{type(node).__name__} at {'/'.join(path)!r}"
    )
  else:
    spec = _spec("/".join(path), node)
    leaves.append(node)
    specs.append(spec)
    tag = _LEAF + DTYPES.index(spec.dtype.name)
    yield struct.pack(f"<BB{len(spec.shape)}I", tag, len(spec.shape), *spec.shape)


def _read_node(reader: "_Reader", specs: list[Spec], budget: list[int], depth: int) -> Any:
  """Reads a node and those below it, with the leaves' numbers in place of them."""
  if depth > _MAX_DEPTH:
    raise CodecError(f"the tree is nested more than {_MAX_DEPTH} deep")
  budget[0] -= 1
  if budget[0] < 0:
    raise CodecError(f"the tree has more than {_MAX_NODES} leaves and containers")
  tag = reader.uint(1)
  if tag == _NONE:
    return None
  if tag == _DICT:
    made: dict[str, Any] = {}
    last = None
    for _ in range(reader.uint(4)):
      try:
        key = str(reader.take(reader.uint(2)), "utf-8")
      except UnicodeDecodeError:
        raise CodecError("a key is not UTF-8") from None
      if last is not None and key <= last:
        raise CodecError(f"the keys do not ascend at {key[:40]!r}")
      made[key] = _read_node(reader, specs, budget, depth + 1)
      last = key
    return made
  if tag in (_LIST, _TUPLE):
    nodes = [_read_node(reader, specs, budget, depth + 1) for _ in range(reader.uint(4))]
    return nodes if tag == _LIST else tuple(nodes)
  if not _LEAF <= tag < _LEAF + len(DTYPES):
    raise CodecError(f"no node of a tree begins with {tag}")
  shape = tuple(reader.uint(4) for _ in range(reader.uint(1)))
  if not _is_small_enough(shape):
    raise CodecError(f"an array may have {MAX_ENTRIES} entries, found {list(shape)}")
  specs.append(Spec(str(len(specs)), jnp.dtype(DTYPES[tag - _LEAF]), shape))
  return len(specs) - 1


# Leaves.


def _encode_leaf(
  spec: Spec, leaf: Any, old: Any, value_dtype: np.dtype | None, keep_signed_zeros: bool
) -> list[Buffer]:
  bits = _bits(leaf, spec, keep_signed_zeros)
  mask = bits != 0
  n = int(np.count_nonzero(mask))
  change = None
  if old is not None:
    old_mask = _bits(old, spec, keep_signed_zeros) != 0
    grown_mask = mask & ~old_mask
    change = int(np.count_nonzero(old_mask)), int(np.count_nonzero(grown_mask))
  one = value_bytes(spec.dtype, value_dtype)
  sizes = form_bytes(n, spec.size, one, dense_bytes(spec.size, one), change, INTEGERS)
  form = sizes.index(min(sizes))
  head = [bytes([form])]
  if form == _DENSE:
    return [*head, _values(bits, spec, value_dtype) if one else _packed(mask)]
  places = np.flatnonzero(mask)
  values = [_values(bits[places], spec, value_dtype)] if one else []
  if form == _SPARSE:
    return [*head, struct.pack("<I", n), *_positions(places, spec.size), *values]
  old_places = np.flatnonzero(old_mask)
  dropped = np.flatnonzero(~mask[old_places])
  grown = np.flatnonzero(grown_mask)
  # A place's number among the zero ones: without those before it that are not zero.
  grown_numbers = grown - np.searchsorted(old_places, grown)
  return [
    *head,
    struct.pack("<II", grown.size, dropped.size),
    *_positions(dropped, old_places.size),
    *_positions(grown_numbers, spec.size - old_places.size),
    *values,
  ]


def _decode_leaf(
  reader: "_Reader", spec: Spec, old: Any, value_dtype: np.dtype | None, keep_signed_zeros: bool
) -> np.ndarray:
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
    places = _read_positions(reader, n, size, "entries")
  elif form == _DELTA and old is not None:
    num_grown, num_dropped = reader.uint(4), reader.uint(4)
    old_places = np.flatnonzero(_bits(old, spec, keep_signed_zeros))
    dropped = _read_positions(reader, num_dropped, old_places.size, "dropped entries")
    num_free = size - old_places.size
    grown = _as_numbers(_read_positions(reader, num_grown, num_free, "grown entries"))
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


def _bits(leaf: Any, spec: Spec, keep_signed_zeros: bool) -> np.ndarray:
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


# Values.


def _values(bits: np.ndarray, spec: Spec, value_dtype: np.dtype | None) -> memoryview:
  sent = _sent_dtype(spec.dtype, value_dtype)
  if sent != spec.dtype:
    bits = _rounded(bits.view(spec.dtype), sent, spec.name).view(_unsigned(sent))
  return bits.astype(_little_endian(sent), copy=False).data


def _read_values(
  reader: "_Reader",
  count: int,
  spec: Spec,
  value_dtype: np.dtype | None,
  keep_signed_zeros: bool,
) -> np.ndarray:
  """Reads values as unsigned integers of the leaf's own width."""
  sent = _sent_dtype(spec.dtype, value_dtype)
  raw = reader.take(count * sent.itemsize)
  values = np.frombuffer(raw, _little_endian(sent)).astype(_unsigned(sent))
  if sent != spec.dtype:
    with np.errstate(all="ignore"):  # NaNs
      values = values.view(sent).astype(spec.dtype).view(_unsigned(spec.dtype))
  if not keep_signed_zeros and np.any(_is_signed_zero(values, spec)):
    raise CodecError("a value is -0.0, and the payload does not keep the signs of zeros")
  return values


def _rounded(x: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  with np.errstate(all="ignore"):
    if x.dtype.itemsize == 8 and dtype.name == "bfloat16":
      x = _rounded_to_odd(x)  # ml_dtypes rounds twice, by way of float32
    rounded = x.astype(dtype)
  too_large = np.flatnonzero(np.isinf(rounded) & ~np.isinf(x))
  if too_large.size:
    raise ValueError(f"leaf {name!r}: {x[too_large[0]]} is too large for value_dtype={dtype.name}")
  lost = np.flatnonzero((rounded == 0) & (x != 0))
  if lost.size:
    smallest = np.asarray(jnp.finfo(dtype).smallest_normal, x.dtype)
    rounded[lost] = np.copysign(smallest, x[lost]).astype(dtype)
  return rounded


def _rounded_to_odd(x: np.ndarray) -> np.ndarray:
  """float64 to float32 so that rounding once more is as good as rounding once."""
  rounded = x.astype(np.float32)
  bits = rounded.view(np.uint32)
  wide = rounded.astype(np.float64)
  bits -= np.abs(wide) > np.abs(x)  # toward 0
  bits |= (wide != x) & ~np.isnan(x)
  return rounded


# Positions.


def _packed(mask: np.ndarray) -> memoryview:
  return np.packbits(mask, bitorder="little").data


def _uses_bitmap(k: int, size: int) -> bool:
  return positions_bytes(k, size, INTEGERS) == _in_bytes(size)


def _positions(positions: np.ndarray, size: int) -> list[memoryview]:
  """Writes ascending positions below `size`."""
  k = positions.size
  if k in (0, size):
    return []
  if _uses_bitmap(k, size):
    mask = np.zeros(size, bool)
    mask[positions] = True
    return [_packed(mask)]
  num_low = _num_low_bits(k, size, INTEGERS)
  planes = np.empty((num_low, k), np.uint8)
  for i, plane in enumerate(planes):
    np.bitwise_and(positions >> i, 1, out=plane, casting="unsafe")
  high = np.zeros(_elias_fano_bits(k, size, INTEGERS)[1], bool)
  high[(positions >> num_low) + np.arange(k)] = True
  return [_packed(planes.reshape(-1)), _packed(high)]


def _read_positions(reader: "_Reader", k: int, size: int, what: str) -> Places:
  """Reads what `_positions` wrote: a slice, a mask or ascending positions."""
  if k > size:
    raise CodecError(f"{k} {what} among {size}")
  if k in (0, size):
    return slice(0, k)
  if _uses_bitmap(k, size):
    mask = reader.mask(size)
    if np.count_nonzero(mask) != k:
      raise CodecError(f"{np.count_nonzero(mask)} {what} marked, {k} announced")
    return mask
  num_low = _num_low_bits(k, size, INTEGERS)
  low_bits, high_bits = _elias_fano_bits(k, size, INTEGERS)
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


def _as_numbers(places: Places) -> np.ndarray:
  if isinstance(places, slice):
    return np.arange(places.stop)
  return np.flatnonzero(places) if places.dtype == bool else places


class _Reader:
  """Reads a buffer from its start on; nothing is allocated for what the buffer does not hold."""

  def __init__(self, view: memoryview) -> None:
    self._view = view
    self._at = 0

  @property
  def left(self) -> int:
    return len(self._view) - self._at

  def take(self, count: int) -> memoryview:
    if count > self.left:
      raise CodecError(f"{count} bytes announced, {self.left} left")
    self._at += count
    return self._view[self._at - count : self._at]

  def uint(self, width: int) -> int:
    return int.from_bytes(self.take(width), "little")

  def mask(self, count: int) -> np.ndarray:
    """A bitmap of `count` bits, as bool."""
    packed = np.frombuffer(self.take(_in_bytes(count)), np.uint8)
    if count % 8 and packed[-1] >> count % 8:
      raise CodecError("bits that fill up a byte are not 0")
    return np.unpackbits(packed, count=count, bitorder="little").view(bool)
