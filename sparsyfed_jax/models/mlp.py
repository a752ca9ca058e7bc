"""A multilayer perceptron."""

import jax
from flax import linen as nn


class MLP(nn.Module):
  """Dense layers with ReLU between them, on flattened examples.

  Attributes:
    num_classes: outputs.
    hidden: width of each hidden layer.

  Example:
    >>> import jax
    >>> model = MLP(num_classes=10, hidden=(32,))
    >>> variables = model.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1)))
    >>> variables["params"]["Dense_0"]["kernel"].shape
    (64, 32)
  """

  num_classes: int
  hidden: tuple[int, ...] = (128, 64)

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Computes logits.

    Args:
      x: (batch, *shape) float32.
      train: unused here; models with batch norm or dropout need it.
      valid: (batch,) bool, unused here; models with batch norm need it.

    Returns:
      (batch, num_classes) float32.
    """
    x = x.reshape(x.shape[0], -1)
    for width in self.hidden:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.num_classes)(x)
