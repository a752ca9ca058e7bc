"""A small convolutional network."""

import jax
from flax import linen as nn

from sparsyfed_jax.ops import max_pool_of_relu, relu


class CNN(nn.Module):
  """3x3 convolutions without padding, one 2x2 max pool, one hidden dense layer, ReLU throughout.

  Attributes:
    num_classes: outputs.
    channels: features of each convolution.
    hidden: width of the dense layer.

  Example:
    >>> import jax
    >>> model, x = CNN(num_classes=10), jax.ShapeDtypeStruct((2, 28, 28, 1), float)
    >>> jax.eval_shape(lambda key, x: model.init_with_output(key, x)[0], jax.random.key(0), x).shape
    (2, 10)
  """

  num_classes: int
  channels: tuple[int, ...] = (32, 64)
  hidden: int = 128

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Computes logits.

    Args:
      x: (batch, height, width, features) float32; sides of at least 2 * len(channels) + 2.
      train: unused here; models with batch norm or dropout need it.
      valid: (batch,) bool, unused here; models with batch norm need it.

    Returns:
      (batch, num_classes) float32.
    """
    *channels, last = self.channels
    for features in channels:
      x = relu(nn.Conv(features, (3, 3), padding="VALID")(x))
    x = max_pool_of_relu(nn.Conv(last, (3, 3), padding="VALID")(x), 2).reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(self.hidden)(x))
    return nn.Dense(self.num_classes)(x)
