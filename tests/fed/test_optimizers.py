"""Clients' optimizers by hand; gradient 1 at parameters 4 and 0 unless stated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsyfed_jax.fed.optimizers import (
  FEDOPT,
  SERVER_OPTIMIZERS,
  adamw,
  apply_updates,
  clip_by_global_norm,
  clipped,
  in_float32,
  proximal,
  server_optimizer,
  sgd,
)

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


def clip(max_norm, *leaves):
  optimizer = clip_by_global_norm(max_norm)
  updates = [jnp.float32(leaf) for leaf in leaves]
  return [np.asarray(leaf) for leaf in jax.jit(lambda u: optimizer.update(u, ())[0])(updates)]


@pytest.mark.parametrize("size", [3e38, 3e19, 1.0, 1e-19, 3e-38])
@pytest.mark.parametrize("max_norm", [1.0, 1e-30, 1e30])
def test_clipping_gives_the_norm_asked_for_whatever_the_size_of_the_gradient(size, max_norm):
  # Squares of 3e19 are beyond float32, those of 1e-30 are 0.
  gradient = np.float32([3, -4]) / 5, np.float32([[0, 12]]) / 13
  found = np.float64(
    np.concatenate(
      [leaf.ravel() for leaf in clip(max_norm, *(g * np.float32(size) for g in gradient))]
    )
  )
  whole = np.concatenate([g.ravel() for g in gradient]).astype(np.float64)
  norm = np.linalg.norm(whole) * size
  np.testing.assert_allclose(found, whole * size * min(1, max_norm / norm), rtol=1e-6, atol=1e-38)


def test_a_gradient_of_3e19_is_clipped_to_norm_1_in_a_step():
  optimizer = clipped(sgd(), 1.0)(RATE, jnp.float32(0))
  assert run(optimizer, 1, {"w": jnp.float32([3e19, 0])}) == [4 - 0.5, 0]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_clipping_never_hides_what_is_not_finite(bad):
  found = clip(1.0, [1, bad], [2])
  assert not np.isfinite(found[0][1])
  assert not np.isfinite(run(clipped(sgd(), 1.0)(RATE, DECAY), 1, {"w": jnp.float32([bad, 0])})[0])


def test_ordinary_gradients_are_clipped_to_the_bits_of_optax():
  rng = np.random.default_rng(0)
  for scale in (1e-6, 0.03, 1.0, 700.0):
    gradient = [jnp.float32(scale * rng.normal(size=shape)) for shape in [(50, 7), (9,), ()]]
    theirs = jax.jit(lambda u: optax.clip_by_global_norm(1.0).update(u, optax.EmptyState())[0])
    for a, b in zip(clip(1.0, *gradient), theirs(gradient), strict=True):
      assert a.tobytes() == np.asarray(b).tobytes()


def test_clipping_zeros_and_nothing_at_all():
  assert clip(1.0, [0, 0], np.zeros((0, 2)))[0].tolist() == [0, 0]
  assert clip(1.0) == []


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
    down = run(server_optimizer(SERVER_OPTIMIZERS[name], RATE, jnp.float32(TAU)), 2)
  assert down[0] < 4 and down[1] < 0


TAU = 1e-3


def reddi(name, deltas, lr, tau):
  """Algorithm 2 of Reddi et al. in float64; deltas: what clients move by, a row a round."""
  b1, b2 = (0.0 if name == "fedadagrad" else 0.9), 0.99
  x, m, v = np.zeros(deltas.shape[1]), np.zeros(deltas.shape[1]), np.full(deltas.shape[1], tau**2)
  path = []
  for delta in deltas:
    m = b1 * m + (1 - b1) * delta
    if name == "fedadagrad":
      v = v + delta**2
    elif name == "fedyogi":
      v = v - (1 - b2) * delta**2 * np.sign(v - delta**2)
    else:
      v = b2 * v + (1 - b2) * delta**2
    x = x + lr * m / (np.sqrt(v) + tau)
    path.append(x)
  return np.array(path)


@pytest.mark.parametrize("name", FEDOPT)
@pytest.mark.parametrize(("lr", "tau"), [(0.01, TAU), (1.0, 0.1)])
def test_the_papers_server_optimizers_follow_its_algorithm(name, lr, tau):
  scales = np.array([0, 1e-5, 1e-3, 0.1, 10])
  deltas = np.random.default_rng(0).normal(size=(6, 5)) * scales
  optimizer = FEDOPT[name].make(jnp.float32(lr), jnp.float32(tau))
  x, found = {"w": jnp.zeros(5)}, []
  state = optimizer.init(x)
  for delta in deltas:
    # The pseudo-gradient is the opposite of what clients move by.
    updates, state = jax.jit(optimizer.update)({"w": jnp.float32(-delta)}, state, x)
    x = apply_updates(x, updates)
    found.append(x["w"])
  np.testing.assert_allclose(found, reddi(name, deltas, lr, tau), rtol=1e-5, atol=1e-9)


def test_fedadagrads_first_step_is_that_of_the_paper():
  # |Delta| = tau: tau / (sqrt(2) tau + tau).
  optimizer = FEDOPT["fedadagrad"].make(jnp.float32(1), jnp.float32(TAU))
  step, _ = optimizer.update({"w": jnp.float32([TAU])}, optimizer.init({"w": jnp.zeros(1)}))
  assert float(step["w"][0]) == pytest.approx(-1 / (1 + np.sqrt(2)), rel=1e-5)  # 0.414


NARROW = {"a": jnp.bfloat16([4, 0]), "b": jnp.float16([1, 2]), "c": jnp.float32([3])}
CLIENTS = {
  "sgd": sgd(),
  "momentum": sgd(0.9),
  "nesterov": sgd(0.9, nesterov=True),
  "adamw": adamw,
  "clipped": clipped(sgd(0.9), 1.0),
}


def follow(optimizer, params, num_steps=3):
  """Runs steps in a loop, whose carry may change no dtype."""

  def step(_, carry):
    params, state = carry
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    return apply_updates(params, updates), state

  with jax.numpy_dtype_promotion("standard"):  # optax.adam is not made for strictness
    return jax.lax.fori_loop(0, num_steps, step, (params, optimizer.init(params)))[0]


@pytest.mark.parametrize(
  "make",
  [
    *(lambda make=make: make(RATE, DECAY) for make in CLIENTS.values()),
    *(
      lambda make=make: server_optimizer(make, RATE, jnp.float32(TAU))
      for make in SERVER_OPTIMIZERS.values()
    ),
    lambda: optax.chain(proximal(jnp.float32(0.5), NARROW), sgd(0.9)(RATE, DECAY)),
  ],
  ids=[*CLIENTS, *SERVER_OPTIMIZERS, "proximal"],
)
def test_parameters_of_16_bits_follow_those_of_32(make):
  found = follow(in_float32(make()), NARROW)
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), NARROW)
  expected = follow(in_float32(make()), wide)
  for name, leaf in found.items():
    assert leaf.dtype == NARROW[name].dtype
    # As near as the dtype is able to hold the parameters of each step.
    tolerance = 4 * float(jnp.finfo(leaf.dtype).eps)
    np.testing.assert_allclose(leaf.astype(jnp.float32), expected[name], tolerance, tolerance)


def test_clients_side_by_side_are_clipped_as_they_are_alone():
  # The second alone needs its squares scaled, nested as in a sweep.
  optimizer = clip_by_global_norm(1.0)
  gradients = jnp.float32([[[3, 4], [3e19, 4e19]], [[0.3, 0.4], [0, 0]]])
  clip_all = jax.jit(jax.vmap(jax.vmap(lambda g: optimizer.update({"w": g}, ())[0]["w"])))
  np.testing.assert_allclose(
    clip_all(gradients), [[[0.6, 0.8], [0.6, 0.8]], [[0.3, 0.4], [0, 0]]], rtol=1e-6
  )
