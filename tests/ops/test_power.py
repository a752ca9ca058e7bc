"""Powers by polynomials and by roots against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.ops.backend.power import is_by_roots, positive_power, power_by_roots

RNG = np.random.default_rng(0)
# All orders of magnitude, and all mantissas around the places where the algorithm changes over.
SPREAD = np.float32(2.0 ** RNG.uniform(-125, 127, 20_000))
EDGES = np.float32(
  [s * 2.0**e * (1 + d) for s in (1, 2**-0.5, 2**0.5) for e in (-9, 0, 9) for d in (-1e-7, 0, 1e-7)]
)


@pytest.mark.parametrize("exponent", [0.25, 0.1, 0.5, 1.0, 2.0, -0.3])
@pytest.mark.parametrize("x", [SPREAD, EDGES], ids=["spread", "edges"])
def test_is_the_power(x, exponent):
  found = np.float64(positive_power(jnp.asarray(x), jnp.float32(exponent)))
  expected = np.float64(x) ** np.float64(np.float32(exponent))
  scale = np.maximum(1, np.abs(exponent * np.log2(np.float64(x))))
  normal = (expected < 2.4e38) & (expected > 1.2e-38)
  error = np.abs(found / expected - 1)[normal] / scale[normal]
  assert error.max() < 3e-7
  assert np.isinf(found[expected > 3.5e38]).all() and (found[expected < 1e-39] == 0).all()


def test_exponent_zero_is_one_to_the_bit():
  assert np.all(np.asarray(positive_power(jnp.asarray(SPREAD), jnp.float32(0))) == 1)


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.bfloat16, 4e-3), (jnp.float16, 5e-4)])
def test_16_bits(dtype, rtol):
  x = jnp.asarray(2.0 ** RNG.uniform(-10, 10, 100), dtype)
  found = positive_power(x, jnp.asarray(0.25, dtype))
  assert found.dtype == dtype
  np.testing.assert_allclose(np.float64(found), np.float64(x) ** 0.25, rtol=rtol)


def test_gradients():
  x, exponent = jnp.float32(0.37), jnp.float32(0.25)
  by_x, by_exponent = jax.grad(positive_power, (0, 1))(x, exponent)
  assert float(by_x) == pytest.approx(0.25 * 0.37**-0.75, rel=1e-5)
  assert float(by_exponent) == pytest.approx(0.37**0.25 * np.log(0.37), rel=1e-5)
  assert float(jax.grad(jax.grad(positive_power))(x, exponent)) == pytest.approx(
    0.25 * -0.75 * 0.37**-1.75, rel=1e-5
  )


@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75])
def test_by_roots(exponent):
  assert is_by_roots(jnp.float32(exponent))
  expected = np.float64(SPREAD) ** exponent
  found = np.float64(jax.jit(power_by_roots)(SPREAD, jnp.float32(exponent)))
  normal = (expected < 3.4e38) & (expected > 1.2e-38)
  np.testing.assert_allclose(found[normal], expected[normal], rtol=4e-7)
  assert np.isinf(found[expected > 3.5e38]).all()


def test_by_roots_of_zero_and_infinity():
  ends = np.float32([0, np.inf])
  np.testing.assert_array_equal(power_by_roots(ends, jnp.float32(0)), [1, 1])
  for exponent in (0.25, 0.5, 1.0, 1.75):
    np.testing.assert_array_equal(power_by_roots(ends, jnp.float32(exponent)), ends)


@pytest.mark.parametrize("exponent", [-0.25, 0.15, 0.2500001, 2.0, 3.0, np.inf, np.nan])
def test_what_roots_do_not_compute(exponent):
  assert not is_by_roots(jnp.float32(exponent))
