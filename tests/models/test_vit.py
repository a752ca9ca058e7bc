"""The vision transformer against NumPy, its sizes, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import models, trees

MODEL = models.ViT(3, patch=4, dim=6, depth=2, heads=2, mlp_ratio=3)
SHAPE = (8, 12, 2)
BATCH = 3


def example():
  """Random parameters, all of them lively, and inputs."""
  rng = np.random.default_rng(0)
  x = np.float32(rng.standard_normal((BATCH, *SHAPE)))
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), x)
  params = jax.tree.map(
    lambda leaf: np.float32(rng.standard_normal(leaf.shape) / leaf.shape[0] ** 0.5),
    shapes["params"],
  )
  return params, x


def by_numpy(params, x):
  """One image in float64, token by token where it can be."""
  params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)

  def dense(name, y, at=params):
    return y @ at[name]["kernel"] + at[name]["bias"]

  def layer_norm(name, y, at=params):
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    return y * at[name]["scale"] + at[name]["bias"]

  def gelu(y):
    return 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))

  patches = [
    x[i : i + 4, j : j + 4].ravel() for i in range(0, SHAPE[0], 4) for j in range(0, SHAPE[1], 4)
  ]
  x = dense("embed", np.stack(patches)) + params["position"][0]
  for block in (params["EncoderBlock_0"], params["EncoderBlock_1"]):
    queries, keys, values = np.split(dense("qkv", layer_norm("LayerNorm_0", x, block), block), 3, 1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
      scores = np.exp(queries[:, head] @ keys[:, head].T / np.sqrt(3))
      heads.append(scores / scores.sum(1, keepdims=True) @ values[:, head])
    x = x + dense("out", np.concatenate(heads, 1), block)
    y = gelu(dense("mlp_in", layer_norm("LayerNorm_1", x, block), block))
    x = x + dense("mlp_out", y, block)
  return dense("head", layer_norm("LayerNorm_0", x).mean(0))


def test_equals_numpy():
  params, x = example()
  logits = jax.jit(MODEL.apply)({"params": params}, x)
  assert logits.shape == (BATCH, 3) and logits.dtype == jnp.float32
  expected = np.stack([by_numpy(params, image) for image in x])
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_all_layers_with_kernels_are_found():
  weights = [product.w_shape for product in models.network_of(MODEL, SHAPE).products]
  variables = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
  kernels, _ = trees.split_prunable(variables["params"])
  assert weights == [(32, 6), *[(6, 18), (6, 6), (6, 18), (18, 6)] * 2, (6, 3)]
  assert sorted(weights) == sorted(kernel.shape for kernel in kernels)


def test_number_of_parameters():
  variables = jax.eval_shape(models.ViT(10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  assert list(variables) == ["params"]
  kernels = 48 * 192 + 6 * (4 + 8) * 192**2 + 192 * 10
  biases = 192 + 6 * (3 + 1 + 4 + 1) * 192 + 10
  layer_norms = (6 * 2 + 1) * 2 * 192
  positions = 64 * 192
  assert trees.size(trees.split_prunable(variables["params"])[0]) == kernels
  assert trees.size(variables) == kernels + biases + layer_norms + positions == 2_693_194


def test_dropout_is_for_training_and_off_by_default():
  params, x = example()
  model = MODEL.clone(dropout=0.5)

  @jax.jit
  def run(params, x, key):
    def apply(model, train):
      return model.apply({"params": params}, x, train=train, rngs={"dropout": key})

    return apply(model, True), apply(model, False), apply(MODEL, True)

  dropped, evaluated, plain = run(params, x, jax.random.key(0))
  np.testing.assert_array_equal(evaluated, plain)
  assert np.abs(dropped - evaluated).max() > 0.1
  other, *_ = run(params, x, jax.random.key(1))
  assert np.abs(dropped - other).max() > 0.1


@pytest.mark.parametrize("sides", [(8, 10), (6, 8)])
def test_sides_have_to_be_multiples_of_the_patch(sides):
  message = f"an image of {sides[0]} x {sides[1]} has no whole patches of 4 x 4"
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, *sides, 2)))


def test_heads_have_to_share_the_features():
  with pytest.raises(ValueError, match="4 heads cannot share 6 features evenly"):
    jax.eval_shape(MODEL.clone(heads=4).init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
