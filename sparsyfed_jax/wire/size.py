"""The size of a model on the wire, counted from its zeros alone: here nothing is encoded.

A size depends on shapes, dtypes and counts of entries that are not zero. The arithmetic takes
Python's integers or traced arrays, so that `codec.encode` and a device count alike.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.ops import count_each
from sparsyfed_jax.ops.backend.choice import by_platform
from sparsyfed_jax.wire.reader import Count, bitmap_bytes
from sparsyfed_jax.wire.rounding import checked_value_dtype, level_bits, sent_dtype
from sparsyfed_jax.wire.schema import Layout, Spec, make_layout


class Arithmetic(NamedTuple):
  """What sizes are computed with."""

  floor_log2: Callable[[Count], Count]  # of 1 and more
  minimum: Callable[[Count, Count], Count]
  where: Callable[[Any, Count, Count], Count]


INTEGERS = Arithmetic(lambda x: x.bit_length() - 1, min, lambda c, a, b: a if c else b)
UINT32 = Arithmetic(lambda x: 31 - lax.clz(x), jnp.minimum, jnp.where)


class Changes(NamedTuple):
  """How many entries of each leaf are not zero on the wire; (num_leaves,) uint32."""

  before: jax.Array  # in a reference
  now: jax.Array
  grown: jax.Array  # zero in the reference, and not any more


def payload_bytes(
  tree: Any,
  reference: Any = None,
  value_dtype: Any = None,
  keep_signed_zeros: bool = False,
) -> jax.Array:
  """Counts the bytes of `codec.encode(tree, reference, value_dtype, keep_signed_zeros)`.

  Exact, from counts of entries that are not zero: one per leaf or, with a reference, three in one
  reading. May be jitted and vmapped.

  Args:
    tree: what `encode` takes, traced or not. Its size must stay below 2^32 bytes, and a leaf of one
      byte a value, or of bool, below 2^30 entries.
    reference: what `encode` takes.
    value_dtype: what `encode` takes.
    keep_signed_zeros: what `encode` takes.

  Returns:
    () uint32.

  Raises:
    TypeError: as `encode`; or a leaf of 64 bits where JAX has none.
    ValueError: as `encode`; or a tree that is larger.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax.wire import encode
    >>> model = {"kernel": jnp.eye(100)}
    >>> int(payload_bytes(model)) == len(encode(model))
    True
  """
  if reference is not None:
    changes = count_changes(tree, reference, keep_signed_zeros)
    return update_bytes(changes, tree, reference, value_dtype)
  layout = make_layout(tree)
  leaves = _bits(layout.specs, layout.leaves, keep_signed_zeros)
  (nonzero,) = count_each(lambda bits: [bits != 0], leaves)
  return whole_bytes(nonzero.astype(jnp.uint32), tree, value_dtype)


def count_changes(tree: Any, reference: Any, keep_signed_zeros: bool = False) -> Changes:
  """Counts what the size of a tree depends on, in one reading of it and of its reference.

  Args:
    tree: what `codec.encode` takes.
    reference: what `codec.encode` takes.
    keep_signed_zeros: what `codec.encode` takes.

  Raises:
    TypeError: as `payload_bytes`.
    ValueError: as `codec.encode`.
  """
  layout = make_layout(tree, reference)
  now, before = (
    _bits(layout.specs, leaves, keep_signed_zeros)
    for leaves in (layout.leaves, layout.references or [])
  )
  counts = by_platform(now, before, cpu=_count_apart, default=_count_at_once)
  return Changes(*(count.astype(jnp.uint32) for count in counts))


def _count_apart(now: Sequence[jax.Array], before: Sequence[jax.Array]) -> list[jax.Array]:
  # For many trees of one reference that are counted side by side, the reference is counted once.
  of_reference = count_each(lambda old: [old != 0], before)
  return [*of_reference, *count_each(_now_and_grown, now, before)]


def _count_at_once(now: Sequence[jax.Array], before: Sequence[jax.Array]) -> list[jax.Array]:
  # On an accelerator the reading takes the time, and comparing what was read does not.
  return list(count_each(lambda new, old: [old != 0, *_now_and_grown(new, old)], now, before))


def _now_and_grown(new: jax.Array, old: jax.Array) -> list[jax.Array]:
  return [new != 0, (new != 0) & (old == 0)]


def update_bytes(changes: Changes, tree: Any, reference: Any, value_dtype: Any = None) -> jax.Array:
  """Counts as `payload_bytes` does, where the changes are known."""
  layout = make_layout(tree, reference)
  return _count(layout, changes.now, (changes.before, changes.grown), value_dtype)


def whole_bytes(nonzero: jax.Array, tree: Any, value_dtype: Any = None) -> jax.Array:
  """Counts as `payload_bytes` does without a reference, where the counts are known.

  Args:
    nonzero: (num_leaves,) uint32, entries that are not zero.
    tree: as in `payload_bytes`, whose shapes alone are read.
    value_dtype: as in `payload_bytes`.
  """
  return _count(make_layout(tree), nonzero, None, value_dtype)


def _count(
  layout: Layout,
  nonzero: jax.Array,
  change: tuple[jax.Array, jax.Array] | None,
  value_dtype: Any,
) -> jax.Array:
  value_dtype = checked_value_dtype(value_dtype)
  fixed = layout.fixed_bytes + sum(ends_bytes(spec, value_dtype) for spec in layout.specs)
  if not layout.specs:
    return jnp.uint32(fixed)
  sizes = [spec.size for spec in layout.specs]
  ones = [value_bytes(spec, value_dtype) for spec in layout.specs]
  pairs = [in_pairs(spec, value_dtype) for spec in layout.specs]
  dense = [dense_bytes(*each) for each in zip(sizes, ones, pairs, strict=True)]
  # What `form_bytes` needs: forms that are larger than dense must not wrap around either.
  most = fixed + sum(max(d, 2 * s) + s // 4 + 16 for d, s in zip(dense, sizes, strict=True))
  if most >= 2**32:
    raise ValueError(f"tree must stay below 2^32 bytes on the wire, found up to {most}")
  each = (jnp.asarray(np.array(one, np.uint32)) for one in (sizes, ones, dense, pairs))
  size, one, whole, paired = each
  forms = form_bytes(nonzero, size, one, whole, change, UINT32, paired)
  return jnp.uint32(fixed) + jnp.sum(functools.reduce(jnp.minimum, forms), dtype=jnp.uint32)


def _bits(specs: Sequence[Spec], leaves: Sequence[Any], keep_signed_zeros: bool) -> list[jax.Array]:
  """Takes leaves as unsigned integers, 0 where an entry is zero: backends flush subnormals to 0."""
  bits = []
  for spec, leaf in zip(specs, leaves, strict=True):
    x = jnp.asarray(leaf)
    if x.dtype != spec.dtype:
      raise TypeError(
        f"leaf {spec.name!r}: {spec.dtype} needs jax_enable_x64; JAX has {x.dtype} now"
      )
    unsigned = f"uint{8 * x.dtype.itemsize}"
    is_bool = x.dtype == jnp.bool_
    entries = x.astype(unsigned) if is_bool else lax.bitcast_convert_type(x, unsigned)
    if jnp.issubdtype(x.dtype, jnp.floating) and not keep_signed_zeros:
      entries = entries + entries  # without the sign
    bits.append(entries)
  return bits


def form_bytes(
  n: Count,
  size: Count,
  one: Count,
  dense: Count,
  change: tuple[Count, Count] | None,
  arithmetic: Arithmetic,
  paired: Count = 0,
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
    paired: 1 where two values share a byte, of which `one` is 1 then; else 0.
  """
  values = (n * one + paired) >> paired
  sparse = 4 + positions_bytes(n, size, arithmetic) + values
  if change is None:
    return dense, sparse
  r, grown = change
  places = positions_bytes(r + grown - n, r, arithmetic)  # dropped ones
  places += positions_bytes(grown, size - r, arithmetic)
  return dense, sparse, 8 + places + values


