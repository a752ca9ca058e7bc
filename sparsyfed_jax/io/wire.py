"""The size of a model on the wire, counted on the device, where nothing is encoded."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.io import codec
from sparsyfed_jax.ops import count_each

_UINT32 = codec.Arithmetic(lambda x: 31 - lax.clz(x), jnp.minimum, jnp.where)


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
  """
  if reference is not None:
    changes = count_changes(tree, reference, keep_signed_zeros)
    return update_bytes(changes, tree, reference, value_dtype)
  layout = codec.make_layout(tree)
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
  layout = codec.make_layout(tree, reference)
  now, before = (
    _bits(layout.specs, leaves, keep_signed_zeros)
    for leaves in (layout.leaves, layout.references or [])
  )
  # What the reference has is counted apart: for many trees of one reference, once.
  counts = [
    *count_each(lambda old: [old != 0], before),
    *count_each(lambda new, old: [new != 0, (new != 0) & (old == 0)], now, before),
  ]
  return Changes(*(count.astype(jnp.uint32) for count in counts))


def update_bytes(changes: Changes, tree: Any, reference: Any, value_dtype: Any = None) -> jax.Array:
  """Counts as `payload_bytes` does, where the changes are known."""
  layout = codec.make_layout(tree, reference)
  return _count(layout, changes.now, (changes.before, changes.grown), value_dtype)


def whole_bytes(nonzero: jax.Array, tree: Any, value_dtype: Any = None) -> jax.Array:
  """Counts as `payload_bytes` does without a reference, where the counts are known.

  Args:
    nonzero: (num_leaves,) uint32, entries that are not zero.
    tree: as in `payload_bytes`, whose shapes alone are read.
    value_dtype: as in `payload_bytes`.
  """
  return _count(codec.make_layout(tree), nonzero, None, value_dtype)


def _count(
  layout: codec.Layout,
  nonzero: jax.Array,
  change: tuple[jax.Array, jax.Array] | None,
  value_dtype: Any,
) -> jax.Array:
  value_dtype = codec.checked_value_dtype(value_dtype)
  fixed = codec.fixed_bytes(layout)
  if not layout.specs:
    return jnp.uint32(fixed)
  sizes = [spec.size for spec in layout.specs]
  ones = [codec.value_bytes(spec.dtype, value_dtype) for spec in layout.specs]
  dense = [codec.dense_bytes(size, one) for size, one in zip(sizes, ones, strict=True)]
  # What `codec.form_bytes` needs: forms that are larger than dense must not wrap around either.
  most = fixed + sum(max(d, 2 * s) + s // 4 + 16 for d, s in zip(dense, sizes, strict=True))
  if most >= 2**32:
    raise ValueError(f"tree must stay below 2^32 bytes on the wire, found up to {most}")
  size, one, whole = (jnp.asarray(np.array(each, np.uint32)) for each in (sizes, ones, dense))
  forms = codec.form_bytes(nonzero, size, one, whole, change, _UINT32)
  return jnp.uint32(fixed) + jnp.sum(functools.reduce(jnp.minimum, forms), dtype=jnp.uint32)


def _bits(
  specs: Sequence[codec.Spec], leaves: Sequence[Any], keep_signed_zeros: bool
) -> list[jax.Array]:
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
