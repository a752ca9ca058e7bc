"""The models of tokens: an LSTM and a transformer against NumPy, and what each place sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import models, trees

MODELS = {
  "lstm": models.LSTM(7, dim=4, hidden=3, depth=2),
  "transformer": models.Transformer(7, dim=6, depth=2, heads=2, mlp_ratio=2),
}
BATCH, LENGTH = 3, 5


def example(name):
  """Random parameters, all of them lively, and tokens."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 7, (BATCH, LENGTH)).astype(np.int32)
  shapes = jax.eval_shape(MODELS[name].init, jax.random.key(0), x)
  params = jax.tree.map(
    lambda leaf: np.float32(rng.standard_normal(leaf.shape) / leaf.shape[0] ** 0.5),
    shapes["params"],
  )
  return params, x


def lstm_by_numpy(params, x):
  """In float64, step by step."""

  def sigmoid(y):
    return 1 / (1 + np.exp(-y))

  y = params["embed"]["embedding"][x]
  for layer in range(2):
    own, recurrent = params[f"input_{layer}"], params[f"recurrent_{layer}"]["kernel"]
    cell = state = np.zeros((BATCH, 3))
    states = []
    for step in range(LENGTH):
      gates = y[:, step] @ own["kernel"] + own["bias"] + state @ recurrent
      enter, forget, new, leave = np.split(gates, 4, axis=1)
      cell = sigmoid(forget + 1) * cell + sigmoid(enter) * np.tanh(new)
      state = sigmoid(leave) * np.tanh(cell)
      states.append(state)
    y = np.stack(states, 1)
  return y @ params["head"]["kernel"] + params["head"]["bias"]


def transformer_by_numpy(params, x):
  """In float64, one sequence after the other, with a mask of what lies behind."""

  def dense(at, y):
    return y @ at["kernel"] + at["bias"]

  def layer_norm(at, y):
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    return y * at["scale"] + at["bias"]

  def gelu(y):
    return 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))

  def one(tokens):
    y = params["embed"]["embedding"][tokens] + params["position"][0]
    for block in (params["EncoderBlock_0"], params["EncoderBlock_1"]):
      parts = np.split(dense(block["qkv"], layer_norm(block["LayerNorm_0"], y)), 3, 1)
      heads = []
      for head in (slice(0, 3), slice(3, 6)):
        queries, keys, values = (part[:, head] for part in parts)
        scores = np.exp(queries @ keys.T / np.sqrt(3)) * np.tri(LENGTH)
        heads.append(scores / scores.sum(1, keepdims=True) @ values)
      y = y + dense(block["out"], np.concatenate(heads, 1))
      hidden = gelu(dense(block["mlp_in"], layer_norm(block["LayerNorm_1"], y)))
      y = y + dense(block["mlp_out"], hidden)
    return dense(params["head"], layer_norm(params["LayerNorm_0"], y))

  return np.stack([one(tokens) for tokens in x])


BY_NUMPY = {"lstm": lstm_by_numpy, "transformer": transformer_by_numpy}


@pytest.mark.parametrize("name", MODELS)
def test_equals_numpy(name):
  params, x = example(name)
  logits = jax.jit(MODELS[name].apply)({"params": params}, x)
  wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
  np.testing.assert_allclose(logits, BY_NUMPY[name](wide, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_no_place_sees_what_is_behind_it(name):
  params, x = example(name)
  apply = jax.jit(MODELS[name].apply)
  before = np.asarray(apply({"params": params}, x))
  for place in (1, 4):
    other = x.copy()
    other[:, place] = (other[:, place] + 1) % 7
    after = np.asarray(apply({"params": params}, other))
    np.testing.assert_array_equal(before[:, :place], after[:, :place])
    assert np.all(np.any(before[:, place:] != after[:, place:], axis=-1))


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_found(name):
  _, x = example(name)
  found = models.network_of(MODELS[name], x.shape[1:], dtype=jnp.int32)
  shapes = jax.eval_shape(MODELS[name].init, jax.random.key(0), x)
  kernels, _ = trees.split_prunable(shapes["params"])
  weights = [product.w_shape for product in found.products]
  assert sorted(weights) == sorted(kernel.shape for kernel in kernels)


def test_dropout_is_on_in_training_alone():
  model = MODELS["transformer"].clone(dropout=0.5)
  params, x = example("transformer")

  def logits(seed, train):
    rngs = {"dropout": jax.random.key(seed)}
    return np.asarray(model.apply({"params": params}, x, train=train, rngs=rngs))

  assert not np.array_equal(logits(0, True), logits(1, True))
  np.testing.assert_array_equal(logits(0, False), logits(1, False))


def test_heads_must_share_evenly():
  with pytest.raises(ValueError, match="4 heads cannot share 6 features"):
    models.Transformer(7, dim=6).init(jax.random.key(0), jnp.zeros((1, 2), int))
