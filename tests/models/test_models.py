"""Shapes, sizes, and models that compute the same with every kind of layer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from sparsyfed_jax import models, ops, trees
from sparsyfed_jax.ops import LayerOps

NATIVE = LayerOps(lax.dot_general, lax.conv_general_dilated)
BATCH = 6


class Plain(nn.Module):
  """What a user might bring: it knows of this library no more than the attribute."""

  ops: LayerOps = NATIVE

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    conv = partial(nn.Conv, conv_general_dilated=self.ops.conv_general_dilated)
    x = nn.tanh(conv(6, (3, 3), strides=2)(x))
    x = x + conv(6, (3, 3), kernel_dilation=2, feature_group_count=3)(x)
    return nn.DenseGeneral(5, axis=(1, 2, 3), dot_general=self.ops.dot_general)(x)


# A model for 5 classes and the shape of an example.
MODELS = {
  "mlp": (models.MLP(5, (8, 6)), (4, 4)),
  "mlp without hidden layers": (models.MLP(5, ()), (7,)),
  "cnn": (models.CNN(5, (4, 6), 8), (8, 7, 2)),
  "third party": (Plain(), (6, 6, 2)),
}


def example(name):
  """A model, random parameters, and inputs.

  Kernels are sparse and biases positive: most ReLUs are active, and have something to prune.
  """
  model, shape = MODELS[name]
  rng = np.random.default_rng(0)
  x = rng.standard_normal((BATCH, *shape)).astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  params = jax.tree.map(lambda s: np.float32(rng.uniform(0.5, 1, s.shape)), shapes["params"])
  params = trees.map_prunable(
    lambda leaf: np.float32(rng.standard_normal(leaf.shape) * (rng.random(leaf.shape) < 0.3)),
    params,
  )
  return model, params, x


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_layer_gives_the_same_logits(name):
  model, params, x = example(name)
  valid, network = np.arange(BATCH) != 2, models.network_of(model, x.shape[1:])

  @jax.jit
  def run(params, x, valid):
    def loss(params, layers):
      key = jax.random.key(0)
      logits, _ = network.apply({"params": params}, x, valid, key, lambda name: layers, train=True)
      return jnp.sum(jnp.where(valid[:, None], logits, 0) ** 2), logits

    gradient = jax.value_and_grad(loss, has_aux=True)
    return gradient(params, ops.PLAIN), gradient(params, ops.pruned_layers(valid))

  ((_, logits), dense), ((_, same), pruned) = run(params, x, valid)
  assert logits.shape == (BATCH, 5) and logits.dtype == jnp.float32
  np.testing.assert_array_equal(same, logits)
  np.testing.assert_allclose(model.apply({"params": params}, x), logits, rtol=1e-5, atol=1e-5)

  # The layers were used: the gradients of all kernels differ, and that of no bias does.
  for a, b in zip(*(trees.split_prunable(tree)[0] for tree in (dense, pruned)), strict=True):
    assert np.isfinite(b).all() and np.abs(b).max() > 0
    assert np.abs(a - b).max() > 1e-3
  for a, b in zip(*(biases(tree) for tree in (dense, pruned)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def biases(params):
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  return [leaf for path, leaf in flat if not trees.is_prunable(path, leaf)]


@pytest.mark.parametrize(
  ("model", "shape", "expected"),
  [
    (models.CNN(10), (32, 32, 3), 1_626_442),
    (models.CNN(3, (4,), 5), (6, 5, 1), (9 * 4 + 4) + (2 * 1 * 4 * 5 + 5) + (5 * 3 + 3)),
    (models.CNN(3, (2, 3), 5), (6, 6, 1), (9 * 2 + 2) + (18 * 3 + 3) + (3 * 5 + 5) + (5 * 3 + 3)),
    (models.MLP(10), (8, 8), (64 * 128 + 128) + (128 * 64 + 64) + (64 * 10 + 10)),
    (models.MLP(4, (6,)), (2, 3), (6 * 6 + 6) + (6 * 4 + 4)),
  ],
)
def test_number_of_parameters(model, shape, expected):
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
  assert list(variables) == ["params"]
  assert trees.size(variables) == expected


def test_the_mlp_by_hand():
  w = [np.float32([[1, -1], [2, 0]]), np.float32([[1, 0, 2], [3, 1, 0]])]
  b = [np.float32([0, 1]), np.float32([0, 0, 5])]
  layers = {f"Dense_{i}": {"kernel": w[i], "bias": b[i]} for i in range(2)}
  # (1, 1) -> (3, 0); (2, -2) -> relu(-2, -1) = (0, 0).
  logits = models.MLP(3, (2,)).apply({"params": layers}, np.float32([[[1], [1]], [[2], [-2]]]))
  assert logits.tolist() == [[3, 0, 11], [0, 0, 5]]


def test_the_cnn_equals_the_same_layers_by_flax():
  model, params, x = example("cnn")
  y = x
  for i, features in enumerate((4, 6)):
    conv = nn.Conv(features, (3, 3), padding="VALID", precision="highest")
    y = nn.relu(conv.apply({"params": params[f"Conv_{i}"]}, y))
  y = np.asarray(nn.max_pool(y, (2, 2), (2, 2))).reshape(BATCH, -1)
  y = np.maximum(y @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
  y = y @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
  logits = jax.jit(model.apply)({"params": params}, x)
  np.testing.assert_allclose(logits, y, rtol=1e-4, atol=1e-4)
