"""Models with parameters of 16 bits, without injected layers, without anything to prune."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.fed.optimizers import clipped, sgd
from sparsyfed_jax.fed.task import classification
from sparsyfed_jax.ops import PLAIN, LayerOps
from tests import cases

SGD = sgd()


class Mixed(nn.Module):
  """A dense layer whose parameters have another dtype, and one of float32."""

  dtype: Any = jnp.bfloat16
  ops: LayerOps = PLAIN

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    dense = partial(nn.Dense, dot_general=self.ops.dot_general)
    x = nn.relu(dense(8, dtype=self.dtype, param_dtype=self.dtype)(x))
    return dense(cases.NUM_CLASSES)(x.astype(jnp.float32))


class Uninjected(nn.Module):
  """Layers that compute by themselves."""

  ops: LayerOps = PLAIN

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    return nn.Dense(cases.NUM_CLASSES, name="head")(nn.relu(nn.Dense(4, name="body")(x)))


class WithoutKernels(nn.Module):
  """A norm alone."""

  ops: LayerOps = PLAIN

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    return nn.LayerNorm()(x[:, : cases.NUM_CLASSES])


class WithoutParameters(nn.Module):
  """A slice."""

  ops: LayerOps = PLAIN

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


@pytest.mark.parametrize("method", ["sparsyfed", "zerofl"])
def test_layers_that_take_no_operations_are_named(method):
  right = f"{method}: the model's layers body, head do not compute with its `ops`"
  with pytest.raises(ValueError, match=right):
    make(method, Uninjected())


@pytest.mark.parametrize("method", ["fedavg", "feddst", "flash", "static", "topk"])
def test_methods_that_prune_no_activations_take_any_layers(method):
  make(method, Uninjected())


def test_layers_that_are_excluded_need_no_operations():
  setup = cases.make_setup(classification(Uninjected(), (5,)))
  for name, field in (("sparsyfed", "reparam_exclude"), ("zerofl", "exclude")):
    METHODS[name].algorithm(setup, METHODS[name].options(**{field: "body|head"}))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_kernels_is_for_dense_methods_alone(method):
  if method in ("fedavg", "scaffold"):
    make(method, WithoutKernels())
    return
  with pytest.raises(ValueError, match=f"{method}: the model has no prunable parameters"):
    make(method, WithoutKernels())


def test_a_model_without_parameters_is_refused():
  task = classification(WithoutParameters(), (5,))
  with pytest.raises(ValueError, match="WithoutParameters: the model has no parameters to train"):
    jax.jit(task.init)(jax.random.key(0))


class TimeFirst(nn.Module):
  """A layer whose input has the time on its first axis, and the batch on the second."""

  ops: LayerOps = PLAIN

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    turned = jnp.swapaxes(x, 0, 1)
    y = nn.Dense(4, dot_general=self.ops.dot_general, name="turned")(turned)
    return nn.Dense(cases.NUM_CLASSES, dot_general=self.ops.dot_general, name="head")(y[-1])


@pytest.mark.parametrize("method", ["sparsyfed", "zerofl"])
@pytest.mark.parametrize("time", [cases.BATCH_SIZE, 7])
def test_an_injected_layer_whose_first_axis_is_not_the_batch_is_named(method, time):
  setup = cases.make_setup(classification(TimeFirst(), (time, 5)))
  exclude = {"sparsyfed": "reparam_exclude", "zerofl": "exclude"}[method]
  METHODS[method].algorithm(setup, METHODS[method].options(**{exclude: "turned"}))
  if method == "sparsyfed":  # the first layer of ZeroFL is plain
    right = "the input of the model's layer turned: its first axis is not the batch"
    with pytest.raises(ValueError, match=f"^{method}: {right}"):
      METHODS[method].algorithm(setup, METHODS[method].options())
