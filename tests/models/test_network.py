"""Models as methods train them: rewritten as injected, any library's as its own, errors by name."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from sparsyfed_jax import models, ops, trees
from sparsyfed_jax.fed.task import classification, plain_layers
from sparsyfed_jax.models.network import network_of
from sparsyfed_jax.ops import PLAIN, LayerOps
from sparsyfed_jax.types import Batch
from tests import cases
from tests.models.injected import injected
from tests.models.strangers import MODELS, SHAPE, Linen, Nnx, equinox_model, plain_model

BATCH = 6
VALID = np.arange(BATCH) < 4
# Our own models small, and the shape of an example.
OURS = {
  "mlp": (models.MLP(5, (8, 6)), (4, 4)),
  "cnn": (models.CNN(5, (4, 6), 8), (8, 7, 2)),
  "resnet": (models.ResNet18(5, width=4), (8, 8, 3)),
  "speech resnet": (models.SpeechResNet18(5, width=4), (128,)),
  "vit": (models.ViT(5, patch=4, dim=12, depth=2, heads=3), (8, 8, 1)),
}


@pytest.fixture(autouse=True)
def as_others_have_it():
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


def layers_of(method, valid):
  if method == "zerofl":
    return ops.residual_layers(lambda x, w, rows: ops.share_threshold(x, valid, 0.4, rows))
  return ops.pruned_layers(valid)


def sparse_variables(model, shape):
  """Random variables of which 30 % of the kernels' entries are not 0, and inputs."""
  rng = np.random.default_rng(0)
  x = np.float32(rng.standard_normal((BATCH, *shape)))
  shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), x)

  def draw(path, leaf):
    values = rng.uniform(0.5, 1, leaf.shape)
    if trees.is_prunable(path, leaf):
      values = rng.standard_normal(leaf.shape) * (rng.random(leaf.shape) < 0.3)
    return np.float32(values)

  return jax.tree_util.tree_map_with_path(draw, dict(shapes)), x


def gradients(apply, params, state, x, valid, layers):
  def loss(params):
    out, new = apply(params, state, x, valid, layers)
    return jnp.sum(jnp.where(valid[:, None], jnp.sin(out), 0)), (out, new)

  return jax.value_and_grad(loss, has_aux=True)(params)


SLOW = "resnet", "speech resnet"  # whose layers are those of the others


@pytest.mark.parametrize(
  ("name", "method"),
  [
    pytest.param(
      name,
      method,
      marks=pytest.mark.slow if name in SLOW or (name, method) == ("vit", "zerofl") else (),
    )
    for name in OURS
    for method in ("sparsyfed", "zerofl")
  ],
)
def test_rewriting_equals_injection_to_the_bit(name, method):
  model, shape = OURS[name]
  variables, x = sparse_variables(model, shape)
  params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}

  def run(model, params, state, x, valid):
    return model.apply({**state, "params": params}, x, train=True, valid=valid, mutable=list(state))

  def by_injection(params, state, x, valid, layers):
    with injected(layers):
      return run(model, params, state, x, valid)

  def rewritten(params, state, x, valid, layers):
    rule = ops.layer_rule(lambda path: layers)
    return ops.rewrite_layers(partial(run, model), rule, (None, 0, 0))(params, state, x, valid)

  @partial(jax.jit, static_argnums=0)
  def compute(apply, params, state, x, valid):
    return gradients(apply, params, state, x, valid, layers_of(method, valid))

  found, expected = (compute(one, params, state, x, VALID) for one in (rewritten, by_injection))
  cases.assert_same_bits(found, expected)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(expected[1]))


def make_task(name, **options):
  make, evaluate, names = MODELS[name]
  return classification(make(), SHAPE, num_classes=cases.NUM_CLASSES, **options), evaluate, names


def batch_of(size=BATCH, seed=0):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=(size, *SHAPE)), jnp.float32)
  y = jnp.asarray(rng.integers(0, cases.NUM_CLASSES, size), jnp.int32)
  return Batch(x, y, jnp.ones(size, bool))


