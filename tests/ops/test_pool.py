"""The max pools against flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsyfed_jax.ops.backend.pool import max_pool, max_pool_of_relu, max_pool_overlapping
from tests import cases, reference


def flax_pool(x, window, stride, padding):
  return nn.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)


def value_and_gradient(pool, x, geometry):
  def run(x):
    y, vjp = jax.vjp(lambda x: pool(x, *geometry), x)
    return y, *vjp(reference.cotangent(y))

  return jax.jit(run)(x)


@pytest.mark.parametrize(
  ("sides", "geometry"),
  [
    ((8, 8), (3, 2, 1)),
    ((7, 9), (3, 2, 1)),
    ((1, 10), (3, 2, 1)),
    ((1, 1), (3, 2, 1)),
    ((6, 5), (2, 1, 0)),
    ((9, 7), (4, 3, 2)),
    ((6, 7), (2, 3, 1)),  # some values are in no window
  ],
)
def test_equals_flax_where_nothing_ties(sides, geometry):
  shape = (2, *sides, 3)
  values = np.random.default_rng(0).permutation(np.arange(np.prod(shape), dtype=np.float32))
  x = values.reshape(shape) - 100
  y, dx = value_and_gradient(max_pool_overlapping, x, geometry)
  expected_y, expected_dx = value_and_gradient(flax_pool, x, geometry)
  np.testing.assert_array_equal(y, expected_y)
  # A value may win several windows, whose gradients add up in any order.
  np.testing.assert_allclose(dx, expected_dx, rtol=1e-6, atol=1e-6)


def test_ties_share_the_gradient():
  x = jnp.array([[2.0, 2.0, 0.0], [1.0, 2.0, 9.0], [0.0, 0.0, 0.0]]).reshape(1, 3, 3, 1)
  _, dx = value_and_gradient(max_pool_overlapping, x, (2, 2, 0))
  dx = np.asarray(dx[0, :, :, 0])
  assert np.isclose(dx.sum(), np.sin(1)) and np.all(dx[x[0, :, :, 0] != 2] == 0)
  assert np.all(dx[x[0, :, :, 0] == 2] > 0)


@pytest.mark.usefixtures("on_any_platform")
@pytest.mark.parametrize(("sides", "window"), [((4, 6), 2), ((7, 5), 2), ((9, 9), 3), ((2, 3), 1)])
def test_separate_windows_equal_flax(sides, window):
  shape = (2, *sides, 3)
  values = np.random.default_rng(0).permutation(np.arange(np.prod(shape), dtype=np.float32))
  x = values.reshape(shape) - 100
  found = value_and_gradient(max_pool, x, (window,))
  expected = value_and_gradient(flax_pool, x, (window, window, 0))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("on_any_platform")
@pytest.mark.parametrize("batched", [False, True])
def test_separate_windows_share_the_gradient_of_ties(batched):
  # Few different values, so that most windows tie; relu makes such windows of zeros.
  x = np.random.default_rng(1).integers(0, 3, (2, 6, 4, 3)).astype(np.float32)
  cotangent = np.random.default_rng(2).standard_normal((2, 3, 2, 3)).astype(np.float32)

  def gradient(x, cotangent):
    return jax.vjp(lambda x: max_pool(x, 2), x)[1](cotangent)[0]

  if batched:
    found = jax.vmap(gradient)(x[:, None], cotangent[:, None])[:, 0]
  else:
    found = jax.jit(gradient)(x, cotangent)
  expected = np.zeros_like(x)
  for at in np.ndindex(cotangent.shape):
    n, i, j, c = at
    window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
    is_largest = window == window.max()
    share = is_largest * (cotangent[at] / is_largest.sum())
    expected[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c] = share
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_half_precision():
  x = np.float16(np.random.default_rng(0).standard_normal((1, 4, 4, 2)))
  y = max_pool_overlapping(jnp.asarray(x), 3, 2, 1)
  assert y.dtype == jnp.float16
  np.testing.assert_array_equal(y, flax_pool(x, 3, 2, 1))


@pytest.mark.usefixtures("on_any_platform")
@pytest.mark.parametrize(("sides", "window"), [((4, 6), 2), ((7, 5), 2), ((9, 9), 3)])
def test_the_pool_of_a_relu_is_that_after_it(sides, window):
  # Whole numbers tie within windows, and many windows have nothing above 0.
  x = np.random.default_rng(0).integers(-5, 3, (3, *sides, 2)).astype(np.float32)
  found = value_and_gradient(max_pool_of_relu, x, (window,))
  expected = value_and_gradient(lambda x, window: max_pool(nn.relu(x), window), x, (window,))
  cases.assert_same_bits(found, expected)
  assert np.any(found[0] == 0) and np.any(found[0] > 0) and np.any(found[1])
