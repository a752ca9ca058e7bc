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


def test_count_true_of_several_masks():
  masks = np.random.default_rng(0).random((3, 4, 33)) < np.float64([0.1, 0.5, 0.9])[:, None, None]
  for number in (1, 2, 3):
    found = count_true(*masks[:number])
    assert [int(count) for count in found] == [int(mask.sum()) for mask in masks[:number]]


def test_under_vmap():
  x = np.tril(np.ones((5, 5), np.float32))
  assert jax.jit(jax.vmap(ops.count_nonzero))(x).tolist() == [1, 2, 3, 4, 5]