@pytest.mark.parametrize("name", MODELS)
def test_models_of_each_library_predict_as_in_their_own(name):
  task, evaluate, names = make_task(name)
  assert task.layer_names == task.kernels == names and not task.problems
  variables = task.init(jax.random.key(1))
  assert set(trees.layer_names(variables["params"])) == set(names)
  batch, key = batch_of(), jax.random.key(2)
  loss, (state, metrics) = task.loss(variables, batch, plain_layers, key)
  assert jnp.isfinite(loss) and metrics["loss"].weight == BATCH
  now = {**state, "params": variables["params"]}
  assert jax.tree.structure(now) == jax.tree.structure(variables)
  moved = {name for name in state if not cases.same_bits(state[name], variables[name])}
  assert moved == set(state) and len(state) == (name != "plain")
  expected = evaluate(task.to_model(now), batch.x)
  np.testing.assert_allclose(task.predict(now, batch), expected, rtol=1e-5, atol=1e-5)
  # Dropout follows the key, in training alone.
  other, _ = task.loss(variables, batch, plain_layers, jax.random.key(3))
  again, _ = task.loss(variables, batch, plain_layers, key)
  assert again == loss and (other == loss) == (name == "plain")


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing_but_what_batch_norm_sees(name):
  task, _, _ = make_task(name)
  (remark,) = task.remarks
  assert "does not take `valid`" in remark and "copies of the client's examples" in remark
  variables, four = task.init(jax.random.key(1)), batch_of(4)
  layers = lambda batch: lambda name: ops.pruned_layers(batch.valid)  # noqa: E731

  def padded(filler):
    x = jnp.concatenate([four.x, jnp.full((4, *SHAPE), filler)])
    y = jnp.concatenate([four.y, jnp.zeros(4, jnp.int32)])
    return Batch(x, y, jnp.arange(8) < 4)

  def loss(params, batch):
    out = task.loss({**variables, "params": params}, batch, layers(batch), jax.random.key(0))
    return out[0], out[1][0]

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  first, second = (run(variables["params"], padded(filler)) for filler in (0.0, 1e6))
  cases.assert_same_bits(first, second)
  # Each of four examples twice: batch norm sees the means of the four, and variances of them.
  if name in ("linen", "nnx"):
    alone = run(variables["params"], four)
    cases.assert_close(first[0][1], alone[0][1], 1e-5)


@pytest.mark.parametrize("name", ["nnx", "equinox"])
def test_a_maker_of_modules_starts_from_the_key(name):
  make = equinox_model if name == "equinox" else lambda key: Nnx(nnx.Rngs(key))
  task = classification(make, SHAPE)
  first, same, other = (task.init(jax.random.key(seed))["params"] for seed in (0, 0, 1))
  cases.assert_same_bits(first, same)
  assert not cases.same_bits(first["head"], other["head"])
  loss = task.loss(task.init(jax.random.key(1)), batch_of(), plain_layers, jax.random.key(0))[0]
  assert jnp.isfinite(loss)
  fixed = make_task(name)[0]
  cases.assert_same_bits(*(fixed.init(jax.random.key(seed)) for seed in (0, 1)))


def test_an_equinox_module_may_be_written_for_batches():
  eqx = pytest.importorskip("equinox")

  class Batched(eqx.Module):
    w: jax.Array

    def __call__(self, x, valid):
      return jnp.where(valid[:, None], x.reshape(x.shape[0], -1) @ self.w, 0)

  task = classification(Batched(jnp.ones((16, 3))), SHAPE)
  assert task.kernels == ("w",) and not task.remarks


class Padded(nn.Module):
  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    x = models.BatchNorm()(nn.Dense(6)(x.reshape(x.shape[0], -1)), train=train, valid=valid)
    return nn.Dense(3)(x)


def test_where_valid_is_accepted_padding_is_exact():
  task = classification(Padded(), SHAPE)
  assert not task.remarks
  variables, batch = task.init(jax.random.key(1)), batch_of(8)
  losses = [
    task.loss(
      variables,
      batch._replace(x=batch.x.at[5:].set(filler), valid=jnp.arange(8) < 5),
      plain_layers,
      jax.random.key(0),
    )
    for filler in (0.0, 7.0)
  ]
  cases.assert_same_bits(*losses)


class Given(nn.Module):
  """Layers that take their operations, as models for early versions do."""

  ops: LayerOps = PLAIN

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    x = nn.relu(nn.Dense(6, dot_general=self.ops.dot_general)(x.reshape(x.shape[0], -1)))
    return nn.Dense(5, dot_general=self.ops.dot_general)(x)


def test_layers_that_take_their_operations_are_followed_like_others():
  tasks = [classification(model, SHAPE, num_classes=5) for model in (Given(), models.MLP(5, (6,)))]
  assert tasks[0].kernels == tasks[0].layer_names == ("Dense_0", "Dense_1")
  variables, batch, key = tasks[0].init(jax.random.key(0)), batch_of(), jax.random.key(1)

  def gradients_of(task):
    layers = ops.pruned_layers(batch.valid)
    return jax.grad(lambda v: task.loss(v, batch, lambda name: layers, key)[0])(variables)

  cases.assert_same_bits(*map(gradients_of, tasks))


