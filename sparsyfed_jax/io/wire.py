"""The size of a model on the wire, counted on the device, where nothing is encoded."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.io import codec
from sparsyfed_jax.ops.count import count_one, count_true

_UINT32 = codec.Arithmetic(lambda x: 31 - lax.clz(x), jnp.minimum, jnp.where)


class Changes(NamedTuple):
  """How many entries of each leaf are not zero, bit by bit; (num_leaves,) uint32."""

  before: jax.Array  # in a reference
  now: jax.Array
  grown: jax.Array  # zero in the reference, and not any more


def payload_bytes(tree: Any, reference: Any = None, value_dtype: Any = None) -> jax.Array:
  """Counts the bytes of `codec.encode(tree, reference, value_dtype)`.

  Exact, from counts of entries whose bits are not all zero: one per leaf or, with a reference,
  three in one reading. May be jitted and vmapped.

  Args:
    tree: what `encode` takes, traced or not. Its size must stay below 2^32 bytes, and a leaf of one
      byte a value, or of bool, below 2^30 entries.
    reference: what `encode` takes.
    value_dtype: what `encode` takes.

  Returns:
    () uint32.

  Raises:
    TypeError: as `encode`; or a leaf of 64 bits where JAX has none.
    ValueError: as `encode`; or a tree that is larger.
  """
  if reference is not None:
    return update_bytes(count_changes(tree, reference), tree, reference, value_dtype)
  layout = codec.make_layout(tree)
  counts = [count_one(_is_nonzero(*pair)) for pair in zip(layout.specs, layout.leaves, strict=True)]
  return whole_bytes(_stack(counts), tree, value_dtype)


def count_changes(tree: Any, reference: Any) -> Changes:
  """Counts what the size of a tree depends on, in one reading of it and of its reference.

  Args:
    tree: what `codec.encode` takes.
    reference: what `codec.encode` takes.

  Raises:
    TypeError: as `payload_bytes`.
    ValueError: as `codec.encode`.
  """
  layout = codec.make_layout(tree, reference)
  counts = []
  for spec, leaf, old in zip(layout.specs, layout.leaves, layout.references or [], strict=True):
    now, before = _is_nonzero(spec, leaf), _is_nonzero(spec, old)
    # What the reference has is counted apart: for many trees of one reference, once.
    counts.append((count_one(before), *count_true(now, now & ~before)))
  return Changes(*map(_stack, zip(*counts, strict=True))) if counts else Changes(*[_stack([])] * 3)


def update_bytes(changes: Changes, tree: Any, reference: Any, value_dtype: Any = None) -> jax.Array:
  """Counts as `payload_bytes` does, where the changes are known."""
  layout = codec.make_layout(tree, reference)
  return _count(layout, changes.now, (changes.before, changes.grown), value_dtype)


def whole_bytes(nonzero: jax.Array, tree: Any, value_dtype: Any = None) -> jax.Array:
  """Counts as `payload_bytes` does without a reference, where the counts are known.

  Args:
    nonzero: (num_leaves,) uint32, entries whose bits are not all zero.
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


def _stack(counts: Any) -> jax.Array:
  return jnp.stack(counts).astype(jnp.uint32) if len(counts) else jnp.zeros(0, jnp.uint32)


def _is_nonzero(spec: codec.Spec, leaf: Any) -> jax.Array:
  x = jnp.asarray(leaf)
  if x.dtype != spec.dtype:
    raise TypeError(f"leaf {spec.name!r}: {spec.dtype} needs jax_enable_x64; JAX has {x.dtype} now")
  if x.dtype == jnp.bool_:
    return x
  # As integers: backends may flush subnormals to 0, and take -0.0 for it.
  return lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") != 0
