"""Makes the operations of layers, `LayerOps`, a rule of `rewrite_layers`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sparsyfed_jax.ops.layers import LayerOps, RowsOp
from sparsyfed_jax.ops.rewrite.following import Product
from sparsyfed_jax.ops.rewrite.running import Rule
from sparsyfed_jax.ops.rows import Unknown


class LayerError(ValueError):
  """A layer whose operation cannot be replaced; the one-line message names it and says why.

  Example:
    >>> from sparsyfed_jax import ops
    >>> raise ops.LayerError("Dense_0: its weights are computed")
    Traceback (most recent call last):
    sparsyfed_jax.ops.rewrite.adapter.LayerError: Dense_0: its weights are computed
  """


def layer_rule(layers: Callable[[str], LayerOps]) -> Rule:
  """Makes the rule that computes with the operations of each layer.

  Args:
    layers: finds the operations of the layer whose parameter has a path.

  Returns:
    A rule for `rewrite_layers`. It raises a `LayerError` where an operation has to know where the
    batch is and nobody does, or keeps something from step to step inside a loop.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> pruned = ops.pruned_layers(valid=jnp.array([True]))
    >>> dense = ops.rewrite_layers(lambda w, x: x @ w, ops.layer_rule(lambda path: pruned))
    >>> x, w = jnp.array([[4.0, -3.0]]), jnp.array([[1.0], [0.0]])
    >>> jax.grad(lambda w: dense(w, x).sum())(w).tolist()
    [[4.0], [0.0]]
  """

  def rule(product: Product, op: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    operation = getattr(layers(product.path), product.kind)
    if isinstance(operation, RowsOp):
      _check(product, operation)
      operation = partial(operation, rows=product.rows)
    if not product.is_swapped:
      return operation(x, w, **product.arguments)
    if product.kind != "dot_general":
      raise LayerError(f"{product.path}: is the input of a {product.kind}, not its kernel")
    return _swapped(operation, product.arguments, x, w)

  return rule


def _check(product: Product, operation: RowsOp) -> None:
  if isinstance(product.rows, Unknown):
    raise LayerError(
      f"{product.path}: which entries of the input of its {product.kind} belong to which example is"
      f" not known after {product.rows.primitive}"
    )
  if operation.keeps and product.inside:
    raise LayerError(
      f"{product.path}: its {product.kind} is inside a {product.inside}, where no threshold can be"
      " kept from one batch to the next"
    )


def _swapped(
  operation: Callable[..., jax.Array], arguments: dict[str, Any], x: jax.Array, w: jax.Array
) -> jax.Array:
  """Computes a product whose first operand is the parameter."""
  contracted, batched = arguments["dimension_numbers"]
  numbers = (tuple(contracted[::-1]), tuple(batched[::-1]))
  y = operation(x, w, **{**arguments, "dimension_numbers": numbers})
  num_batch = len(batched[0])
  num_free = x.ndim - num_batch - len(contracted[0])
  return jnp.moveaxis(y, _range(num_batch, num_free), _range(y.ndim - num_free, num_free))


def _range(start: int, length: int) -> Sequence[int]:
  return tuple(range(start, start + length))
