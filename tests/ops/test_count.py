"""Counts against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import ops
from sparsyfed_jax.ops.backend.count import _count_in_parts, count_together

count_nonzero = jax.jit(ops.count_nonzero)
count_true = jax.jit(ops.count_true)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5, 7), (100_003,)])
def test_count_nonzero(shape, dtype):
  x = np.random.default_rng(0).integers(-1, 2, shape).astype(dtype)
  found = count_nonzero(x)
  assert found.shape == () and found.dtype == jnp.int32
  assert found == np.count_nonzero(x)


LARGE = [(700, 1000), (530_003,), (3, 3, 250, 251), (90, 90, 65, 1)]


@pytest.mark.parametrize("shape", LARGE)
def test_a_product_counts_a_large_array_on_a_tpu(shape):
  x = np.random.default_rng(0).random(shape) < 0.3
  count = jax.jit(ops.count_one)
  products = {
    platform: jax.export.export(count, platforms=[platform])(x)
    .mlir_module()
    .count("stablehlo.dot_general")
    for platform in ("cpu", "cuda", "tpu")
  }
  assert products == {"cpu": 0, "cuda": 0, "tpu": 1}
  with ops.untuned():
    assert int(count(x)) == x.sum()
    assert jax.jit(jax.vmap(ops.count_one))(np.stack([x, ~x])).tolist() == [x.sum(), (~x).sum()]


def test_of_the_special_values_only_zeros_are_not_counted():
  assert count_nonzero(np.float32([0, -0.0, np.nan, np.inf, -np.inf, 1e-37])) == 4


@pytest.mark.usefixtures("on_any_platform")
def test_count_true_of_several_masks():
  masks = np.random.default_rng(0).random((3, 4, 33)) < np.float64([0.1, 0.5, 0.9])[:, None, None]
  for number in (1, 2, 3):
    found = count_true(*masks[:number])
    assert [int(count) for count in found] == [int(mask.sum()) for mask in masks[:number]]


def test_under_vmap():
  x = np.tril(np.ones((5, 5), np.float32))
  assert jax.jit(jax.vmap(ops.count_nonzero))(x).tolist() == [1, 2, 3, 4, 5]


SIZES = [(3, 700), (2**11,), (2**11 + 1,), (), (0, 4), (5,), (60, 70)]  # on both sides of small


@pytest.mark.usefixtures("on_any_platform")
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1], SIZES[2:3], SIZES[4:5], []])
def test_count_each(sizes):
  rng = np.random.default_rng(0)

  def draw():
    # Two dtypes, so that small arrays make two groups.
    dtypes = [np.float32, np.int8]
    return [
      (rng.integers(0, 3, (4, *shape)) - 1).astype(dtypes[i % 2]) for i, shape in enumerate(sizes)
    ]

  def pair(a, b):
    return [a != 0, (a != 0) & (b == 0)]

  first, second = draw(), draw()
  found = jax.jit(jax.vmap(lambda a, b: (*ops.count_each(pair, a, b), *ops.count_each(one, a))))
  for i, counts in enumerate(zip(*found(first, second), strict=True) if sizes else []):
    masks = [pair(a[i], b[i]) for a, b in zip(first, second, strict=True)]
    expected = [*zip(*masks, strict=True), [a[i] != 0 for a in first]]
    for count, each in zip(counts, expected, strict=True):
      assert count.dtype == jnp.int32
      assert count.tolist() == [np.count_nonzero(mask) for mask in each]
  if not sizes:
    assert [count.shape for count in ops.count_each(pair, [], [])] == [(0,), (0,)]


def one(a):
  return [a != 0]


def test_count_each_refuses_lists_of_other_lengths():
  with pytest.raises(ValueError, match="zip"):
    ops.count_each(one, [jnp.ones(3)] * 2, [jnp.ones(3)])


def test_a_gpu_counts_few_masks_at_a_time():
  masks = [np.arange(70) % 7 == digit % 7 for digit in range(15)]

  def reductions(platform):
    module = jax.export.export(jax.jit(count_together), platforms=[platform])(masks)
    return module.mlir_module().count("stablehlo.reduce(")

  assert (reductions("cuda"), reductions("tpu")) == (2, 1)
  expected = [int(np.sum(mask)) for mask in masks]
  assert [int(count) for count in _count_in_parts(masks)] == expected
  assert [int(count) for count in count_together(masks)] == expected
