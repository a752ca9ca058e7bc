"""The size of a model on the wire, counted on the device, where nothing is encoded."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.io import codec
from sparsyfed_jax.ops.count import count_one, count_true

_UINT32 = codec.Arithmetic(lambda x: 31 - lax.clz(x), jnp.minimum, jnp.where)


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
  value_dtype = codec.checked_value_dtype(value_dtype)
  layout = codec.make_layout(tree, reference)
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

  masks = [_is_nonzero(*pair) for pair in zip(layout.specs, layout.leaves, strict=True)]
  change = None
  if layout.references is None:
    n = _stacked(map(count_one, masks))
  else:
    old = [_is_nonzero(*pair) for pair in zip(layout.specs, layout.references, strict=True)]
    counts = [count_true(a, b, a & ~b) for a, b in zip(masks, old, strict=True)]
    n, r, grown = map(_stacked, zip(*counts, strict=True))
    change = r, grown
  size, one, dense_size = (jnp.asarray(np.array(x, np.uint32)) for x in (sizes, ones, dense))
  forms = codec.form_bytes(n, size, one, dense_size, change, _UINT32)
  return jnp.uint32(fixed) + jnp.sum(functools.reduce(jnp.minimum, forms), dtype=jnp.uint32)


def _stacked(counts: Iterable[jax.Array]) -> jax.Array:
  return jnp.stack(list(counts)).astype(jnp.uint32)


def _is_nonzero(spec: codec.Spec, leaf: Any) -> jax.Array:
  x = jnp.asarray(leaf)
  if x.dtype != spec.dtype:
    raise TypeError(f"leaf {spec.name!r}: {spec.dtype} needs jax_enable_x64; JAX has {x.dtype} now")
  if x.dtype == jnp.bool_:
    return x
  # As integers: backends may flush subnormals to 0, and take -0.0 for it.
  return lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") != 0
