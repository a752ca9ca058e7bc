"""Counts against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import ops

count_nonzero = jax.jit(ops.count_nonzero)
count_true = jax.jit(ops.count_true)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5, 7), (100_003,)])
def test_count_nonzero(shape, dtype):
  x = np.random.default_rng(0).integers(-1, 2, shape).astype(dtype)
  found = count_nonzero(x)
  assert found.shape == () and found.dtype == jnp.int32
  assert found == np.count_nonzero(x)


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
