"""The operations inside dense and convolutional layers, to be put into flax modules.

`flax.linen.Dense` takes a `dot_general`, `flax.linen.Conv` a `conv_general_dilated`. A model that
passes both on to its layers can be trained by every method here, unmodified.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.conv import conv_general_dilated
from sparsyfed_jax.ops.backend.dense import dot_general
from sparsyfed_jax.ops.pruned import activation_threshold, prune_residual


class LayerOps(NamedTuple):
  """What the layers of a model compute with; the signatures are those of `jax.lax`."""

  dot_general: Callable[..., jax.Array]
  conv_general_dilated: Callable[..., jax.Array]


PLAIN = LayerOps(dot_general, conv_general_dilated)
# What `PLAIN` computes, without its short cuts: for counting operations.
NATIVE = LayerOps(lax.dot_general, lax.conv_general_dilated)


# The magnitude from which on a layer's input is kept, of the input and the weights.
Threshold: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


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
  return residual_layers(lambda x, w: activation_threshold(x, w, valid, floor), plain)


def residual_layers(threshold: Threshold, plain: LayerOps = PLAIN) -> LayerOps:
  """Makes layers that keep the large entries of their input for the backward pass.

  Args:
    threshold: decides what is large, for each call of a layer.
    plain: the operations to prune.

  Returns:
    Operations with the values of `plain`; only the weight gradient differs.
  """

  def pruned(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def layer_op(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
      return prune_residual(lambda x, w: op(x, w, *args, **kwargs))(lhs, rhs, threshold(lhs, rhs))

    return layer_op

  return LayerOps(pruned(plain.dot_general), pruned(plain.conv_general_dilated))


def cast_layers(ops: LayerOps, dtype: Any) -> LayerOps:
  """Makes layers that compute in another dtype, with parameters and results in their own.

  What the layers keep for the backward pass has the dtype too, and so have gradients on their way;
  all between the layers (norms, losses, updates) is as before.

  Args:
    ops: the operations.
    dtype: such as `jnp.bfloat16`.
  """

  def cast(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def layer_op(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
      result = op(lhs.astype(dtype), rhs.astype(dtype), *args, **kwargs)
      return result.astype(jnp.promote_types(lhs.dtype, rhs.dtype))

    return layer_op

  return LayerOps(cast(ops.dot_general), cast(ops.conv_general_dilated))


def first_found(threshold: Threshold, carry: dict[str, jax.Array], name: str) -> Threshold:
  """Makes a threshold that is found once, in the first batch with weights of 0, and then stays.

  While all weights of a layer are non-zero nothing is pruned, and nothing is remembered, as in
  SparsyFed's release: a threshold of that batch would prune all that follow.

  Args:
    threshold: finds it.
    carry: holds the threshold of each layer, () float32; negative where none is found yet. The
      entry of this layer is replaced while a step is traced, and has to be handed to the next step.
    name: of the layer.
  """

  def found(x: jax.Array, w: jax.Array) -> jax.Array:
    def find() -> jax.Array:
      return threshold(lax.stop_gradient(x), lax.stop_gradient(w)).astype(jnp.float32)

    def find_if_sparse() -> jax.Array:
      return lax.cond(jnp.any(w == 0), find, lambda: carry[name])

    # A client alone pays for the first batch only; clients side by side for every batch.
    carry[name] = lax.cond(carry[name] < 0, find_if_sparse, lambda: carry[name])
    return jnp.maximum(carry[name], 0).astype(x.dtype)

  return found
