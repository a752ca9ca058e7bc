"""Models with parameters of 16 bits, without anything to prune, with the batch elsewhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.fed.optimizers import clipped, sgd
from sparsyfed_jax.fed.task import classification
from tests import cases

SGD = sgd()


class Mixed(nn.Module):
  """A dense layer whose parameters have another dtype, and one of float32."""

  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    x = nn.relu(nn.Dense(8, dtype=self.dtype, param_dtype=self.dtype)(x))
    return nn.Dense(cases.NUM_CLASSES)(x.astype(jnp.float32))


class WithoutKernels(nn.Module):
  """A norm alone."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    return nn.LayerNorm()(x[:, : cases.NUM_CLASSES])


class WithoutParameters(nn.Module):
  """A slice."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    return x[:, : cases.NUM_CLASSES]


def make(method, model, client=SGD, **setup):
  made = cases.make_setup(classification(model, (5,)), **setup)
  made = made._replace(local=made.local._replace(optimizer=client))
  return cases.form(method, made)


def play(algorithm, variables, method, num_rounds=2):
  """Runs rounds of one client each."""
  state = algorithm.init(variables, cases.hyper(method), jax.random.key(1))
  client, server = jax.jit(algorithm.client), jax.jit(algorithm.server)
  memory = algorithm.memory(variables, cases.hyper(method))
  data, losses = cases.client_data(cases.problem("mlp").federation, 3), []
  for number in range(num_rounds):
    download, key = algorithm.broadcast(state), jax.random.key(number)
    upload, memory, metrics = client(download, memory, data, key)
    state, _ = server(state, upload)
    losses.append(float(metrics["train_loss"].value))
  return state, losses


@pytest.mark.parametrize(
  ("method", "client", "setup"),
  [
    ("sparsyfed", sgd(0.9), dict(server="fedyogi", proximal=True)),
    ("zerofl-changes", clipped(sgd(0.9, nesterov=True), 1.0), dict(server="momentum")),
    ("flash-magnitude", sgd(0.9), dict(server="fedadagrad", wire_dtype=jnp.float16)),
  ],
)
def test_a_layer_in_bfloat16_trains_like_one_in_float32(method, client, setup):
  narrow = make(method, Mixed(), client, **setup)
  variables = cases.variables("mlp")
  params = dict(variables["params"])
  narrow_params = params | {
    "Dense_0": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params["Dense_0"])
  }
  found, losses = play(narrow, {"params": narrow_params}, method)
  expected, wide_losses = play(make(method, Mixed(jnp.float32), client, **setup), variables, method)
  for a, b in zip(*map(jax.tree.leaves, (found.variables, {"params": narrow_params})), strict=True):
    assert a.dtype == b.dtype
  np.testing.assert_allclose(losses, wide_losses, rtol=0.03)
  # The zeros are where they were, up to what bfloat16 ranks otherwise.
  zeros = [cases.flat_kernels(state.variables["params"]) == 0 for state in (found, expected)]
  assert np.mean(zeros[0] != zeros[1]) <= 0.1 and zeros[0].any() == zeros[1].any()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_kernels_is_for_dense_methods_alone(method):
  if method in ("fedavg", "feddyn", "scaffold"):
    make(method, WithoutKernels())
    return
  with pytest.raises(ValueError, match=f"{method}: the model has no prunable parameters"):
    make(method, WithoutKernels())


def test_a_model_without_parameters_is_refused():
  with pytest.raises(ValueError, match="WithoutParameters: the model has no parameters to train"):
    classification(WithoutParameters(), (5,))


class InTime(nn.Module):
  """A layer whose input has the batch on its first axis and the time on its second, or turned."""

  time: int
  is_turned: bool

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    moments = x[:, None] + jnp.arange(self.time, dtype=jnp.float32)[None, :, None]
    layer = nn.Dense(4, name="layer")
    if self.is_turned:
      y = jnp.swapaxes(layer(jnp.swapaxes(moments, 0, 1)), 0, 1)
    else:
      y = layer(moments)
    return nn.Dense(cases.NUM_CLASSES, name="head")(y[:, -1])


@pytest.mark.parametrize(
  ("time", "method"),
  [(cases.BATCH_SIZE, "sparsyfed"), (7, "zerofl")]
  + [
    pytest.param(*one, marks=pytest.mark.slow)
    for one in ((7, "sparsyfed"), (cases.BATCH_SIZE, "zerofl"))
  ],
)
def test_a_layer_whose_first_axis_is_not_the_batch_is_trained_as_one_whose_is(method, time):
  turned, straight = (InTime(time, is_turned) for is_turned in (True, False))
  variables = classification(straight, (5,)).init(jax.random.key(0))
  found, expected = (play(make(method, model), variables, method) for model in (turned, straight))
  cases.assert_close(found[0].variables, expected[0].variables, 1e-5)
  assert not cases.same_bits(found[0].variables, variables)