class Unfollowed(nn.Module):
  """An optimised LSTM, whose kernels are concatenated, and a head."""

  @nn.compact
  def __call__(self, x):
    x = nn.RNN(nn.OptimizedLSTMCell(4, name="rnn"))(x.reshape(x.shape[0], 4, 4))
    return nn.Dense(3, name="head")(x[:, -1])


def test_methods_that_prune_name_layers_that_cannot_be_followed():
  task = classification(Unfollowed(), SHAPE)
  assert task.kernels == ("head",)
  cases.form("fedavg", cases.make_setup(task))
  right = "topk: cannot follow all layers of the model: rnn/hf/kernel, .* are computed from"
  with pytest.raises(ValueError, match=right):
    cases.form("topk", cases.make_setup(task))
  chosen = classification(Unfollowed(), SHAPE, prunable="head")
  cases.form("topk", cases.make_setup(chosen))
  params = chosen.init(jax.random.key(0))["params"]
  assert trees.layer_names(params) == ["head"]
  assert "plain" in params["rnn"]["hf"]["kernel"]


def test_parameters_that_nothing_uses_are_named():
  w = jnp.ones((16, 3))
  task = classification((lambda key: {"w": w}, lambda params, x: x.reshape(-1, 16) @ w), SHAPE)
  (problem,) = task.problems
  assert problem.startswith("w: the model's output does not depend on it; is another copy closed")


class Embedding(nn.Module):
  @nn.compact
  def __call__(self, x):
    embedded = nn.Embed(4, 5, name="table")(x[..., 0].astype(int) % 4)
    return nn.Dense(3, name="head")(embedded.reshape(x.shape[0], -1))


def test_prunable_chooses_parameters_by_path():
  assert classification(Embedding(), SHAPE).kernels == ("head",)
  task = classification(Embedding(), SHAPE, prunable="table|head")
  assert task.problems == ("table/embedding: no product uses it",)
  with pytest.raises(ValueError, match="^prunable='nose': must find a parameter of Embedding .*"):
    classification(Embedding(), SHAPE, prunable="nose")
  for model, kernels in ((models.MLP(3, (4,)), ("Dense_1",)), (plain_model(), ("1",))):
    task = classification(model, SHAPE, prunable="1")
    assert task.kernels == kernels
    seen = []
    task.loss(
      task.init(jax.random.key(0)),
      batch_of(),
      lambda name: seen.append(name) or ops.PLAIN,  # noqa: B023
      jax.random.key(0),
    )
    assert tuple(seen) == kernels


@pytest.mark.parametrize(
  ("model", "message"),
  [
    (nn.Dense(4), r"Dense: gives an array of rank 4, must have 3 logits"),
    (nn.Conv(3, (1,) * 5), r"Conv: must take examples of shape \(4, 4, 1\) \("),
    (Linen, "must be a flax.linen, flax.nnx or Equinox module"),
    (lambda x: x, "function: must be a flax.linen, flax.nnx or Equinox module"),
    (lambda p, x: x, "function: must be .*; called with a key: TypeError: .* missing 1 required"),
    ((lambda key: {"n": jnp.ones((16, 3), int)}, lambda p, x: x), "the parameter n has dtype int"),
    ((lambda key: {}, lambda params, x: x), "has no parameters to train"),
    ((plain_model()[0], lambda params, x, train: (x, x)), "gives a tuple, must give one array"),
    ((lambda key: {1: jnp.ones(2), "1": jnp.ones(2)}, lambda p, x: x), r"\(init, apply\)"),
  ],
)
def test_models_that_cannot_be_used_are_named(model, message):
  with pytest.raises(ValueError, match=message):
    classification(model, SHAPE, num_classes=3)


def test_an_equinox_module_that_takes_neither_examples_nor_batches_says_why():
  eqx = pytest.importorskip("equinox")
  right = r"^Linear: must take an example of shape \(4, 4, 1\), or a batch of them \("
  with pytest.raises(ValueError, match=right):
    classification(eqx.nn.Linear(5, 3, key=jax.random.key(0)), SHAPE)


def test_layers_in_bfloat16():
  tasks = [make_task("linen", dtype=dtype)[0] for dtype in (jnp.float32, jnp.bfloat16)]
  variables, batch = tasks[0].init(jax.random.key(0)), batch_of()
  wide, narrow = (task.predict(variables, batch) for task in tasks)
  assert narrow.dtype == jnp.float32 and not np.array_equal(wide, narrow)
  np.testing.assert_allclose(wide, narrow, atol=0.1)


@pytest.mark.parametrize("name", [*OURS, "linen"])
def test_networks_know_the_layers_by_name(name):
  model, shape = OURS.get(name) or (Linen(), SHAPE)
  network = network_of(model, shape)
  assert set(network.layer_names) == set(network.kernels)
