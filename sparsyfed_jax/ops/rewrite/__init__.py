"""The layers of any function: found, and computed in another way.

A function of parameters and data is traced to a jaxpr. Each value in it has a label: the one
parameter that it is a view of, whether it depends on the examples, and where the batch is in it. A
product of an input and such a view is a layer. `rewrite_layers` evaluates all else as it stands,
custom derivatives, keys and references included, and rebuilds what is around a layer (loops,
branches, `jax.checkpoint`) by public functions of jax.

It rewrites what is to be differentiated, and never a derivative.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax

from sparsyfed_jax.ops.rewrite import following, labels, running
from sparsyfed_jax.ops.rewrite.adapter import LayerError
from sparsyfed_jax.ops.rewrite.following import Product
from sparsyfed_jax.ops.rewrite.running import Rule
from sparsyfed_jax.ops.rewrite.versions import opened

__all__ = ["Survey", "survey"]

Custom = Literal["refuse", "keep", "replace"]


def rewrite_layers(
  fn: Callable[..., Any],
  rule: Rule,
  batch_axes: Any = 0,
  layers: Sequence[str] | None = None,
  custom: Custom = "refuse",
) -> Callable[..., Any]:
  """Makes a function whose products with parameters are computed by a rule.

  Args:
    fn: of `(params, *args)`, pytrees of arrays; anything that jax can trace.
    rule: of (product, op, x, w): the product's result, where op(x, w) is what `fn` computes itself.
    batch_axes: the axis of the batch in the arrays of `args`: one for all, or a prefix of the tuple
      `args`; None in what holds no examples, such as keys and statistics.
    layers: the paths of parameters whose products are replaced; None for all that can be. Each has
      to be found.
    custom: what becomes of products inside custom derivatives and `custom_vmap`: "refuse" is an
      error, "keep" leaves them as they are, "replace" drops the custom derivative for the rule's.

  Returns:
    A function like `fn`. When called, it raises a `LayerError` if one of `layers` cannot be
    replaced, naming it and the reason, such as weights that are computed from parameters.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> dense = lambda params, x: jnp.tanh(x @ params["w"])
    >>> nothing = ops.rewrite_layers(dense, lambda product, op, x, w: 0 * op(x, w))
    >>> nothing({"w": jnp.eye(2)}, jnp.array([[1.0, 2.0]])).tolist()
    [[0.0, 0.0]]
  """

  def rewritten(params: Any, *args: Any) -> Any:
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(params, *args)
    marks = labels.of_arguments(params, args, _spread(batch_axes, args))
    seen: set[str] = set()
    how = running.How(rule, _chooser(layers, custom, seen))
    results = running.run(*opened(closed), jax.tree.leaves((params, args)), marks, how)
    for path in layers or ():
      if path not in seen:
        raise LayerError(f"{path}: no product uses it")
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return rewritten


def find_layers(
  fn: Callable[..., Any], params: Any, *args: Any, batch_axes: Any = 0
) -> tuple[Product, ...]:
  """Finds the products with parameters inside a function, in the order of computing.

  Args:
    fn: as in `rewrite_layers`.
    params: pytree of arrays or of `jax.ShapeDtypeStruct`.
    args: pytrees of the same.
    batch_axes: as in `rewrite_layers`.

  Returns:
    The products; those that `rewrite_layers` cannot replace say why in `problem`.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> masked = lambda params, x: x @ (params["w"] * params["mask"])
    >>> params = {"w": jnp.ones((3, 2)), "mask": jnp.ones((3, 2))}
    >>> (product,) = ops.find_layers(masked, params, jnp.ones((4, 3)))
    >>> product.leaves, product.problem
    (('mask', 'w'), 'its weights are computed from those parameters')
  """
  return survey(fn, params, *args, batch_axes=batch_axes).products


class Survey(NamedTuple):
  """What following a function's parameters finds.

  Example:
    >>> Survey(products=(), unused=("w",), outputs=None).unused
    ('w',)
  """

  products: tuple[Product, ...]
  unused: tuple[str, ...]  # the parameters on which no result depends
  outputs: Any  # the results' shapes and dtypes


def survey(fn: Callable[..., Any], params: Any, *args: Any, batch_axes: Any = 0) -> Survey:
  """Finds the layers of a function as `find_layers` does, and the parameters that it does not use.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones((3, 2)), "other": jnp.ones(2)}
    >>> survey(lambda params, x: x @ params["w"], params, jnp.ones((4, 3))).unused
    ('other',)
  """
  closed, outputs = jax.make_jaxpr(fn, return_shape=True)(params, *args)
  marks = labels.of_arguments(params, args, _spread(batch_axes, args))
  results, found = following.follow(opened(closed)[0], marks)
  own = [mark.path for mark in marks if mark.path is not None]
  used = labels.sources_of(results)
  return Survey(tuple(found), tuple(path for path in own if path not in used), outputs)


def _spread(batch_axes: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
  return batch_axes if isinstance(batch_axes, tuple) else (batch_axes,) * len(args)


def _chooser(
  layers: Sequence[str] | None, custom: Custom, seen: set[str]
) -> Callable[[Product], bool]:
  """Makes the test of which products are replaced; it raises LayerError where one cannot be.

  Args:
    layers: as in `rewrite_layers`.
    custom: as in `rewrite_layers`.
    seen: to which the parameters of products are added that the test is given.
  """

  def is_replaced(product: Product) -> bool:
    if layers is not None and set(layers).isdisjoint(product.leaves):
      return False
    seen.update(product.leaves)
    if product.problem and (custom == "refuse" or not product.is_custom):
      raise LayerError(f"{product.path}: {product.problem}")
    return not product.problem or custom == "replace"

  return is_replaced
