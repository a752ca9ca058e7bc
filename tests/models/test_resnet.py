"""The residual networks against PyTorch, their sizes, and padded batches."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsyfed_jax import models, trees
from sparsyfed_jax.ops import PLAIN

MODELS = {
  "cifar": (models.ResNet18(3, width=4), (16, 16, 3)),
  "speech": (models.SpeechResNet18(3, width=4), (64,)),
}
ROWS = 3
PADDED = (0, 1, 3)  # where those rows are in a padded batch
Y = (0, 1, 2)
# Compilation is what takes time here.
compile_cheaply = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def example(name):
  """Variables, all of them lively, and inputs."""
  model, shape = MODELS[name]
  rng = np.random.default_rng(0)
  x = np.float32(rng.standard_normal((ROWS, *shape)))
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)

  def draw(path, leaf):
    if trees.is_prunable(path, leaf):
      return np.float32(rng.standard_normal(leaf.shape) * (2 * leaf.shape[-1] / leaf.size) ** 0.5)
    if trees.path_name(path).endswith(("scale", "var")):
      return np.float32(rng.uniform(0.5, 1.5, leaf.shape))
    return np.float32(rng.standard_normal(leaf.shape) * 0.2)

  return jax.tree_util.tree_unflatten(treedef, [draw(*item) for item in flat]), x


@cache
def step(name):
  """One compiled step: logits, new statistics, gradients."""
  network = models.network_of(*MODELS[name])

  @compile_cheaply
  def run(variables, x, y, valid):
    def loss(params):
      now, key = {**variables, "params": params}, jax.random.key(0)
      logits, state = network.apply(now, x, valid, key, lambda name: PLAIN, train=True)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
      total = jnp.sum(jnp.where(valid, losses, 0))
      return total / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1), (logits, state)

    gradients, (logits, state) = jax.grad(loss, has_aux=True)(variables["params"])
    return logits, state["batch_stats"], gradients

  return run


def padded(rows, junk):
  """A batch of 5 with the rows in it."""
  rows = np.asarray(rows)
  batch = np.full((5, *rows.shape[1:]), junk, rows.dtype)
  batch[list(PADDED)] = rows
  return batch


def run_padded(name, junk=0):
  variables, x = example(name)
  return step(name)(variables, padded(x, junk), padded(Y, 0), padded([True] * ROWS, False))


# PyTorch 2.13 in float64, with the modules of torchvision's ResNet-18: training logits, logits of
# the initial statistics, and the norms of: gradients of kernels, gradients of the rest, gradient of
# the first kernel, new running means, new running variances.
PYTORCH = {
  "cifar": (
    [
      [1.1189709720823533, -2.14112461622699, -0.3138424073653433],
      [1.6805333909546702, -1.2620277792817423, 0.29608107076338847],
      [-0.43878230675185814, -1.38649694136646, 0.7104191963167892],
    ],
    [
      [-2.1093721664712506, -7.9491527003343645, 11.967373606272778],
      [-1.4209000462340944, -4.454782809811833, 7.796644505649346],
      [-0.22977352432749587, -5.453601844133873, 12.263276044284936],
    ],
    [16.315793684165367, 3.1238357263772967, 8.098811463608477],
    [3.2800176282499187, 18.295970749076016],
  ),
  "speech": (
    [
      [-1.5935162457001333, -0.14859341374343316, -2.74370094857546],
      [0.7117367201498874, 0.7509422971513287, -2.5084278782597025],
      [-1.1806685437871898, 0.9404610156130522, -3.476631036006506],
    ],
    [
      [2.8005466134512766, 0.6142256339084294, -1.458521005080004],
      [2.497270712754384, 0.445113631986893, -2.266421162493626],
      [2.35459432691667, 0.8817487117024021, -1.8003374038617237],
    ],
    [52.33493370842676, 11.68878044268296, 22.311716062586555],
    [3.405994649555181, 17.644141353319732],
  ),
}


@pytest.mark.parametrize("name", ["cifar", pytest.param("speech", marks=pytest.mark.slow)])
def test_a_padded_step_equals_an_unpadded_one_of_pytorch(name):
  expected_logits, _, expected_gradients, expected_stats = PYTORCH[name]
  logits, stats, gradients = run_padded(name)
  assert logits.shape == (5, 3) and logits.dtype == jnp.float32
  assert_close(np.asarray(logits)[list(PADDED)], expected_logits)
  kernels, _ = trees.split_prunable(gradients)
  rest = biases(gradients)
  assert_close([norm(part) for part in (kernels, rest, gradients["Conv_0"])], expected_gradients)
  leaves = jax.tree.leaves_with_path(stats)
  for word, expected in zip(("mean", "var"), expected_stats, strict=True):
    found = [leaf for path, leaf in leaves if trees.path_name(path).endswith(word)]
    assert_close(norm(found), expected)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_equals_pytorch_and_the_native_convolution_the_patches(name):
  model, _ = MODELS[name]
  logits = compile_cheaply(model.apply)(*example(name))
  assert_close(logits, PYTORCH[name][1])


def assert_close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def norm(tree):
  return sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)) ** 0.5


def biases(params):
  return [leaf for p, leaf in jax.tree.leaves_with_path(params) if not trees.is_prunable(p, leaf)]


@pytest.mark.parametrize("junk", [1, -1e6])
def test_padding_changes_no_bit(junk):
  expected = run_padded("cifar")
  found = run_padded("cifar", junk)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_batch_without_a_valid_row_changes_nothing():
  variables, x = example("cifar")
  valid = np.zeros(5, bool)
  logits, stats, gradients = step("cifar")(variables, padded(x, 0), padded(Y, 0), valid)
  assert np.isfinite(logits).all()
  jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
  ("model", "shape", "size", "prunable"),
  [
    (models.ResNet18(10), (32, 32, 3), 11_173_962, 11_164_352),
    (models.ResNet18(100), (32, 32, 3), 11_220_132, 11_210_432),
    (models.ResNet18(10, norm="group"), (32, 32, 3), 11_173_962, 11_164_352),
    (models.ResNet18(1000, stem="imagenet"), (224, 224, 3), 11_689_512, 11_678_912),
    (models.SpeechResNet18(35), (8000,), 11_188_195, 11_178_560),
  ],
)
def test_number_of_parameters(model, shape, size, prunable):
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
  assert trees.size(variables["params"]) == size
  assert trees.size(trees.split_prunable(variables["params"])[0]) == prunable
  assert ("batch_stats" in variables) == (model.norm == "batch")


def calls(model, shape):
  """The shapes that the layers' operations are called with, of two examples, and the variables."""
  products = models.network_of(model, shape).products
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
  return [one.x_shape for one in products], [one.w_shape for one in products], variables


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_kernel_is_used_by_the_layers_operations(norm):
  inputs, weights, variables = calls(models.ResNet18(10, norm=norm), (32, 32, 3))
  kernels, _ = trees.split_prunable(variables["params"])
  assert sorted(weights, key=str) == sorted((kernel.shape for kernel in kernels), key=str)
  sides = [shape[1] for shape in inputs[:-1]]
  assert sides == [
    *(32, 32, 32, 32, 32),
    *(32, 16, 32, 16, 16),
    *(16, 8, 16, 8, 8),
    *(8, 4, 8, 4, 4),
  ]
  assert inputs[-1] == (2, 512)


def test_shortcuts_are_found_by_their_path():
  _, _, variables = calls(models.ResNet18(10), (32, 32, 3))
  paths = [trees.path_name(path) for path, _ in jax.tree.leaves_with_path(variables["params"])]
  assert [path for path in paths if re.search("shortcut", path)] == [
    f"BasicBlock_{i}/shortcut/kernel" for i in (2, 4, 6)
  ]


@pytest.mark.parametrize("shape", [(8000,), (8000, 1), (1, 8000, 1)])
def test_a_waveform_is_an_image_of_height_1(shape):
  inputs, _, _ = calls(models.SpeechResNet18(35), shape)
  assert inputs[0] == (2, 1, 8000, 1) and inputs[1] == (2, 1, 2000, 64)
  assert inputs[-2] == (2, 1, 250, 512) and inputs[-1] == (2, 512)


@pytest.mark.parametrize("field", ["stem", "norm"])
def test_stem_and_norm_have_to_be_known(field):
  model = models.ResNet18(10, **{field: "other"})
  with pytest.raises(ValueError, match=f"{field} must be .* found 'other'"):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
