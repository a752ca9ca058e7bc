"""Small networks of each kind with sparse weights, as model files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax import trees
from sparsyfed_jax.data.dataset import Signature
from sparsyfed_jax.io import model_file
from sparsyfed_jax.loaded import describe, load_model
from sparsyfed_jax.models import CNN, MLP, ResNet18, ViT

MODELS = {
  "mlp": (MLP(3, hidden=(16, 8)), (4, 6, 2)),
  "mlp-flat": (MLP(3, hidden=(16,)), (11,)),
  "cnn": (CNN(3, channels=(4, 8), hidden=16), (8, 10, 2)),
  "resnet": (ResNet18(3, width=4), (8, 8, 3)),
  # Not 8 x 8: a group of the last stage would be two values, whose norm is a step from -1 to 1.
  "resnet-group": (ResNet18(3, width=4, norm="group"), (10, 10, 1)),
  "speech": (ResNet18(3, stem="imagenet", width=4), (200,)),
  "vit": (ViT(3, patch=2, dim=12, depth=2, heads=3), (4, 6, 2)),
}
MEAN, STD = 8.0, 4.0


@functools.cache
def variables_of(name, density=0.3):
  """Draws weights of which a share is not 0, biases, and statistics of norms."""
  model, shape = MODELS[name]
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    values = rng.normal(size=leaf.shape).astype(np.float32)
    if trees.is_prunable(path, leaf):
      scale = np.sqrt(density * np.prod(leaf.shape[:-1]))
      return values / np.float32(scale) * (rng.uniform(size=leaf.shape) < density)
    return np.abs(values) + 0.5 if "scale" in str(path) or "var" in str(path) else 0.1 * values

  return jax.tree_util.tree_map_with_path(draw, shapes)


def signature(shape, num_classes=3, kind="classification"):
  return Signature("toys", kind, shape, num_classes, MEAN, STD)


def write(path, name="mlp", **others):
  """Writes a model file; returns its path."""
  model, shape = MODELS[name]
  told = {"input_range": (4.0, 12.0), "seen_range": (4.0, 12.0)} | others
  model_file.write(path, describe(model, signature(shape), **told), variables_of(name))
  return path


def load(folder, name):
  return load_model(write(folder / f"{name}.sfed", name))
