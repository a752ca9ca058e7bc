"""The server step by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsyfed_jax.fed import server
from sparsyfed_jax.fed.optimizers import server_optimizer
from tests import cases


def model(kernel, bias):
  return {"Dense_0": {"kernel": jnp.float32([kernel]), "bias": jnp.float32(bias)}}


PARAMS = model([1.0, -2.0, 3.0], [4.0])
TARGET = model([2.0, -5.0, 0.0], [0.0])
NOBODY = server.Upload({"params": model([0, 0, 0], [0])}, jnp.float32(0))


def step(optimizer, params=PARAMS, target=TARGET):
  return server.step(optimizer, optimizer.init(params), params, target)[0]


def test_gradient_descent_at_rate_one_adopts_the_mean():
  cases.assert_close(step(optax.sgd(1.0)), TARGET, 1e-6)


def test_half_a_rate_goes_half_the_way_but_for_pruned_weights():
  # The third weight is in no upload: 0. The bias goes half the way to 0.
  cases.assert_same_bits(step(optax.sgd(0.5)), model([1.5, -3.5, 0.0], [2.0]))


def test_the_pseudo_gradient_is_params_minus_target():
  pseudo_gradient = []

  def update(updates, state, params=None):
    pseudo_gradient.append((updates, params))
    return updates, state

  step(optax.GradientTransformation(lambda _: (), update))
  cases.assert_same_bits(pseudo_gradient, [(model([-1.0, 3.0, 3.0], [4.0]), PARAMS)])


def test_momentum_is_kept_but_does_not_bring_back_what_was_pruned():
  # Gradients (-1, 3, 3), and then from (2, -5, 0) to the same target (0, 0, 0) with momentum 1/2.
  optimizer = optax.sgd(1.0, momentum=0.5)
  params, opt_state = server.step(optimizer, optimizer.init(PARAMS), PARAMS, TARGET)
  params, opt_state = server.step(optimizer, opt_state, params, TARGET)
  cases.assert_same_bits(params, model([2.5, -6.5, 0.0], [-2.0]))
  cases.assert_same_bits(opt_state[0].trace, model([-0.5, 1.5, 1.5], [2.0]))


@pytest.mark.parametrize("optimizer", cases.SERVER_OPTIMIZERS)
def test_nobody_with_an_example_is_no_error(optimizer):
  old = {"params": model([1.0, 0.0, 3.0], [0.0])}
  target = server.mean(NOBODY, old)
  cases.assert_same_bits(target, old)
  with jax.numpy_dtype_promotion("standard"):  # optax.adam is not made for strictness
    made = cases.SERVER_OPTIMIZERS[optimizer]
    new = step(
      server_optimizer(made, jnp.float32(1), jnp.float32(1e-3)), old["params"], target["params"]
    )
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
  assert new["Dense_0"]["kernel"][0, 1] == 0
  if optimizer == "sgd":
    cases.assert_same_bits(new, old["params"])


def test_mean_divides_by_the_weight():
  upload = server.Upload(
    {"params": model([3, -6, 0], [1.5]), "state": jnp.float32(9)}, jnp.float32(3)
  )
  fallback = {"params": PARAMS, "state": jnp.float32(np.nan)}
  expected = {"params": model([1, -2, 0], [0.5]), "state": jnp.float32(3)}
  cases.assert_same_bits(server.mean(upload, fallback), expected)


def test_mean_counts_a_weight_below_one():
  upload = server.Upload({"w": jnp.float32(1)}, jnp.float32(0.25))
  assert float(server.mean(upload, {"w": jnp.float32(7)})["w"]) == 4


@pytest.mark.parametrize(("size", "expected"), [(0, (0, 0)), (1, (1, 1)), (7, (7, 1))])
def test_weights_of_clients(size, expected):
  weights = server.by_size(jnp.int32(size)), server.alike(jnp.int32(size))
  assert tuple(map(float, weights)) == expected
  assert all(weight.dtype == jnp.float32 for weight in weights)


def test_weigh_multiplies_by_the_weight():
  upload = server.weigh({"params": PARAMS}, jnp.float32(3))
  expected = server.Upload({"params": model([3.0, -6.0, 9.0], [12.0])}, jnp.float32(3))
  cases.assert_same_bits(upload, expected)
