"""The classification task: inputs, loss and scores by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from sparsyfed_jax import trees
from sparsyfed_jax.fed import task
from sparsyfed_jax.fed.task import classification, plain_layers
from sparsyfed_jax.models import MLP
from sparsyfed_jax.ops import PLAIN, LayerOps, untuned
from sparsyfed_jax.types import Batch
from tests import cases

TASK = classification(MLP(2, hidden=()), (1,), mean=2.0, std=0.5)
# Logits (2 (x - 2), 0): x = 2 gives softmax (1/2, 1/2), x = 3 gives (2, 0).
VARIABLES = {"params": {"Dense_0": {"kernel": jnp.float32([[1, 0]]), "bias": jnp.float32([0, 0])}}}
EQUAL, SURE = np.log(2), np.log1p(np.exp(-2))  # losses of class 0


def batch(x, y, valid, dtype=jnp.float32):
  return Batch(jnp.asarray(x, dtype)[:, None], jnp.int32(y), jnp.asarray(valid))


def scores(metrics):
  return {name: (float(mean.total), float(mean.weight)) for name, mean in metrics.items()}


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
def test_loss_is_the_mean_over_valid_examples(dtype):
  case = batch([2, 3, 7], [0, 1, 0], [True, True, False], dtype)
  loss, (state, metrics) = TASK.loss(VARIABLES, case, plain_layers, jax.random.key(0))
  # x = 3 has class 1, two logits below: 2 + ln(1 + e^-2), and a miss.
  assert float(loss) == pytest.approx((EQUAL + 2 + SURE) / 2, rel=1e-6)
  assert state == {}
  expected = {"loss": (EQUAL + 2 + SURE, 2), "accuracy": (1, 2)}
  assert scores(metrics) == {name: pytest.approx(value) for name, value in expected.items()}
  assert scores(TASK.evaluate(VARIABLES, case)) == scores(metrics)


def test_a_batch_of_nobody_has_no_loss_and_no_gradient():
  case = batch([2, 3], [0, 1], [False, False])
  gradient, (loss, (_, metrics)) = jax.grad(
    lambda variables: (lambda out: (out[0], out))(
      TASK.loss(variables, case, plain_layers, jax.random.key(0))
    ),
    has_aux=True,
  )(VARIABLES)
  assert float(loss) == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
  assert scores(metrics) == {"loss": (0, 0), "accuracy": (0, 0)}


def test_init_makes_the_model_of_the_key():
  first, same, other = (TASK.init(jax.random.key(seed)) for seed in (0, 0, 1))
  assert first["params"]["Dense_0"]["kernel"].shape == (1, 2)
  cases.assert_same_bits(first, same)
  assert not cases.same_bits(first, other)


def test_layers_compute_with_the_operations_given():
  def twice(*args, **kwargs):
    return 2 * PLAIN.dot_general(*args, **kwargs)

  doubled = LayerOps(twice, PLAIN.conv_general_dilated)
  case = batch([3], [0], [True])
  loss, _ = TASK.loss(VARIABLES, case, lambda name: doubled, jax.random.key(0))
  assert float(loss) == pytest.approx(np.log1p(np.exp(-4)), rel=1e-4)


def test_batch_statistics_are_those_of_valid_examples():
  task = cases.problem("batchnorm").task
  variables = cases.variables("batchnorm")
  x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  valid = np.array([True, False, True, True])
  x[1] = 1e6
  case = Batch(jnp.asarray(x), jnp.zeros(4, jnp.int32), jnp.asarray(valid))
  _, (state, _) = task.loss(variables, case, plain_layers, jax.random.key(0))
  hidden = x[valid] @ np.asarray(variables["params"]["Dense_0"]["kernel"])
  old = variables["batch_stats"]["BatchNorm_0"]
  expected = {
    "mean": 0.9 * old["mean"] + 0.1 * hidden.mean(0),
    "var": 0.9 * old["var"] + 0.1 * hidden.var(0),
  }
  cases.assert_close(state["batch_stats"]["BatchNorm_0"], expected, 1e-5)


class Dropper(nn.Module):
  """Drops half of the features, and does nothing else that counts."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    shift = self.param("shift", nn.initializers.zeros, (1, 64))  # a model has parameters
    return nn.Dropout(0.5, deterministic=not train)(x + shift)


