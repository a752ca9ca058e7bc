"""Schedules at points worked by hand, and their bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsyfed_jax.fed import schedules
from sparsyfed_jax.fed.schedules import RATE_SCHEDULES, SPARSITY_SCHEDULES, client_lr_at, density_at
from tests import cases

ROUNDS = jnp.arange(1, 33, dtype=jnp.int32)
SHARES = st.floats(0.0, 1.0, width=32, allow_subnormal=False)
RATES = st.floats(2**-13, 1.0, width=32)


def densities(name, density, ramp_rounds):
  hyper = cases.hyper(density=density, ramp_rounds=ramp_rounds)
  return np.asarray(density_at(SPARSITY_SCHEDULES[name], hyper, ROUNDS))


# Of a ramp of 4 rounds to 0.2, a quarter is done after round 1.
# cubic: 0.2 + 0.8 (3/4)^3 = 0.2 + 0.8 * 27/64, then 0.8 / 8, then 0.8 / 64.
@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("constant", [0.2, 0.2, 0.2, 0.2, 0.2]),
    ("linear", [0.8, 0.6, 0.4, 0.2, 0.2]),
    ("cubic", [0.5375, 0.3, 0.2125, 0.2, 0.2]),
  ],
)
def test_density_by_hand(name, expected):
  np.testing.assert_allclose(densities(name, 0.2, 4.0)[:5], expected, rtol=1e-6)


@pytest.mark.parametrize("name", SPARSITY_SCHEDULES)
@settings(max_examples=30, deadline=None)
@given(SHARES, st.integers(0, 32))
def test_density_falls_from_one_to_exactly_its_target(name, density, ramp_rounds):
  values = densities(name, density, ramp_rounds)
  assert (np.diff(values) <= 0).all()
  assert (values >= np.float32(density)).all() and (values <= 1).all()
  assert (values[max(ramp_rounds - 1, 0) :] == np.float32(density)).all()


@pytest.mark.parametrize("name", ["linear", "cubic"])
def test_density_is_above_its_target_during_the_ramp(name):
  assert (densities(name, 0.2, 10.0)[:9] > 0.2).all()


def test_the_table_has_every_schedule():
  assert SPARSITY_SCHEDULES == {
    name: getattr(schedules, name) for name in ("constant", "cubic", "linear")
  }


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    # A factor of 1/sqrt(2) a round.
    ("exponential", [0.5 / np.sqrt(2), 0.25, 0.25 / np.sqrt(2), 0.125]),
    ("linear", [0.40625, 0.3125, 0.21875, 0.125]),
    ("cosine", [0.3125 + 0.1875 * np.sqrt(0.5), 0.3125, 0.3125 - 0.1875 * np.sqrt(0.5), 0.125]),
    ("constant", [0.5, 0.5, 0.5, 0.5]),
  ],
)
def test_client_lr_by_hand(name, expected):
  # 1/2 to 1/8 in 4 rounds.
  hyper = cases.hyper(rounds=4, client_lr=0.5, client_lr_final=0.125)
  rates = jax.vmap(lambda t: client_lr_at(RATE_SCHEDULES[name], hyper, t))(ROUNDS[:4])
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(RATE_SCHEDULES) - {"constant"}))
@settings(max_examples=30, deadline=None)
@given(first=RATES, last=RATES, num_rounds=st.integers(1, 1000))
def test_client_lr_ends_at_its_final_value(name, first, last, num_rounds):
  hyper = cases.hyper(rounds=num_rounds, client_lr=first, client_lr_final=last)
  rate = client_lr_at(RATE_SCHEDULES[name], hyper, jnp.int32(num_rounds))
  np.testing.assert_allclose(rate, last, rtol=1e-5, atol=1e-6 * first)
