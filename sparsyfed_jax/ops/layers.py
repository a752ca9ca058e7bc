"""The operations inside dense and convolutional layers, to be put into flax modules.

`flax.linen.Dense` takes a `dot_general`, `flax.linen.Conv` a `conv_general_dilated`. A model that
passes both on to its layers can be trained by every method here, unmodified.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from sparsyfed_jax.ops.conv import conv_general_dilated
from sparsyfed_jax.ops.pruned import activation_threshold, prune_residual


class LayerOps(NamedTuple):
  """What the layers of a model compute with; the signatures are those of `jax.lax`."""

  dot_general: Callable[..., jax.Array]
  conv_general_dilated: Callable[..., jax.Array]


PLAIN = LayerOps(lax.dot_general, conv_general_dilated)


def pruned_layers(
  valid: jax.Array, floor: jax.Array | float = 0.0, plain: LayerOps = PLAIN
) -> LayerOps:
  """Makes layers that prune their activations for the backward pass to their weights' density.

  Thresholds are exact and taken anew for every batch.

  Args:
    valid: (batch,) bool, False for padded examples.
    floor: () least share of activations to keep.
    plain: the operations to prune.

  Returns:
    Operations with the values of `plain`; only the weight gradient differs.
  """

  def pruned(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def layer_op(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
      threshold = activation_threshold(lhs, rhs, valid, floor)
      return prune_residual(lambda x, w: op(x, w, *args, **kwargs))(lhs, rhs, threshold)

    return layer_op

  return LayerOps(pruned(plain.dot_general), pruned(plain.conv_general_dilated))