def test_dropout_follows_the_key_in_training_and_is_off_otherwise():
  task, variables = classification(Dropper(), (64,)), {"params": {"shift": jnp.zeros((1, 64))}}
  case = Batch(jnp.ones((1, 64)), jnp.int32([0]), jnp.asarray([True]))
  keys = [jax.random.key(seed) for seed in (0, 0, 1)]
  losses = [float(task.loss(variables, case, plain_layers, key)[0]) for key in keys]
  assert losses[0] == losses[1] != losses[2]
  plain = optax.softmax_cross_entropy_with_integer_labels(jnp.ones((1, 64)), jnp.int32([0]))
  assert float(task.evaluate(variables, case)["loss"].total) == pytest.approx(float(plain[0]))


class Nested(nn.Module):
  """Two layers in a block called `inner`, and one outside, which computes first."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    class Inner(nn.Module):
      @nn.compact
      def __call__(self, x):
        x = nn.Dense(3, name="second")(x)
        return nn.Dense(2, name="first")(x)

    x = nn.Dense(4, name="zeroth")(x)
    return Inner(name="inner")(x)


def test_layers_know_their_names():
  task = classification(Nested(), (1,))
  assert task.layer_names == ("zeroth", "inner/second", "inner/first")
  seen = []

  def note(name):
    seen.append(name)
    return PLAIN

  variables = task.init(jax.random.key(0))
  task.loss(variables, batch([1], [0], [True]), note, jax.random.key(0))
  assert tuple(seen) == task.layer_names
  assert set(trees.layer_names(variables["params"])) == set(seen)


def test_in_bfloat16_parameters_and_gradients_stay_float32():
  model = MLP(2, hidden=(8,))
  tasks = [classification(model, (3,), dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)]
  variables = tasks[0].init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (4, 3))
  case = Batch(x, jnp.int32([0, 1, 1, 0]), jnp.ones(4, bool))

  def loss(params, task):
    return task.loss({"params": params}, case, plain_layers, jax.random.key(0))[0]

  full, half = (jax.value_and_grad(loss)(variables["params"], task) for task in tasks)
  assert half[0].dtype == jnp.float32 and half[0] != full[0]
  assert float(half[0]) == pytest.approx(float(full[0]), rel=0.02)
  for leaf, other in zip(jax.tree.leaves(half[1]), jax.tree.leaves(full[1]), strict=True):
    assert leaf.dtype == jnp.float32
    np.testing.assert_allclose(leaf, other, atol=0.03)
  evaluated = [scores(task.evaluate(variables, case))["loss"][0] for task in tasks]
  assert evaluated[0] != evaluated[1] == pytest.approx(evaluated[0], rel=0.02)


def losses(logits, labels):
  values, vjp = jax.vjp(lambda logits: task._cross_entropy(logits, labels), logits)
  return values, *vjp(jnp.cos(values))


def test_losses_are_those_of_optax_on_any_platform():
  rng = np.random.default_rng(0)
  logits = (3 * rng.standard_normal((20, 7))).astype(np.float32)
  logits[3] = 0  # as rows of padding
  labels = rng.integers(0, 7, 20, np.int32)

  def by_optax(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

  @jax.jit
  def expected(logits):
    values, vjp = jax.vjp(by_optax, logits)
    return values, *vjp(jnp.cos(values))

  tuned = jax.jit(losses)
  cases.assert_same_bits(tuned(logits, labels), expected(logits))
  with untuned():
    cases.assert_close(tuned(logits, labels), expected(logits), 1e-6)
    unknown = losses(logits[:2], np.int32([7, -8]))[0]
  assert np.all(np.isnan(unknown)) and np.all(np.isnan(losses(logits[:2], np.int32([7, -8]))[0]))


def lower_loss(dtype, platform):
  narrow = classification(MLP(2, hidden=()), (1,), dtype=dtype)

  def loss(variables, case):
    return narrow.loss(variables, case, plain_layers, jax.random.key(0))[0]

  case = batch([2, 3], [0, 1], [True, True])
  return jax.export.export(jax.jit(jax.value_and_grad(loss)), platforms=[platform])(VARIABLES, case)


def test_examples_are_not_cast_before_they_are_taken_on_accelerators():
  # By a difference from what the compiler does not know to be 0.
  found = {
    (platform, dtype.__name__): "optimization_barrier" in lower_loss(dtype, platform).mlir_module()
    for platform in ("tpu", "cpu")
    for dtype in (jnp.bfloat16, jnp.float32)
  }
  assert [case for case, is_kept in found.items() if is_kept] == [("tpu", "bfloat16")]


def test_accelerators_take_logits_of_labels_without_a_gather():
  assert "stablehlo.gather" in lower_loss(jnp.float32, "cpu").mlir_module()
  assert "stablehlo.gather" not in lower_loss(jnp.float32, "tpu").mlir_module()
  assert "stablehlo.scatter" not in lower_loss(jnp.float32, "tpu").mlir_module()
