"""The k-th magnitude against a full sort, and masks written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from sparsyfed_jax import ops
from sparsyfed_jax.ops import select
from sparsyfed_jax.ops.backend.digits import in_long_rows
from tests import reference

SIZES = [1, 2, 3, 31, 1000, 100_003]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]

kth = jax.jit(ops.kth_magnitude)
kth_of_each = jax.jit(jax.vmap(ops.kth_magnitude))
mask_of = jax.jit(ops.topk_mask)
masks_of = jax.jit(jax.vmap(ops.topk_mask, (0, None)))
find_on_gpu = jax.jit(select._find_on_gpu)


def of_bits(bits, dtype):
  width = jnp.finfo(dtype).bits
  return np.asarray(bits).astype(f"uint{width}").view(dtype)


def random_bits(rng, size, largest, dtype):
  """Patterns from 0 to `largest`, each with a random sign."""
  sign = rng.integers(0, 2, size, np.uint64) << np.uint64(jnp.finfo(dtype).bits - 1)
  return of_bits(rng.integers(0, largest, size, np.uint64, endpoint=True) | sign, dtype)


def infinity_bits(dtype):
  info = jnp.finfo(dtype)
  return 2 ** (info.bits - 1) - 2**info.nmant


def zero_filled(rng, size, dtype):
  values, signs = rng.standard_normal((2, size))
  return np.where(rng.random(size) < 0.1, values, np.copysign(0.0, signs)).astype(dtype)


def with_infinities(rng, size, dtype):
  values, signs = rng.standard_normal((2, size))
  return np.where(rng.random(size) < 0.3, np.copysign(np.inf, signs), values).astype(dtype)


KINDS = {
  "normal": lambda rng, size, dtype: rng.standard_normal(size).astype(dtype),
  "tied": lambda rng, size, dtype: rng.integers(-2, 3, size).astype(dtype),
  "zero-filled": zero_filled,
  "all zero": lambda rng, size, dtype: random_bits(rng, size, 0, dtype),
  "subnormal": lambda rng, size, dtype: random_bits(rng, size, 2 ** jnp.finfo(dtype).nmant, dtype),
  "any pattern": lambda rng, size, dtype: random_bits(rng, size, infinity_bits(dtype), dtype),
  "infinities": with_infinities,
}


def assert_is_kth(found, x, k):
  assert found.shape == () and found.dtype == x.dtype
  assert np.asarray(found).astype(np.float64) == reference.kth_magnitude(x, k), (x.shape, k)


def assert_is_kth_in_rows(leaves, ks):
  x = np.concatenate(leaves)
  for k in ks:
    assert_is_kth(lax.bitcast_convert_type(find_on_gpu(leaves, k), x.dtype), x, k)


class TestKthMagnitude:
  @pytest.mark.parametrize("kind", KINDS)
  @pytest.mark.parametrize("size", SIZES)
  @pytest.mark.parametrize("dtype", DTYPES)
  def test_equals_a_full_sort(self, kind, size, dtype):
    x = KINDS[kind](np.random.default_rng(size), size, dtype)
    for k in sorted({-1, 0, 1, 2, size // 3, size - 1, size, size + 1, 2**31 - 1}):
      assert_is_kth(kth(x, k), x, k)

  @pytest.mark.parametrize("kind", KINDS)
  @pytest.mark.parametrize("dtype", DTYPES)
  def test_in_as_many_passes_as_an_accelerator_takes(self, kind, dtype):
    x = KINDS[kind](np.random.default_rng(0), 1000, dtype)
    with ops.untuned():
      for k in (0, 1, 2, 333, 999, 1000, 1001):
        assert_is_kth(kth(x, k), x, k)

  @pytest.mark.parametrize("kind", KINDS)
  @pytest.mark.parametrize("dtype", DTYPES)
  def test_in_the_rows_of_a_gpu(self, kind, dtype):
    # Filled up to rows of equal length, with small leaves together in one row.
    rng = np.random.default_rng(0)
    leaves = [KINDS[kind](rng, size, dtype) for size in (17_001, 3, 500)]
    assert_is_kth_in_rows(leaves, (1, 333, 17_503, 17_504, 17_505))

  def test_in_more_rows_of_a_gpu_than_are_added_one_by_one(self):
    x = np.random.default_rng(0).standard_normal(33 * 2**14 - 5).astype(np.float32)
    assert len(in_long_rows([x])[0]) == 33
    assert_is_kth_in_rows([x], (1, 30_000, x.size))

  def test_a_sample_that_misleads(self):
    # Every 97th entry, where a sample looks, is tiny.
    x = np.random.default_rng(0).standard_normal(97 * 1024).astype(np.float32)
    x = np.concatenate([x, x[:10_000]])
    x[:: x.size // 1024] *= 1e-20
    for k in (1, 10, 5_000, 60_000, x.size - 2000, x.size - 1):
      assert_is_kth(kth(x, k), x, k)

  @pytest.mark.parametrize("kind", KINDS)
  def test_float64(self, kind):
    with jax.enable_x64(True):
      x = KINDS[kind](np.random.default_rng(0), 31, jnp.float64)
      for k in (0, 1, 7, 31, 32):
        assert_is_kth(kth(x, k), x, k)

  @settings(max_examples=100, deadline=None)
  @given(
    st.sampled_from([1, 2, 5, 9]).flatmap(
      lambda size: st.lists(
        st.one_of(
          st.sampled_from([0, 1, 2, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000]),
          st.integers(0, 0x7F800000),
        ).flatmap(lambda bits: st.sampled_from([bits, bits | 1 << 31])),
        min_size=size,
        max_size=size,
      )
    ),
    st.integers(-2, 11),
  )
  @example([1 << 31], 1)
  def test_any_float32(self, bits, k):
    x = of_bits(bits, np.float32)
    assert_is_kth(kth(x, k), x, k)

  def test_without_jit_and_with_any_kind_of_k(self):
    x = np.array([[0.5, -3.0, 0.0], [2.0, -2.0, 1.0]], np.float32)
    for k in (3, np.int64(3), jnp.int32(3), jnp.uint8(3)):
      assert_is_kth(ops.kth_magnitude(jnp.asarray(x), k), x, 3)

  def test_vmap_over_x_and_k(self):
    x = np.random.default_rng(0).standard_normal((5, 31)).astype(np.float32)
    ks = np.array([0, 1, 12, 31, 40], np.int32)
    both, only_x, only_k = (
      jax.jit(jax.vmap(ops.kth_magnitude, axes))(*arguments)
      for axes, arguments in [
        ((0, 0), (x, ks)),
        ((0, None), (x, 12)),
        ((None, 0), (x[0], ks)),
      ]
    )
    for i, k in enumerate(ks):
      assert_is_kth(both[i], x[i], k)
      assert_is_kth(only_x[i], x[i], 12)
      assert_is_kth(only_k[i], x[0], k)

  def test_nan_counts_as_larger_than_infinity(self):
    x = np.array([np.inf, 1, -np.nan, -2], np.float32)
    np.testing.assert_array_equal([kth(x, k) for k in (1, 2, 3)], [np.nan, np.inf, 2])

  def test_has_no_gradient(self):
    x = jnp.array([3.0, -1.0, 2.0])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(x) * ops.kth_magnitude(x, 2)))(x)
    np.testing.assert_array_equal(gradient, [2, 2, 2])

  @pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
  def test_takes_floats_only(self, dtype):
    with pytest.raises(TypeError, match=jnp.dtype(dtype).name):
      ops.kth_magnitude(jnp.ones(3, dtype), 1)


class TestIsAtLeast:
  @pytest.mark.parametrize("dtype", DTYPES)
  def test_compares_patterns_subnormals_included(self, dtype):
    bits = [0, 1, 2, 3, infinity_bits(dtype)]
    x = np.concatenate([of_bits(bits, dtype), -of_bits(bits, dtype)])
    reached = jax.jit(ops.is_at_least)(x, of_bits(2, dtype))
    assert reached.tolist() == 2 * [False, False, True, True, True]

  def test_threshold_zero_lets_everything_pass(self):
    assert ops.is_at_least(jnp.array([0.0, -0.0, -1.0]), jnp.float32(0)).all()


# Values, density and mask; all masks written by hand.
MASKS = {
  "half": ([3, -1, 2, 0.5], 0.5, [1, 0, 1, 0]),
  "sign does not matter": ([1, -2, 3, -4], 0.5, [0, 0, 1, 1]),
  "ties are all kept": ([1, -1, 1, 1], 0.25, [1, 1, 1, 1]),
  "ties at the threshold": ([5, 2, -2, 2, 1], 0.4, [1, 1, 1, 1, 0]),
  "zeros are never kept": ([0, 7, -0.0, 5], 1.0, [0, 1, 0, 1]),
  "too few are not zero": ([0, 0, 0, 5], 0.75, [0, 0, 0, 1]),
  "all zero": ([0, -0.0, 0], 1.0, [0, 0, 0]),
  "none": ([1, 2, 3, 4], 0.0, [0, 0, 0, 0]),
  "all": ([1, 2, -3, 4], 1.0, [1, 1, 1, 1]),
  "subnormal": ([1e-45, -3e-45, 0, 1e-39], 0.5, [0, 1, 0, 1]),
  "2.5 rounds to 2": ([*range(10, 0, -1)], 0.25, [1] * 2 + [0] * 8),
  "3.5 rounds to 4": ([*range(10, 0, -1)], 0.35, [1] * 4 + [0] * 6),
  "2.6 rounds to 3": ([*range(10, 0, -1)], 0.26, [1] * 3 + [0] * 7),
  "0.4 rounds to 0": ([*range(10, 0, -1)], 0.04, [0] * 10),
}


class TestTopkMask:
  @pytest.mark.parametrize("name", MASKS)
  def test_by_hand(self, name):
    values, density, expected = MASKS[name]
    mask = mask_of(np.array(values, np.float32), np.float32(density))
    assert mask.dtype == bool and mask.astype(int).tolist() == expected

  def test_ranks_all_leaves_together(self):
    # 2 of 6: the first leaf gives both, the nested ones none.
    tree = {"a": jnp.array([[5.0], [-4.0]]), "b": (jnp.array([3.0, 0.5]), jnp.array([-3.0, 1.0]))}
    mask = ops.topk_mask(tree, 1 / 3)
    assert jax.tree.map(lambda m: m.tolist(), mask) == {
      "a": [[True], [True]],
      "b": ([False, False], [False, False]),
    }

  @pytest.mark.parametrize("dtype", DTYPES)
  @pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 0.95, 1.0])
  def test_equals_the_concatenated_leaves(self, density, dtype):
    # In 16 bits, and for the second leaf in any case, many magnitudes tie.
    rng = np.random.default_rng(1)
    leaves = [
      (rng.standard_normal((7, 11)) * 3).astype(dtype),
      rng.integers(-3, 4, (4, 5, 6)).astype(dtype),
      np.zeros((0, 3), dtype),
      rng.standard_normal(()).astype(dtype),
    ]
    expected = reference.topk_mask(leaves, round(density * (77 + 120 + 1)))
    for found, mask in zip(mask_of(leaves, jnp.float32(density)), expected, strict=True):
      np.testing.assert_array_equal(found, mask)

  @pytest.mark.parametrize("size", [10, 1000, 12_345])
  def test_a_traced_density_prunes_as_many_as_a_python_float(self, size):
    x = np.random.default_rng(0).permutation(np.arange(1, size + 1, dtype=np.float32))
    for sparsity in (0.0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.95, 0.999, 1.0):
      traced = mask_of(x, jnp.float32(1 - sparsity))
      np.testing.assert_array_equal(traced, x > round(sparsity * size))

  @pytest.mark.parametrize(
    ("density", "expected"),
    [(0.25, 2), (0.35, 4), (1, 10), (np.float64(0.35), 4), (np.float32(0.35), 4)],
  )
  def test_density_may_be_any_number(self, density, expected):
    x = np.arange(1, 11, dtype=np.float32)
    mask = jax.jit(lambda x: ops.topk_mask(x, density))(x)
    np.testing.assert_array_equal(mask, x > 10 - expected)

  def test_vmap_over_trees_and_densities(self):
    rng = np.random.default_rng(2)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in [(3, 4), (3, 2, 3)])
    densities = np.array([0.1, 0.5, 0.9], np.float32)
    masks = jax.jit(jax.vmap(ops.topk_mask))([x, y], densities)
    for i, density in enumerate(densities):
      expected = reference.topk_mask([x[i], y[i]], round(10 * float(density)))
      np.testing.assert_array_equal(masks[0][i], expected[0])
      np.testing.assert_array_equal(masks[1][i], expected[1])

  @pytest.mark.parametrize("dtype", DTYPES)
  @pytest.mark.parametrize("spare", [-20_000, -5000, -1, 0, 1, 40_000])
  def test_large_and_sparse_already(self, spare, dtype):
    # As many entries are kept as there are, a few more or less; the least ones are subnormal.
    rng = np.random.default_rng(3)
    leaves = [zero_filled(rng, 80_000, dtype), zero_filled(rng, 30_000, dtype).reshape(300, 100)]
    leaves[0][:2] = of_bits([1, 2], dtype)
    k = max(sum(np.count_nonzero(leaf) for leaf in leaves) + spare, 0)
    for found, mask in zip(
      mask_of(leaves, jnp.float32(k / 110_000)), reference.topk_mask(leaves, k), strict=True
    ):
      np.testing.assert_array_equal(found, mask)

  def test_large_under_vmap(self):
    x = np.stack([zero_filled(np.random.default_rng(4), 100_001, np.float32)] * 3)
    densities = np.float32([0.02, 0.5, 0])
    for found, density in zip(
      jax.jit(jax.vmap(ops.topk_mask))(x, densities), densities, strict=True
    ):
      expected = reference.topk_mask([x[0]], round(100_001 * float(density)))[0]
      np.testing.assert_array_equal(found, expected)

  @pytest.mark.parametrize("tree", [{}, [], {"a": {}, "b": ()}])
  def test_empty_tree(self, tree):
    assert ops.topk_mask(tree, 0.5) == tree

  def test_the_leaves_must_have_one_dtype(self):
    with pytest.raises(TypeError, match="bfloat16.*float32"):
      ops.topk_mask([jnp.ones(2), jnp.ones(2, jnp.bfloat16)], 0.5)

  def test_takes_floats_only(self):
    with pytest.raises(TypeError, match="int32"):
      ops.topk_mask({"a": jnp.arange(3)}, 0.5)


class TestLayerwiseMask:
  TREE = {"a": np.float32([[4, -3], [2, 1]]), "b": [np.float32([0.4, 0.3, 0.3, 0, 0.1])]}

  def lists(self, densities, tree=None):
    masks = jax.jit(lambda tree: ops.layerwise_mask(tree, densities))(tree or self.TREE)
    return jax.tree.map(lambda m: m.astype(int).tolist(), masks)

  @pytest.mark.parametrize("density", [0.5, jnp.float32(0.5)])
  def test_one_density(self, density):
    # 2 of 4 and round(2.5) = 2 of 5, where a tie adds a third.
    assert self.lists(density) == {"a": [[1, 1], [0, 0]], "b": [[1, 1, 1, 0, 0]]}

  def test_a_density_for_each_leaf(self):
    expected = {"a": [[1, 0], [0, 0]], "b": [[1, 1, 1, 0, 1]]}
    assert self.lists({"a": 0.25, "b": [1.0]}) == expected
    assert self.lists({"a": jnp.float32(0.25), "b": [1.0]}) == expected

  def test_leaves_may_differ_in_dtype(self):
    tree = {"a": self.TREE["a"], "b": np.array([1, 2], jnp.bfloat16)}
    assert self.lists(0.5, tree) == {"a": [[1, 1], [0, 0]], "b": [0, 1]}

  def test_one_leaf_and_an_empty_tree(self):
    assert ops.layerwise_mask(jnp.array([1.0, 2.0]), 0.5).tolist() == [False, True]
    assert ops.layerwise_mask({}, 0.5) == {}


def test_density_0_keeps_nothing_not_even_infinities():
  x = np.float32([np.inf, -1, np.nan])
  assert not ops.topk_mask(x, 0.0).any()


@pytest.mark.parametrize("k", [-1, 0, 1, 3, 6, 9])
def test_largest_mask_counts(k):
  x = np.float32([[3, -7, 0], [0.5, -3, 1]])  # 3 and -3 tie
  masks = [ops.largest_mask(x, k), jax.jit(ops.largest_mask)(x, k)]
  expected = reference.topk_mask([x], k)[0]
  for mask in masks:
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("is_vmapped", [False, True])
def test_a_mask_holds_k_of_a_gradient_that_the_same_program_computes(is_vmapped):
  # A compiler may compute it again wherever it is read, rounding it another way.
  def mask(x, w, cotangent):
    def loss(w):
      return jnp.vdot(ops.PLAIN.dot_general(x, w, (((1,), (0,)), ((), ()))), cotangent)

    gradient = jax.grad(loss)(w)
    of_some = ops.largest_mask(jnp.where(w > 0, gradient, 0), 213)
    return ops.largest_mask(gradient, 213), of_some

  rng = np.random.default_rng(0)
  shapes = (50, 10, 64), (50, 64, 10), (50, 10, 10)
  arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
  if is_vmapped:
    masks = jax.jit(jax.vmap(mask))(*arrays)
  else:
    masks = zip(*[jax.jit(mask)(*each) for each in zip(*arrays, strict=True)], strict=True)
  for each in masks:
    np.testing.assert_array_equal(np.sum(each, axis=(1, 2)), 213)


class TestAsOnAccelerators:
  """Digit by digit: small arrays together, large ones in rows of 128 or as they are."""

  SHAPES = [(2, 14, 14, 64), (130, 127), (300, 128), (7,)]

  @pytest.mark.parametrize("kind", ["normal", "tied", "zero-filled", "any pattern"])
  @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
  def test_the_kth_magnitude_of_many_shapes(self, kind, dtype):
    draw = KINDS[kind]
    for shape in self.SHAPES:
      size = int(np.prod(shape))
      x = np.stack([draw(np.random.default_rng(i), size, dtype).reshape(shape) for i in range(2)])
      ks = np.int32([max(size // 20, 1), size - 1])
      with ops.untuned():
        found = kth_of_each(x, ks)
      for each, k, value in zip(x, ks, found, strict=True):
        assert_is_kth(value, each.reshape(-1), k)

  @pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
  @pytest.mark.parametrize("is_vmapped", [False, True])
  def test_masks_over_leaves_of_many_sizes(self, density, is_vmapped):
    rng = np.random.default_rng(5)
    shapes = [*self.SHAPES, (0, 3), (), (16, 8)]
    leaves = [
      rng.integers(-9, 10, (2, *shape)).astype(np.float32) if i % 2 else draw_normal(rng, shape)
      for i, shape in enumerate(shapes)
    ]
    with ops.untuned():
      if is_vmapped:
        masks = masks_of(leaves, jnp.float32(density))
      else:
        each = [mask_of([x[i] for x in leaves], jnp.float32(density)) for i in range(2)]
        masks = [np.stack(pair) for pair in zip(*each, strict=True)]
    k = round(density * sum(leaf[0].size for leaf in leaves))
    for i in range(2):
      expected = reference.topk_mask([leaf[i] for leaf in leaves], k)
      for found, mask in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(found[i], mask)


def draw_normal(rng, shape):
  return rng.standard_normal((2, *shape)).astype(np.float32)
