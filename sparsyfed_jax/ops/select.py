"""The exact k-th largest magnitude without a sort, and the masks that follow from it.

A float's magnitude grows with its bit pattern read as an integer, sign bit dropped. So the k-th
largest magnitude is the largest pattern that at least k entries reach, and its bits are found from
the highest down by counting. No copy is made, k may be traced, and the counts of a pass are one
fused reduction. Two bits a pass: one would read the data twice as often, three would compare more
than the memory saves.

The tie rule, everywhere: what reaches the k-th magnitude is kept, so that ties with it are kept too
and a mask may hold more than k entries. Zeros are never kept by a mask: a kept zero could not be
told from a pruned one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.count import count_true

_BITS_PER_PASS = 2
_UNSIGNED = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}


def kth_magnitude(x: jax.Array, k: jax.Array | int) -> jax.Array:
  """Finds the k-th largest |x|, exactly.

  Args:
    x: float array of any shape, fewer than 2^31 entries; float64, float32, bfloat16 or float16. A
      NaN counts as larger than infinity.
    k: () integer, may be traced. k = 1 asks for the largest magnitude.

  Returns:
    () array of x's dtype: infinity where k < 1, 0 where k > x.size.

  Raises:
    TypeError: x is not a float array.
  """
  return _kth_magnitude_of([x], jnp.asarray(k, jnp.int32))


def is_at_least(x: jax.Array, threshold: jax.Array) -> jax.Array:
  """Compares |x| >= threshold, exact for subnormals too, which backends may flush to 0.

  Args:
    x: float array.
    threshold: array of x's dtype that broadcasts against x; not negative.

  Returns:
    Bool array.
  """
  return _keys(x) >= _keys(threshold)


def topk_mask(tree: Any, density: jax.Array | float) -> Any:
  """Marks the entries of largest magnitude over all leaves together.

  Args:
    tree: pytree of float arrays of one dtype.
    density: () share to keep, in [0, 1]; may be traced. The mask keeps round(density * N) of the N
      entries, more where magnitudes tie, fewer where fewer are not 0. A traced density is
      multiplied in float32, which is exact enough up to 2^24 entries.

  Returns:
    Pytree of bool arrays.
  """
  leaves, treedef = jax.tree.flatten(tree)
  if not leaves:
    return tree
  k = _num_kept(density, sum(leaf.size for leaf in leaves))
  return jax.tree.unflatten(treedef, _mask_of(leaves, k))


def largest_mask(x: jax.Array, k: jax.Array | int) -> jax.Array:
  """Marks the k entries of largest magnitude of one array.

  Args:
    x: float array of any shape.
    k: () integer, may be traced; 0 or less marks nothing.

  Returns:
    Bool array like x: more than k entries where magnitudes tie, fewer where fewer are not 0.
  """
  return _mask_of([x], jnp.asarray(k, jnp.int32))[0]


def layerwise_mask(tree: Any, densities: Any) -> Any:
  """Marks the entries of largest magnitude in each leaf on its own.

  Args:
    tree: pytree of float arrays.
    densities: () share to keep of every leaf, or a pytree like `tree` of such shares.

  Returns:
    Pytree of bool arrays.
  """
  if jax.tree_util.all_leaves([densities]):
    densities = jax.tree.map(lambda _: densities, tree)
  return jax.tree.map(lambda leaf, density: topk_mask(leaf, density), tree, densities)


def _num_kept(density: jax.Array | float, num_entries: int) -> jax.Array:
  if isinstance(density, float | int):
    return jnp.asarray(round(density * num_entries), jnp.int32)
  return jnp.round(jnp.asarray(density, jnp.float32) * num_entries).astype(jnp.int32)


def _mask_of(leaves: Sequence[jax.Array], k: jax.Array) -> list[jax.Array]:
  least = jnp.maximum(_keys(_kth_magnitude_of(leaves, k)), 1)  # zeros are never kept
  return [(_keys(leaf) >= least) & (k >= 1) for leaf in leaves]


def _kth_magnitude_of(leaves: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  dtypes = {leaf.dtype for leaf in leaves}
  if len(dtypes) != 1:
    raise TypeError(f"the leaves must have one dtype, found {sorted(map(str, dtypes))}")
  (dtype,) = dtypes
  keys = [_keys(leaf) for leaf in leaves]
  width = jnp.finfo(dtype).bits - 1
  num_passes = -(-width // _BITS_PER_PASS)
  pivots_per_pass = 2**_BITS_PER_PASS - 1
  unsigned = keys[0].dtype

  def refine(i: jax.Array, found: jax.Array) -> jax.Array:
    # The last pass may overlap the one before; its pivots are then settled already.
    shift = jnp.maximum(width - _BITS_PER_PASS * (i + 1), 0).astype(unsigned)
    steps = jnp.arange(1, pivots_per_pass + 1, dtype=unsigned)
    pivots = found + (steps << shift)
    counts = [jnp.stack(count_true(*(leaf >= pivot for pivot in pivots))) for leaf in keys]
    num_reached = jnp.sum(sum(counts) >= k).astype(unsigned)
    return found + (num_reached << shift)

  found = lax.fori_loop(0, num_passes, refine, jnp.zeros((), unsigned))
  magnitude = lax.bitcast_convert_type(found, dtype)
  return jnp.where(k < 1, jnp.asarray(jnp.inf, dtype), magnitude)


def _keys(x: jax.Array) -> jax.Array:
  if not jnp.issubdtype(x.dtype, jnp.floating) or jnp.finfo(x.dtype).bits not in _UNSIGNED:
    raise TypeError(f"magnitudes are selected in float arrays of 16 to 64 bits, found {x.dtype}")
  bits = jnp.finfo(x.dtype).bits
  unsigned = _UNSIGNED[bits]
  pattern = lax.bitcast_convert_type(lax.stop_gradient(x), unsigned)
  return pattern & jnp.asarray(2 ** (bits - 1) - 1, unsigned)
