"""The operations inside dense and convolutional layers.

`rewrite_layers` makes any function compute with them, and flax's layers take them as arguments:
`flax.linen.Dense` a `dot_general`, `flax.linen.Conv` a `conv_general_dilated`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.conv import conv_general_dilated
from sparsyfed_jax.ops.backend.dense import dot_general
from sparsyfed_jax.ops.pruned import activation_threshold, prune_residual
from sparsyfed_jax.ops.rows import FIRST_AXIS, Where


class LayerOps(NamedTuple):
  """The operations of a model's layers; the signatures are those of `jax.lax`.

  Example:
    >>> from flax import linen as nn
    >>> layer = nn.Dense(3, dot_general=PLAIN.dot_general)
  """

  dot_general: Callable[..., jax.Array]
  conv_general_dilated: Callable[..., jax.Array]


# The operations of ordinary layers, tuned to the platform.
PLAIN = LayerOps(dot_general, conv_general_dilated)
# Equal to `PLAIN` to rounding, but never tuned: for counting operations.
NATIVE = LayerOps(lax.dot_general, lax.conv_general_dilated)


# What the layer of a name ("BasicBlock_0/Conv_1") computes with.
Layers: TypeAlias = Callable[[str], LayerOps]
# The magnitude from which on a layer's input is kept: of (input, weights, rows=...), where `rows`
# tells where the batch is in the input.
Threshold: TypeAlias = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class RowsOp:
  """An operation of a layer that has to know where the batch is in the layer's input.

  Called like the operation of `jax.lax` that it replaces, and with `rows=` besides; flax's layers
  do not pass it, and have the batch on the first axis. `rewrite_layers` passes it,
  and `cast_layers` passes `weights=` to an operation that `is_by_weights`.

  Example:
    >>> import jax.numpy as jnp
    >>> from jax import lax
    >>> op = RowsOp(lambda rows, lhs, rhs, *args: (rows.axis, lax.dot_general(lhs, rhs, *args)))
    >>> op(jnp.ones((1, 2)), jnp.ones((2, 1)), (((1,), (0,)), ((), ())))[0]
    0
  """

  run: Callable[..., jax.Array]  # run(rows, lhs, rhs, ...)
  keeps: bool = False  # whether it keeps something from step to step, which loops do not allow
  is_by_weights: bool = False  # whether it takes `weights=`, the rhs as it was before a cast

  def __call__(self, *args: Any, rows: Where = FIRST_AXIS, **kwargs: Any) -> jax.Array:
    """Computes the operation on (lhs, rhs, ...)."""
    return self.run(rows, *args, **kwargs)


def pruned_layers(
  valid: jax.Array, floor: jax.Array | float = 0.0, plain: LayerOps = PLAIN
) -> LayerOps:
  """Makes layers that prune their activations for the backward pass to their weights' density.

  The layers of SparsyFed (arXiv 2504.05153). Thresholds are exact and found for every batch.

  Args:
    valid: (batch,) bool, False for padded examples.
    floor: () least share of activations to keep.
    plain: the operations to prune.

  Returns:
    Operations with the values of `plain`; only the weight gradient differs.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> layers = ops.pruned_layers(valid=jnp.array([True]))
    >>> x, w = jnp.array([[4.0, -3.0]]), jnp.array([[1.0], [0.0]])
    >>> numbers = (((1,), (0,)), ((), ()))
    >>> jax.grad(lambda w: layers.dot_general(x, w, numbers).sum())(w).tolist()
    [[4.0], [0.0]]
  """
  return residual_layers(partial(activation_threshold, valid=valid, floor=floor), plain)


def residual_layers(threshold: Threshold, plain: LayerOps = PLAIN) -> LayerOps:
  """Makes layers that keep the large entries of their input for the backward pass.

  Args:
    threshold: of a layer's input and weights, and of where the batch is in the input (`rows=`), ()
      array of the input's dtype.
    plain: the operations to prune.

  Returns:
    Operations with the values of `plain`; only the weight gradient differs.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> layers = ops.residual_layers(lambda x, w, rows: jnp.array(2.0))
    >>> x, w, numbers = jnp.array([[1.0, -3.0]]), jnp.ones((2, 1)), (((1,), (0,)), ((), ()))
    >>> jax.grad(lambda w: layers.dot_general(x, w, numbers).sum())(w).tolist()
    [[0.0], [-3.0]]
  """

  def pruned(op: Callable[..., jax.Array]) -> RowsOp:
    def run(
      rows: Where,
      lhs: jax.Array,
      rhs: jax.Array,
      *args: Any,
      weights: jax.Array | None = None,
      **kwargs: Any,
    ) -> jax.Array:
      found = threshold(lhs, rhs if weights is None else weights, rows=rows)
      return prune_residual(lambda x, w: op(x, w, *args, **kwargs))(lhs, rhs, found)

    return RowsOp(run, keeps=isinstance(threshold, FirstFound), is_by_weights=True)

  return LayerOps(pruned(plain.dot_general), pruned(plain.conv_general_dilated))


def cast_layers(ops: LayerOps, dtype: Any) -> LayerOps:
  """Makes layers that compute in another dtype and keep the dtypes of parameters and results.

  Residuals and gradients inside the layers have the dtype too; everything between the layers
  (norms, losses, updates) is unchanged. Layers that prune to the density of their weights count
  them before the cast.

  Args:
    ops: the operations.
    dtype: such as `jnp.bfloat16`.

  Returns:
    Operations on arrays of any float dtype.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> layers = ops.cast_layers(ops.PLAIN, jnp.bfloat16)
    >>> y = layers.dot_general(jnp.full((1, 1), 1.001), jnp.ones((1, 1)), (((1,), (0,)), ((), ())))
    >>> y.item(), y.dtype.name
    (1.0, 'float32')
  """

  def cast(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def layer_op(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
      result = op(lhs.astype(dtype), rhs.astype(dtype), *args, **kwargs)
      return result.astype(jnp.promote_types(lhs.dtype, rhs.dtype))

    if not isinstance(op, RowsOp):
      return layer_op

    def run(rows: Where, lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
      if op.is_by_weights:
        kwargs.setdefault("weights", rhs)
      return layer_op(lhs, rhs, *args, rows=rows, **kwargs)

    return dataclasses.replace(op, run=run)

  return LayerOps(cast(ops.dot_general), cast(ops.conv_general_dilated))


@dataclasses.dataclass(frozen=True)
class FirstFound:
  """A threshold that is found once, as `first_found` makes it.

  Example:
    >>> import jax.numpy as jnp
    >>> carry = {"Dense_0": jnp.float32(3)}
    >>> largest = FirstFound(lambda x, w, rows: jnp.max(jnp.abs(x)), carry, "Dense_0")
    >>> float(largest(jnp.array([-2.0]), jnp.array([1.0, 0.0])))
    3.0
  """

  threshold: Threshold
  carry: dict[str, jax.Array]
  name: str

  def __call__(self, x: jax.Array, w: jax.Array, rows: Where = FIRST_AXIS) -> jax.Array:
    """Finds the threshold, or takes that which was found, and keeps it in the carry."""
    before = self.carry[self.name]

    def find() -> jax.Array:
      found = self.threshold(lax.stop_gradient(x), lax.stop_gradient(w), rows=rows)
      return found.astype(jnp.float32)

    def find_if_sparse() -> jax.Array:
      return lax.cond(jnp.any(w == 0), find, lambda: before)

    # A single client searches in its first batch only; vmapped clients search in every batch.
    now = lax.cond(before < 0, find_if_sparse, lambda: before)
    self.carry[self.name] = now
    return jnp.maximum(now, 0).astype(x.dtype)


def first_found(threshold: Threshold, carry: dict[str, jax.Array], name: str) -> FirstFound:
  """Makes a threshold that is found once, in the first batch with weights of 0, and then stays.

  While all weights of a layer are non-zero, nothing is pruned and no threshold is stored, as in
  SparsyFed's release: the threshold of such a batch would prune all later ones.

  Args:
    threshold: finds it.
    carry: the threshold of each layer, () float32; negative where none is found yet. The entry of
      this layer is replaced while a step is traced, and has to be passed to the next step.
    name: of the layer.

  Returns:
    A threshold for `residual_layers`. What a loop, a branch or `jax.checkpoint` repeats cannot
    replace an entry of the carry: `rewrite_layers` refuses a layer inside one.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> carry = {"Dense_0": jnp.float32(-1)}
    >>> largest = ops.first_found(lambda x, w, rows: jnp.max(jnp.abs(x)), carry, "Dense_0")
    >>> w = jnp.array([1.0, 0.0])
    >>> float(largest(jnp.array([-2.0]), w)), float(largest(jnp.array([5.0]), w))
    (2.0, 2.0)
  """
  return FirstFound(threshold, carry, name)
