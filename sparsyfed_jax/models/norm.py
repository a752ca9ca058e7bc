"""Normalisation layers: batch norm as PyTorch has it, and group norm."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

Norm = Literal["batch", "group"]


def normalize(kind: Norm, x: jax.Array, *, train: bool, valid: jax.Array | None) -> jax.Array:
  """Adds a normalisation layer to the module whose compact method calls this.

  Group norm (Wu & He, 2018, arXiv 1803.08494) has 32 groups where the channels are a multiple of
  64, else the largest power of two up to 32 that leaves each group an even number of channels, or
  one group. It keeps no statistics.

  Args:
    kind: 'batch' or 'group'.
    x: (batch, ..., features) float32.
    train: whether batch norm normalises with the statistics of this batch and updates its own.
    valid: (batch,) bool, False for padded examples; None if there are none.

  Returns:
    Array like x.

  Raises:
    ValueError: an unknown kind.
  """
  match kind:
    case "batch":
      return BatchNorm()(x, train=train, valid=valid)
    case "group":
      groups = max(math.gcd(64, x.shape[-1]) // 2, 1)
      return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)(x)
    case _:
      raise ValueError(f"norm must be 'batch' or 'group', found {kind!r}")


class BatchNorm(nn.Module):
  """PyTorch's batch norm (Ioffe & Szegedy, 2015, arXiv 1502.03167) over all axes but the last.

  Unlike `flax.linen.BatchNorm` it stores the unbiased variance, n/(n-1) times the biased one that
  normalises, and takes batches without valid examples. Collection "batch_stats": `mean` and `var`,
  (features,) float32.

  Attributes:
    momentum: what the running statistics keep of their old value.
    epsilon: added to the variance.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0], [3.0]])
    >>> variables = BatchNorm().init(jax.random.key(0), x, train=True)
    >>> variables["batch_stats"]["mean"].shape
    (1,)
  """

  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Normalises x.

    Args:
      x: (batch, ..., features) float32.
      train: use the statistics of the batch and update the running ones, whose collection must be
        mutable then; else use the running ones.
      valid: (batch,) bool, False for examples that count for nothing; their outputs mean nothing.
        None if all are valid. The statistics stay as they are where the batch says nothing of
        them: the mean without an entry, the variance with fewer than two.

    Returns:
      Array like x.
    """
    features = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, features)
    bias = self.param("bias", nn.initializers.zeros, features)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
    running_var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)

    def widen(per_feature: jax.Array) -> jax.Array:
      return per_feature.reshape(*[1] * (x.ndim - 1), -1)

    if not train:
      factor = scale * lax.rsqrt(running_var.value + self.epsilon)
      return (x - widen(running_mean.value)) * widen(factor) + widen(bias)

    axes = tuple(range(x.ndim - 1))
    valid = jnp.ones(x.shape[0], bool) if valid is None else valid
    rows = valid.reshape(-1, *[1] * (x.ndim - 1))
    n = jnp.sum(valid, dtype=jnp.float32) * math.prod(x.shape[1:-1])
    mean = jnp.sum(jnp.where(rows, x, 0), axes) / jnp.maximum(n, 1)
    # Padded rows become constants, so that no layer after this one can be upset by them.
    centred = jnp.where(rows, x - widen(mean), 0)
    var = jnp.sum(jnp.square(centred), axes) / jnp.maximum(n, 1)

    if not self.is_initializing():

      def update(running: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * running + (1 - self.momentum) * new

      unbiased = var * (n / jnp.maximum(n - 1, 1))
      running_mean.value = jnp.where(n > 0, update(running_mean.value, mean), running_mean.value)
      running_var.value = jnp.where(n > 1, update(running_var.value, unbiased), running_var.value)
    return centred * widen(scale * lax.rsqrt(var + self.epsilon)) + widen(bias)
