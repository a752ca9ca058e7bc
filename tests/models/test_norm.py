"""Batch norm against NumPy in float64, with padding of every kind, and group norm."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsyfed_jax.models.norm import BatchNorm, normalize
from tests import reference

BATCH = 5
SHAPE = (BATCH, 3, 2, 4)
VALID = {
  "full": [1, 1, 1, 1, 1],
  "padded": [1, 1, 1, 0, 0],
  "padded in between": [0, 1, 0, 1, 1],
  "one row": [0, 0, 1, 0, 0],
  "none": [0, 0, 0, 0, 0],
}


def example(shape=SHAPE, seed=0):
  rng = np.random.default_rng(seed)
  features = shape[-1]

  def positive():
    return np.float32(rng.uniform(0.5, 1.5, features))

  def any_sign():
    return np.float32(rng.standard_normal(features))

  variables = {
    "params": {"scale": positive(), "bias": any_sign()},
    "batch_stats": {"mean": any_sign(), "var": positive()},
  }
  return variables, np.float32(rng.standard_normal(shape) * 2 + any_sign())


def by_numpy(variables, x, valid):
  """Outputs of the valid rows and the new statistics, as PyTorch's documentation has them."""
  params, stats = variables["params"], variables["batch_stats"]
  rows = np.asarray(x, np.float64)[valid]
  entries = rows.reshape(-1, x.shape[-1])
  n = len(entries)
  if n == 0:
    return rows, stats
  mean, var = entries.mean(0), entries.var(0)
  y = (rows - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
  new = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": stats["var"]}
  if n > 1:
    new["var"] = 0.9 * stats["var"] + 0.1 * entries.var(0, ddof=1)
  return y, new


@jax.jit
def run(variables, x, valid):
  """Outputs, new statistics, and gradients of the parameters and x, that of padded outputs 0."""

  def apply(params, x):
    y, state = BatchNorm().apply(
      {**variables, "params": params}, x, train=True, valid=valid, mutable=["batch_stats"]
    )
    return y, state["batch_stats"]

  y, vjp, stats = jax.vjp(apply, variables["params"], x, has_aux=True)
  rows = valid.reshape(-1, *[1] * (x.ndim - 1))
  return y, stats, vjp(jnp.where(rows, reference.cotangent(y), 0))


@jax.jit
def plain_gradients(params, x, cotangent):
  """The gradients where all rows are valid, written the short way."""
  return jax.vjp(plain, params, x)[1](cotangent)


def plain(params, x):
  mean, var = (f(x.reshape(-1, x.shape[-1]), axis=0)[None, None, None] for f in (jnp.mean, jnp.var))
  wide = {name: leaf[None, None, None] for name, leaf in params.items()}
  return (x - mean) / jnp.sqrt(var + 1e-5) * wide["scale"] + wide["bias"]


def assert_trees_close(found, expected, tolerance=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected
  )


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("seed", range(3))
def test_equals_numpy(name, seed):
  valid = np.array(VALID[name], bool)
  variables, x = example(seed=seed)
  y, stats, _ = run(variables, x, valid)
  expected_y, expected_stats = by_numpy(variables, x, valid)
  assert y.dtype == stats["mean"].dtype == stats["var"].dtype == jnp.float32
  assert_trees_close((y[valid], stats), (expected_y, expected_stats))


@pytest.mark.parametrize("name", VALID)
def test_gradients_are_those_of_the_valid_rows_alone(name):
  valid = np.array(VALID[name], bool)
  variables, x = example()
  _, _, (params, dx) = run(variables, x, valid)
  assert np.all(dx[~valid] == 0)
  if not valid.any():
    assert_trees_close(params, {"scale": np.zeros(4), "bias": np.zeros(4)}, 0)
    return
  cotangent = np.asarray(reference.cotangent(x))[valid]
  expected = plain_gradients(variables["params"], x[valid], cotangent)
  assert_trees_close((params, dx[valid]), expected)


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("junk", [0, 1e30, np.inf, np.nan])
def test_padding_changes_no_bit(name, junk):
  valid = np.array(VALID[name], bool)
  variables, x = example()
  changed = x.copy()
  changed[~valid] = junk
  for a, b in zip(*(jax.tree.leaves(run(variables, z, valid)) for z in (x, changed)), strict=True):
    assert np.isfinite(a).all()
    np.testing.assert_array_equal(a, b)


def test_where_the_batch_says_nothing_the_statistics_stay():
  variables, x = example((BATCH, 4))
  _, stats, gradients = run(variables, x, np.arange(BATCH) == 1)
  np.testing.assert_array_equal(stats["var"], variables["batch_stats"]["var"])
  assert_trees_close(stats["mean"], by_numpy(variables, x, np.arange(BATCH) == 1)[1]["mean"])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))

  _, stats, _ = run(variables, x, np.zeros(BATCH, bool))
  jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_the_variance_survives_a_large_mean():
  variables, x = example()
  x = x + np.float32(10_000)
  y, stats, _ = run(variables, x, np.ones(BATCH, bool))
  # x itself holds three decimals there.
  assert_trees_close((y, stats), by_numpy(variables, x, np.ones(BATCH, bool)), 2e-3)


def test_without_valid_all_rows_are():
  variables, x = example()
  apply = jax.jit(partial(BatchNorm().apply, train=True, mutable=["batch_stats"]))
  y, _ = apply(variables, x)
  np.testing.assert_allclose(y, run(variables, x, np.ones(BATCH, bool))[0], rtol=1e-6, atol=1e-6)


def test_evaluation_takes_the_running_statistics():
  variables, x = example()
  stats, params = variables["batch_stats"], variables["params"]
  y, state = jax.jit(partial(BatchNorm().apply, mutable=["batch_stats"]))(variables, x)
  expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
  assert_trees_close(y, expected)
  jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], stats)


@pytest.mark.parametrize("train", [False, True])
def test_starts_as_the_identity(key, train):
  _, x = example()
  variables = BatchNorm().init(key, x, train=train)
  assert jax.tree.map(lambda leaf: leaf.tolist(), variables) == {
    "params": {"scale": [1] * 4, "bias": [0] * 4},
    "batch_stats": {"mean": [0] * 4, "var": [1] * 4},
  }


def test_clients_side_by_side_are_independent():
  many = [example(seed=seed) for seed in range(3)]
  valid = np.array([VALID["full"], VALID["padded"], VALID["none"]], bool)
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *many)
  found = jax.jit(jax.vmap(run))(*stacked, valid)
  for i, (variables, x) in enumerate(many):
    expected = run(variables, x, valid[i])
    assert_trees_close(jax.tree.map(lambda leaf, i=i: leaf[i], found), expected)


class Layer(nn.Module):
  kind: str

  @nn.compact
  def __call__(self, x):
    return normalize(self.kind, x, train=True, valid=None)


@pytest.mark.parametrize(
  ("features", "groups"), [(128, 32), (64, 32), (48, 8), (16, 8), (4, 2), (2, 1), (6, 1), (3, 1)]
)
def test_group_norm(features, groups):
  variables, x = example((2, 3, 2, features))
  grouped = x.astype(np.float64).reshape(2, 6, groups, -1)
  mean, var = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
  expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
  params = variables["params"]
  y = jax.jit(Layer("group").apply)({"params": {"GroupNorm_0": params}}, x)
  assert_trees_close(y, expected * params["scale"] + params["bias"])


def test_the_kind_of_norm_has_to_be_known(key):
  with pytest.raises(ValueError, match="'batch' or 'group', found 'layer'"):
    jax.eval_shape(Layer("layer").init, key, jnp.zeros((1, 2)))
