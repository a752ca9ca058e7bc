"""Values that are sent in fewer bits: which ones, and how they are rounded."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.types import Key
from sparsyfed_jax.wire.levels import dequantise, quantise

VALUE_DTYPES = (None, "float32", "bfloat16", "float16")
# Sent as numbers of levels, and what is sent of leaves of fewer than two axes then.
LEVEL_BITS = {"int8": 8, "int4": 4}
BESIDE_LEVELS = "bfloat16"
_LEAST_AXES = 2


def checked_value_dtype(value_dtype: Any) -> np.dtype | None:
  """Takes a `value_dtype` in any of NumPy's spellings; ValueError for one that is not offered."""
  if value_dtype is None:
    return None
  try:
    dtype = jnp.dtype(value_dtype)
  except TypeError:
    dtype = None
  if dtype is None or dtype.name not in (*VALUE_DTYPES, *LEVEL_BITS):
    raise ValueError(
      f"value_dtype must be None, float32, bfloat16, float16, int8 or int4, found {value_dtype!r}"
    )
  return jnp.dtype(dtype.name)


def wire_dtypes(value_dtype: Any) -> tuple[np.dtype, np.dtype]:
  """Chooses what models are rounded to in both directions, and what uploads are sent in."""
  sent = jnp.dtype(value_dtype)
  return jnp.dtype(BESIDE_LEVELS if sent.name in LEVEL_BITS else sent), sent


@functools.cache  # names of dtypes are slow
def sent_dtype(dtype: np.dtype, num_axes: int, value_dtype: np.dtype | None) -> np.dtype:
  """Chooses what values of a leaf of `dtype` are sent in."""
  if value_dtype is None or dtype.name not in ("float32", "float64"):
    return dtype
  if value_dtype.name in LEVEL_BITS:
    has_levels = dtype.name == "float32" and num_axes >= _LEAST_AXES
    return value_dtype if has_levels else jnp.dtype(BESIDE_LEVELS)
  return value_dtype if value_dtype.itemsize < dtype.itemsize else dtype


@functools.cache
def level_bits(dtype: np.dtype, sent: np.dtype) -> int:
  """Counts the bits of a number of a level; 0 where values of `dtype` are sent as such."""
  return 0 if sent == dtype else LEVEL_BITS.get(sent.name, 0)


def round_to_wire(tree: Any, dtype: Any) -> Any:
  """Rounds the floats of a pytree to what another dtype can hold, as the wire format does.

  An entry that is not 0 stays so, at the least normal magnitude of `dtype`, because a mask travels
  as zeros; one that `dtype` has no room for becomes infinite.

  Args:
    tree: pytree of arrays; integers stay as they are.
    dtype: `jnp.float32`, `jnp.bfloat16` or `jnp.float16`.

  Example:
    >>> import jax.numpy as jnp
    >>> round_to_wire(jnp.float32(1.001), jnp.bfloat16)
    Array(1., dtype=float32)
    >>> round_to_wire(jnp.float32(1e-30), jnp.float16) > 0
    Array(True, dtype=bool)
  """
  if dtype == jnp.float32:
    return tree
  least = float(jnp.finfo(dtype).smallest_normal)

  def round_leaf(leaf: jax.Array) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    # The barrier keeps the compiler from taking both conversions away.
    rounded = lax.optimization_barrier(leaf.astype(dtype)).astype(leaf.dtype)
    return jnp.where((leaf != 0) & (rounded == 0), jnp.copysign(least, leaf), rounded)

  return jax.tree.map(round_leaf, tree)


def round_to_levels(tree: Any, bits: int, key: Key) -> Any:
  """Rounds what a tree has of float32 leaves of at least two axes, each to levels of its own.

  Args:
    tree: pytree of arrays.
    bits: 8 or 4, of an entry.
    key: of the chance.
  """
  leaves, treedef = jax.tree.flatten(tree)
  keys = jax.random.split(key, max(len(leaves), 1))
  rounded = [
    dequantise(quantise(leaf, bits, one), bits)
    if leaf.dtype == jnp.float32 and leaf.ndim >= _LEAST_AXES
    else leaf
    for leaf, one in zip(leaves, keys[: len(leaves)], strict=True)
  ]
  return jax.tree.unflatten(treedef, rounded)


def round_values(x: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """Rounds as `round_to_wire` does, on the host, and refuses what would become infinite.

  Args:
    x: (n,) floats.
    dtype: a narrower one.
    name: of the leaf.

  Raises:
    ValueError: a finite value is too large for `dtype`.
  """
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
