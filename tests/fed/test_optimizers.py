"""Clients' optimizers by hand; gradient 1 at parameters 4 and 0 unless stated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsyfed_jax.fed.optimizers import SERVER_OPTIMIZERS, adamw, clipped, proximal, sgd

PARAMS = {"w": jnp.float32([4, 0])}
ONES = {"w": jnp.float32([1, 1])}


def run(optimizer, num_steps=2, gradient=ONES):
  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(num_steps):
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params["w"].tolist()


RATE, DECAY = jnp.float32(0.5), jnp.float32(0.25)


def test_sgd_adds_l2_to_the_gradient():
  # 4 - (1 + 1) / 2 = 3, then 3 - (1 + 3/4) / 2; 0 - 1/2, then -1/2 - (1 - 1/8) / 2.
  assert run(sgd()(RATE, DECAY)) == [3 - 0.875, -0.5 - 0.4375]


def test_momentum_is_that_of_pytorch():
  # Traces 2, then 1 + 3/4 + 2/2; 1, then 1 - 1/8 + 1/2.
  assert run(sgd(0.5)(RATE, DECAY)) == [3 - 1.375, -0.5 - 0.6875]


def test_nesterov_looks_ahead():
  # Gradients 1: trace 1, step 1 + 1/2; trace 3/2, step 1 + 3/4.
  assert run(sgd(0.5, nesterov=True)(RATE, jnp.float32(0))) == [4 - 0.75 - 0.875, -0.75 - 0.875]


def test_adamw_decays_apart_from_the_gradient():
  # A step of Adam is the rate; the decay takes rate * decay of the parameter.
  with jax.numpy_dtype_promotion("standard"):
    np.testing.assert_allclose(run(adamw(RATE, DECAY), 1), [4 - 0.5 - 0.5, -0.5], rtol=1e-5)


def test_clipping_precedes_the_decay():
  # The norm of (3, 4) is 5, clipped to 1/2: (0.3, 0.4).
  gradient = {"w": jnp.float32([3, 4])}
  optimizer = clipped(sgd(), 0.5)(RATE, DECAY)
  np.testing.assert_allclose(run(optimizer, 1, gradient), [4 - 0.15 - 0.5, -0.2], rtol=1e-6)


def test_the_proximal_term_pulls_back():
  # Nothing at the anchor; then 2 * (3.5 - 4) = -1 cancels the gradient.
  optimizer = optax.chain(proximal(jnp.float32(2), PARAMS), optax.sgd(RATE))
  assert run(optimizer, 1) == [3.5, -0.5]
  assert run(optimizer, 2) == [3.5, -0.5]


@pytest.mark.parametrize("make", [sgd(), sgd(0.9), adamw, clipped(sgd(0.9, nesterov=True), 1.0)])
def test_a_masked_zero_stays_exactly_zero(make):
  with jax.numpy_dtype_promotion("standard"):
    assert run(make(RATE, DECAY), 5, {"w": jnp.float32([1, 0])})[1] == 0


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_servers_optimizers_descend(name):
  with jax.numpy_dtype_promotion("standard"):
    down = run(SERVER_OPTIMIZERS[name](RATE), 2)
  assert down[0] < 4 and down[1] < 0
