"""Searches in images and large arrays, which are laid out in several ways for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import ops
from sparsyfed_jax.ops import select
from sparsyfed_jax.ops.backend.digits import kth_key, laid_out
from tests import reference

# And as what they are searched: features that fill a part of a register, or do not fit into one, in
# images that fill registers or do not; wide ones and small ones stay as they are.
SHAPES = {
  (5, 13, 8, 32): (130, 128),
  (5, 16, 16, 24): (5, 6144),
  (8, 7, 11, 48): (231, 128),
  (9, 15, 128): (9, 15, 128),
  (5, 61, 61, 1): (5, 61, 61, 1),
  (4, 8, 8, 32): (4, 8, 8, 32),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_images_are_searched_as_they_lie_in_a_tpu(shape, dtype):
  x = np.random.default_rng(0).integers(-99, 99, shape).astype(dtype)  # with ties and zeros
  (rows,) = laid_out([jnp.asarray(x)])
  assert rows.shape == SHAPES[shape]
  np.testing.assert_array_equal(np.sort(rows, axis=None), np.sort(x, axis=None))
  find = jax.jit(ops.kth_magnitude)
  with ops.untuned():
    for k in (1, x.size // 20, x.size, x.size + 1):
      assert float(find(x, k)) == reference.kth_magnitude(x.reshape(-1), k)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), ()])
def test_arrays_of_no_entries_or_one(shape):
  x = np.full(shape, -3, np.float32)
  with ops.untuned():
    assert float(jax.jit(ops.kth_magnitude)(x, 1)) == 3 * x.size
    assert jax.jit(ops.topk_mask)([x, x], 0.5)[0].shape == shape


# Together more than half a million entries, which products count: small arrays and rows of 128 lie
# in one array, wide and narrow ones in their own.
MODEL = [(3, 3, 5, 7), (77,), (1030, 128), (270_001,), (3, 3, 128, 256), (7, 16, 80, 32)]
AS_ROWS = [(1030 + 2110 + 3 + 1, 128), (3, 3, 128, 256), (16 * 80 * 7 // 4, 128)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_large_model_is_searched_bit_by_bit(dtype):
  rng = np.random.default_rng(0)
  leaves = [rng.integers(-99, 99, shape).astype(dtype) for shape in MODEL]
  leaves[2] = rng.standard_normal(MODEL[2]).astype(dtype)
  rows = laid_out([jnp.asarray(leaf) for leaf in leaves])
  assert sorted(leaf.shape for leaf in rows) == sorted(AS_ROWS)
  x = np.concatenate([leaf.reshape(-1) for leaf in leaves])
  find = jax.jit(lambda leaves, k: kth_key(list(map(select._keys, laid_out(leaves))), k))
  for k in (1, 9_999, x.size // 20, np.count_nonzero(x), x.size, x.size + 1):
    found = jax.lax.bitcast_convert_type(find(leaves, k), dtype)
    assert float(found) == reference.kth_magnitude(x, k)
  assert (
    "while" in find.lower(leaves, 1).as_text() and "dot_general" in find.lower(leaves, 1).as_text()
  )


def test_masks_of_a_large_model_are_those_of_a_sort_on_any_platform():
  rng = np.random.default_rng(0)
  tree = [rng.standard_normal(shape).astype(np.float32) for shape in MODEL]
  find = jax.jit(ops.topk_mask)
  with ops.untuned():
    masks = find(tree, 0.05)
  x = np.concatenate([leaf.reshape(-1) for leaf in tree])
  least = reference.kth_magnitude(x, int(ops.num_kept(x.size, 0.05)))
  for mask, leaf, tuned in zip(masks, tree, find(tree, 0.05), strict=True):
    np.testing.assert_array_equal(mask, np.abs(leaf) >= least)
    np.testing.assert_array_equal(tuned, mask)
