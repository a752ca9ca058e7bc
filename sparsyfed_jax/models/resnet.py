"""Residual networks (He et al., 2016, arXiv 1512.03385)."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from sparsyfed_jax.models.norm import Norm, normalize
from sparsyfed_jax.ops import max_pool_overlapping


class BasicBlock(nn.Module):
  """Two 3x3 convolutions beside a shortcut.

  Where the block changes the shape, the shortcut is a 1x1 convolution called `shortcut`, so that
  the path of its kernel ends in `shortcut/kernel`.

  Attributes:
    features: of the output.
    stride: of the first convolution, and of the shortcut.
    norm: 'batch' or 'group', as in `normalize`.
  """

  features: int
  stride: int = 1
  norm: Norm = "batch"

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Maps (batch, height, width, any) to (batch, height / stride, width / stride, features)."""
    conv = partial(_conv, self.features)
    norm = partial(normalize, self.norm, train=train, valid=valid)
    y = nn.relu(norm(conv(3, self.stride)(x)))
    y = norm(conv(3)(y))
    if self.stride != 1 or x.shape[-1] != self.features:
      x = norm(conv(1, self.stride, name="shortcut")(x))
    return nn.relu(x + y)


class ResNet18(nn.Module):
  """ResNet-18 for small images ("cifar" stem) or for larger inputs ("imagenet" stem).

  The "cifar" stem is a 3x3 convolution; the "imagenet" stem a 7x7 convolution with stride 2, then a
  3x3 max pool with stride 2. Every convolution is padded on both sides, by (side - 1) / 2, as
  PyTorch does; none has a bias.

  Attributes:
    num_classes: outputs.
    stem: 'cifar' or 'imagenet'.
    width: features of the stem; the four stages have 1, 2, 4 and 8 times as many.
    norm: 'batch' or 'group', as in `normalize`.

  Example:
    >>> import jax
    >>> model, x = ResNet18(num_classes=10), jax.ShapeDtypeStruct((2, 32, 32, 3), float)
    >>> jax.eval_shape(lambda key, x: model.init_with_output(key, x)[0], jax.random.key(0), x).shape
    (2, 10)
  """

  num_classes: int
  stem: Literal["cifar", "imagenet"] = "cifar"
  width: int = 64
  norm: Norm = "batch"

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Computes logits.

    Args:
      x: images (batch, height, width, features) float32. Signals (batch, time, features) or
        (batch, time) are seen as images of height 1, the latter with one feature.
      train: whether batch norm uses and updates the statistics of the batch.
      valid: (batch,) bool, False for padded examples; None if there are none.

    Returns:
      (batch, num_classes) float32.

    Raises:
      ValueError: an unknown stem or norm.
    """
    if x.ndim == 2:
      x = x[..., None]
    if x.ndim == 3:
      x = x[:, None]
    norm = partial(normalize, self.norm, train=train, valid=valid)
    match self.stem:
      case "cifar":
        x = nn.relu(norm(_conv(self.width, 3)(x)))
      case "imagenet":
        x = nn.relu(norm(_conv(self.width, 7, 2)(x)))
        x = max_pool_overlapping(x, 3, 2, 1)
      case _:
        raise ValueError(f"stem must be 'cifar' or 'imagenet', found {self.stem!r}")
    for stage in range(4):
      for block in range(2):
        stride = 2 if stage > 0 and block == 0 else 1
        layer = BasicBlock(self.width * 2**stage, stride, self.norm)
        x = layer(x, train=train, valid=valid)
    x = jnp.mean(x, axis=(1, 2))
    return nn.Dense(self.num_classes)(x)


# For waveforms: (batch, time), seen as images of height 1 with one channel.
SpeechResNet18: Callable[..., ResNet18] = partial(ResNet18, stem="imagenet")


def _conv(features: int, side: int, stride: int = 1, name: str | None = None) -> nn.Conv:
  return nn.Conv(
    features,
    (side, side),
    stride,
    padding=(side - 1) // 2,
    use_bias=False,
    name=name,
  )
