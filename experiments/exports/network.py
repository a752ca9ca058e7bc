"""Our networks, written once for libraries that compute their layers in their own way.

A library is an `Ops`: its layers by the names that flax gives ours. It may hold images and features
in whatever layout suits it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sparsyfed_jax import models


class ExportError(ValueError):
  """What cannot be exported; the one-line message names the argument and what would be right."""


class Ops(NamedTuple):
  """The layers of a library, on its own arrays."""

  images: Callable[[np.ndarray], Any]  # from (n, height, width, channels), or (n, features)
  conv: Callable[..., Any]  # (name, x, stride, padding)
  dense: Callable[[str, Any], Any]
  batch_norm: Callable[[str, Any], Any]
  group_norm: Callable[[str, Any, int], Any]
  layer_norm: Callable[[str, Any], Any]
  relu: Callable[[Any], Any]
  gelu: Callable[[Any], Any]  # by the hyperbolic tangent
  max_pool: Callable[[Any, int, int, int], Any]  # (x, side, stride, padding)
  flat: Callable[[Any], Any]  # images to features, in the order that the next dense layer has
  patches: Callable[[Any, int], Any]  # images to tokens
  positions: Callable[[str, Any], Any]  # adds those of tokens
  attention: Callable[[Any, int], Any]  # (queries, keys and values in one, heads)
  mean: Callable[[Any], Any]  # over all places or tokens
  logits: Callable[[Any], np.ndarray]  # (n, num_classes)


def is_known(model: Any) -> bool:
  """Tells whether `forward` can compute a network."""
  return isinstance(model, models.MLP | models.CNN | models.ResNet18 | models.ViT)


def forward(model: Any, ops: Ops, x: np.ndarray) -> np.ndarray:
  """Computes the logits of a network with the layers of a library.

  Args:
    model: of `sparsyfed_jax.models`.
    ops: of the library, which have the weights.
    x: (n, *input_shape) float32, scaled as the network sees it.

  Raises:
    ExportError: the network is not one of ours.
  """
  match model:
    case models.MLP():
      y = ops.flat(ops.images(x))
      for i in range(len(model.hidden)):
        y = ops.relu(ops.dense(f"Dense_{i}", y))
      return ops.logits(ops.dense(f"Dense_{len(model.hidden)}", y))
    case models.CNN():
      y = ops.images(x)
      for i in range(len(model.channels)):
        y = ops.relu(ops.conv(f"Conv_{i}", y, 1, 0))
      y = ops.flat(ops.max_pool(y, 2, 2, 0))
      return ops.logits(ops.dense("Dense_1", ops.relu(ops.dense("Dense_0", y))))
    case models.ResNet18():
      return _resnet(model, ops, x)
    case models.ViT():
      return _vit(model, ops, x)
  raise ExportError(f"{type(model).__name__}: must be MLP, CNN, ResNet18 or ViT")


def _resnet(model: models.ResNet18, ops: Ops, x: np.ndarray) -> np.ndarray:
  def norm(name: str, y: Any, width: int) -> Any:
    if model.norm == "batch":
      return ops.batch_norm(name.format("BatchNorm"), y)
    return ops.group_norm(name.format("GroupNorm"), y, max(math.gcd(64, width) // 2, 1))

  x = x[..., None] if x.ndim == 2 else x
  y = ops.images(x[:, None] if x.ndim == 3 else x)
  is_small = model.stem == "cifar"
  y = ops.conv("Conv_0", y, 1, 1) if is_small else ops.conv("Conv_0", y, 2, 3)
  y = ops.relu(norm("{}_0", y, model.width))
  if not is_small:
    y = ops.max_pool(y, 3, 2, 1)
  for number in range(8):
    block, width = f"BasicBlock_{number}", model.width * 2 ** (number // 2)
    is_new_stage = number > 0 and number % 2 == 0
    stride = 2 if is_new_stage else 1
    z = ops.relu(norm(f"{block}/{{}}_0", ops.conv(f"{block}/Conv_0", y, stride, 1), width))
    z = norm(f"{block}/{{}}_1", ops.conv(f"{block}/Conv_1", z, 1, 1), width)
    if is_new_stage:
      y = norm(f"{block}/{{}}_2", ops.conv(f"{block}/shortcut", y, stride, 0), width)
    y = ops.relu(y + z)
  return ops.logits(ops.dense("Dense_0", ops.mean(y)))


def _vit(model: models.ViT, ops: Ops, x: np.ndarray) -> np.ndarray:
  y = ops.positions("position", ops.dense("embed", ops.patches(ops.images(x), model.patch)))
  for number in range(model.depth):
    block = f"EncoderBlock_{number}"
    z = ops.dense(f"{block}/qkv", ops.layer_norm(f"{block}/LayerNorm_0", y))
    y = y + ops.dense(f"{block}/out", ops.attention(z, model.heads))
    z = ops.dense(f"{block}/mlp_in", ops.layer_norm(f"{block}/LayerNorm_1", y))
    y = y + ops.dense(f"{block}/mlp_out", ops.gelu(z))
  return ops.logits(ops.dense("head", ops.mean(ops.layer_norm("LayerNorm_0", y))))