def positions_bytes(k: Count, size: Count, arithmetic: Arithmetic) -> Count:
  """Counts the bytes of k positions below `size`."""
  low, high = elias_fano_bits(k, size, arithmetic)
  coded = arithmetic.minimum(bitmap_bytes(size), bitmap_bytes(low) + bitmap_bytes(high))
  return arithmetic.where((k == 0) | (k == size), 0, coded)


def elias_fano_bits(k: Count, size: Count, arithmetic: Arithmetic) -> tuple[Count, Count]:
  """The bits of the low parts and of the high parts; anything where k is 0."""
  num_low = num_low_bits(k, size, arithmetic)
  return k * num_low, k + ((size - 1) >> num_low)


def num_low_bits(k: Count, size: Count, arithmetic: Arithmetic) -> Count:
  """Counts the low bits of each of k Elias-Fano positions."""
  return arithmetic.floor_log2(size // arithmetic.where(k == 0, 1, k) | 1)  # | 1: where size is 0


def value_bytes(spec: Spec, value_dtype: np.dtype | None) -> int:
  """Counts the bytes of one value of a leaf; 1 where two share one."""
  if spec.dtype.name == "bool":
    return 0
  return sent_dtype(spec.dtype, len(spec.shape), value_dtype).itemsize


def in_pairs(spec: Spec, value_dtype: np.dtype | None) -> int:
  """Returns 1 where two values of a leaf share a byte, else 0."""
  return int(_bits_of_level(spec, value_dtype) == 4)


def ends_bytes(spec: Spec, value_dtype: np.dtype | None) -> int:
  """Counts the bytes of the least and the largest level of a leaf, 0 where it has no levels."""
  return 8 if _bits_of_level(spec, value_dtype) else 0


def _bits_of_level(spec: Spec, value_dtype: np.dtype | None) -> int:
  return level_bits(spec.dtype, sent_dtype(spec.dtype, len(spec.shape), value_dtype))


def dense_bytes(size: int, one: int, paired: int = 0) -> int:
  """Counts the bytes of a dense leaf of `size` values of `one` bytes each, 0 for bool."""
  return (size * one + paired) >> paired if one else bitmap_bytes(size)
