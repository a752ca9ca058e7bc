"""Models of other libraries, none of which knows of sparsity, for `--model`.

experiments/results/libraries.md has the command and the table that are made of them. `equimo` and
`flaxmodels` need the packages of their names (Equimo 1.1.0, flaxmodels 0.1.3).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def linen(num_outputs: int) -> Any:
  """A convolutional network of flax.linen with batch norm and dropout."""

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
      x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(16, (3, 3))(x)))
      x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
      x = nn.relu(nn.Dense(64)(nn.Dropout(0.1, deterministic=not train)(x)))
      return nn.Dense(num_outputs)(x)

  return Model()


def nnx(num_outputs: int, input_shape: tuple[int, ...], key: jax.Array) -> Any:
  """The same of flax.nnx."""
  from flax import nnx

  class Model(nnx.Module):
    def __init__(self, rngs: Any) -> None:
      height, width, channels = input_shape
      self.conv = nnx.Conv(channels, 16, (3, 3), rngs=rngs)
      self.norm = nnx.BatchNorm(16, rngs=rngs)
      self.drop = nnx.Dropout(0.1, rngs=rngs)
      self.body = nnx.Linear(16 * (height // 2) * (width // 2), 64, rngs=rngs)
      self.head = nnx.Linear(64, num_outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
      x = nnx.avg_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
      return self.head(nnx.relu(self.body(self.drop(x.reshape(x.shape[0], -1)))))

  return Model(nnx.Rngs(key))


def equinox(num_outputs: int, input_shape: tuple[int, ...], key: jax.Array) -> Any:
  """A convolution and a perceptron of Equinox, written for one example."""
  import equinox as eqx

  class Model(eqx.Module):
    conv: Any
    drop: Any
    mlp: Any

    def __init__(self, key: jax.Array) -> None:
      height, width, channels = input_shape
      self.conv = eqx.nn.Conv2d(channels, 8, 3, padding=1, key=key)
      self.drop = eqx.nn.Dropout(0.1)
      self.mlp = eqx.nn.MLP(8 * height * width, num_outputs, 32, 1, key=key)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
      x = jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))).reshape(-1)
      return self.mlp(self.drop(x, key=key))

  return Model(key)


def haiku(num_outputs: int) -> Any:
  """A convolutional network of Haiku with batch norm and dropout."""
  import haiku as hk

  def run(x: jax.Array, is_training: bool) -> jax.Array:
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(16, 3)(x), is_training))
    if is_training:
      x = hk.dropout(hk.next_rng_key(), 0.1, x)
    x = hk.Flatten()(hk.AvgPool((2, 2, 1), (2, 2, 1), "SAME")(x))
    return hk.Linear(num_outputs)(jax.nn.relu(hk.Linear(64)(x)))

  return hk.transform_with_state(run)


def plain(num_outputs: int, input_shape: tuple[int, ...]) -> Any:
  """A perceptron of two functions."""
  size = input_shape[0] * input_shape[1] * input_shape[2]

  def init(key: jax.Array) -> Any:
    shapes = ((size, 128), (128, num_outputs))
    keys = jax.random.split(key, len(shapes))
    return [
      {"w": jax.random.normal(key, shape) / shape[0] ** 0.5, "b": jnp.zeros(shape[1])}
      for key, shape in zip(keys, shapes, strict=True)
    ]

  def apply(params: Any, x: jax.Array) -> jax.Array:
    body, head = params
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ body["w"] + body["b"])
    return x @ head["w"] + head["b"]

  return init, apply


def equimo(num_outputs: int, input_shape: tuple[int, ...], key: jax.Array) -> Any:
  """A small vision transformer of Equimo, whose images have their channels first."""
  import equinox as eqx
  from equimo.models import VisionTransformer

  class ChannelsLast(eqx.Module):
    inner: Any

    def __call__(self, x: jax.Array, key: jax.Array) -> jax.Array:
      return self.inner(jnp.moveaxis(x, -1, 0), key=key)

  side, _, channels = input_shape
  vit = VisionTransformer(
    img_size=side,
    in_channels=channels,
    dim=32,
    patch_size=2,
    num_heads=[4],
    depths=[2],
    num_classes=num_outputs,
    key=key,
  )
  return ChannelsLast(vit)


def flaxmodels(num_outputs: int) -> Any:
  """ResNet-18 of flaxmodels, with random weights."""
  from flaxmodels import ResNet18

  return ResNet18(output="logits", pretrained=None, num_classes=num_outputs, normalize=False)
