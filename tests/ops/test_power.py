"""Powers by roots against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.ops.backend.power import is_by_roots, power_by_roots

RNG = np.random.default_rng(0)
# All orders of magnitude.
SPREAD = np.float32(2.0 ** RNG.uniform(-125, 127, 20_000))


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
