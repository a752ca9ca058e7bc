"""Powerpropagation against float64 NumPy, and its derivatives where autodiff would fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsyfed_jax import ops
from tests import reference

BETAS = [1.0, 1.15, 1.25, 2.0, 3.0]
TINY = float(jnp.finfo(jnp.float32).tiny)  # below, backends may flush to 0
MAGNITUDES = np.concatenate([[0.0], np.logspace(-12, 4, 33), [0.5, 1.0, 2.0]])
THETA = np.concatenate([MAGNITUDES, -MAGNITUDES]).astype(np.float32)
EXTREMES = np.float32([0, 1e-45, 1e-40, 1.17e-38, 1.18e-38, 1e-30, 1e30, 3.4e38, np.inf])
EDGE = np.concatenate([EXTREMES, -EXTREMES])

value = jax.jit(ops.powerprop)
inverse = jax.jit(ops.powerprop_inverse)


def each(fn):
  """Maps a scalar function of (theta, beta) over an array theta; beta is traced."""
  return jax.jit(jax.vmap(fn, (0, None)))


gradient = each(jax.grad(ops.powerprop))
gradient_beta = each(jax.grad(ops.powerprop, 1))
second = each(jax.grad(jax.grad(ops.powerprop)))
mixed = each(jax.grad(jax.grad(ops.powerprop), 1))


def close(actual, expected, rtol=1e-5):
  np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol, atol=TINY)


@pytest.mark.parametrize("beta", np.float32(BETAS))
class TestAgainstFloat64:
  def test_value(self, beta):
    close(value(THETA, beta), reference.powerprop(THETA, np.float64(beta)))

  def test_of_a_large_array(self, beta):
    theta = np.tile(THETA, 100)
    close(value(theta, beta), reference.powerprop(theta, np.float64(beta)))
    gradient = jax.jit(jax.grad(lambda theta: jnp.sum(ops.powerprop(theta, beta))))(theta)
    close(gradient, reference.powerprop_gradient(theta, np.float64(beta)))

  def test_gradient(self, beta):
    close(gradient(THETA, beta), reference.powerprop_gradient(THETA, np.float64(beta)))

  def test_gradient_of_beta(self, beta):
    expected = reference.powerprop_gradient_beta(THETA, np.float64(beta))
    close(gradient_beta(THETA, beta), expected)

  def test_inverse(self, beta):
    close(inverse(THETA, beta), reference.powerprop(THETA, 1 / np.float64(beta)))

  def test_second_derivative(self, beta):
    theta, exponent = np.float64(THETA[THETA != 0]), np.float64(beta) - 1
    expected = np.sign(theta) * beta * exponent * np.abs(theta) ** (exponent - 1)
    close(second(THETA, beta)[THETA != 0], expected, rtol=2e-5)

  def test_mixed_derivative(self, beta):
    theta = np.float64(THETA[THETA != 0])
    expected = np.abs(theta) ** (np.float64(beta) - 1) * (1 + beta * np.log(np.abs(theta)))
    close(mixed(THETA, beta)[THETA != 0], expected, rtol=2e-5)


class TestEdges:
  @pytest.mark.parametrize("beta", BETAS)
  def test_gradient_at_zero(self, beta):
    expected = [float(beta == 1)] * 2
    zeros = np.float32([0.0, -0.0])
    assert gradient(zeros, beta).tolist() == expected
    static = jax.jit(jax.grad(lambda theta: jnp.sum(ops.powerprop(theta, beta))))
    assert static(zeros).tolist() == expected

  @pytest.mark.parametrize("beta", np.float32(BETAS))
  def test_nothing_is_nan(self, beta):
    for fn in (value, gradient, gradient_beta, inverse):
      assert not np.isnan(fn(EDGE, beta)).any()

  @pytest.mark.parametrize("beta", np.float32(BETAS))
  def test_second_derivatives_at_zero_and_near_it_are_finite(self, beta):
    for fn in (second, mixed):
      assert np.isfinite(fn(EDGE, beta)[np.abs(EDGE) < 1]).all()

  @pytest.mark.parametrize("beta", np.float32(BETAS))
  def test_values_overflow_to_infinity_and_vanish_to_zero(self, beta):
    with np.errstate(over="ignore"):
      expected = reference.powerprop(EDGE, np.float64(beta)).astype(np.float32)
    found = np.asarray(value(EDGE, beta))
    near = np.isfinite(expected)
    np.testing.assert_array_equal(found[~near], expected[~near])
    close(found[near], expected[near], rtol=3e-5)

  def test_beta_one_is_the_identity(self):
    beta = np.float32(1)
    for fn in (value, inverse):
      np.testing.assert_array_equal(fn(THETA, beta), THETA)
    np.testing.assert_array_equal(gradient(EDGE, beta), np.ones_like(EDGE))

  @pytest.mark.parametrize("beta", [1.0, 1.25])
  def test_the_sign_of_zero_stays(self, beta):
    for fn in (value, inverse):
      found = np.asarray(fn(EDGE, np.float32(beta)))[EDGE == 0]
      assert found.tolist() == [0, 0] and np.signbit(found).tolist() == [False, True]


class TestInverse:
  @settings(max_examples=50, deadline=None)
  @given(
    st.lists(
      st.floats(2.0**-60, 2.0**60, width=32).flatmap(lambda w: st.sampled_from([w, -w]))
      | st.just(0),
      min_size=4,
      max_size=4,
    ),
    st.sampled_from([1.0, 1.25, 2.0, 3.0]),
  )
  def test_powerprop_of_the_inverse(self, w, beta):
    w = np.float32(w)
    close(value(inverse(w, beta), beta), w, rtol=3e-5)

  def test_of_typical_weights_to_single_precision(self):
    w = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * np.float32(0.05)
    for beta in BETAS:
      close(value(inverse(w, beta), beta), w, rtol=2e-6)


class TestTransformations:
  def test_vmap_over_beta(self):
    theta = np.stack([THETA[:9]] * len(BETAS))
    values = jax.jit(jax.vmap(ops.powerprop))(theta, np.float32(BETAS))
    shared = jax.jit(jax.vmap(ops.powerprop, (None, 0)))(THETA[:9], np.float32(BETAS))
    for row, other, beta in zip(values, shared, np.float32(BETAS), strict=True):
      close(row, reference.powerprop(THETA[:9], np.float64(beta)))
      np.testing.assert_array_equal(row, other)

  def test_gradients_under_vmap_over_clients_and_their_betas(self):
    def loss(theta, beta):
      return jnp.sum(ops.powerprop(theta, beta) ** 2)

    theta, betas = np.stack([THETA[20:29]] * 2), np.float32([1.0, 1.25])
    by_theta, by_beta = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(theta, betas)
    for i, beta in enumerate(np.float64(betas)):
      twice = 2 * reference.powerprop(theta[i], beta)
      close(by_theta[i], twice * reference.powerprop_gradient(theta[i], beta))
      expected = np.sum(twice * reference.powerprop_gradient_beta(theta[i], beta))
      np.testing.assert_allclose(by_beta[i], expected, rtol=1e-5)

  def test_forward_mode(self):
    theta, beta = THETA[20:29], np.float32(1.25)
    _, along = jax.jvp(ops.powerprop, (theta, beta), (np.full_like(theta, 2), np.float32(3)))
    expected = 2 * reference.powerprop_gradient(theta, np.float64(beta))
    expected += 3 * reference.powerprop_gradient_beta(theta, np.float64(beta))
    close(along, expected)

  @pytest.mark.parametrize("beta", [2, np.int32(2), np.float64(2.0)])
  def test_beta_may_be_an_integer_or_a_numpy_scalar(self, beta):
    theta = jnp.array([-3.0, 0.0, 0.5])
    w, vjp = jax.vjp(lambda theta: ops.powerprop(theta, beta), theta)
    assert w.tolist() == pytest.approx([-9, 0, 0.25])
    assert vjp(jnp.ones(3))[0].tolist() == pytest.approx([6, 0, 1])
    assert ops.powerprop_inverse(theta, beta).tolist() == pytest.approx([-(3**0.5), 0, 0.5**0.5])

  @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
  def test_16_bits_with_a_float32_beta(self, dtype):
    theta, beta = np.array([-2, -0.5, 0, 0.02, 1, 3], dtype), np.float32(1.25)
    w, by_theta, theta_again = value(theta, beta), gradient(theta, beta), inverse(theta, beta)
    assert w.dtype == by_theta.dtype == theta_again.dtype == dtype
    close(w, reference.powerprop(theta, 1.25), rtol=0.02)
    close(by_theta, reference.powerprop_gradient(theta, 1.25), rtol=0.02)
    close(theta_again, reference.powerprop(theta, 1 / 1.25), rtol=0.02)

  @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
  def test_gradient_of_a_float32_beta_in_16_bits(self, dtype):
    theta, beta = np.array([-2, -0.5, 0, 0.02, 1, 3], dtype), np.float32(1.25)
    by_beta = gradient_beta(theta, beta)
    assert by_beta.dtype == jnp.float32
    close(by_beta, reference.powerprop_gradient_beta(theta, 1.25), rtol=0.02)


class TestSpectralExponent:
  @pytest.mark.parametrize("shape", [(3, 3, 4, 6), (10, 7), (5, 1)])
  def test_is_that_of_a_singular_value_decomposition(self, shape):
    theta = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    theta[np.random.default_rng(1).random(shape) < 0.7] = 0
    matrix = np.abs(theta.astype(np.float64)).reshape(-1, shape[-1])
    expected = 1 + matrix.mean() / np.linalg.svd(matrix)[1][0]
    np.testing.assert_allclose(ops.spectral_exponent(theta, 30), expected, rtol=1e-5)
    np.testing.assert_allclose(ops.spectral_exponent(theta), expected, rtol=2e-3)

  def test_has_no_gradient_and_is_1_for_nothing(self):
    theta = jnp.array([[1.0, -2.0], [0.0, 3.0]])
    assert not np.any(jax.grad(ops.spectral_exponent)(theta))
    assert float(ops.spectral_exponent(jnp.zeros((4, 3)))) == 1
