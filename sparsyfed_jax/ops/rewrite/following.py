"""Follows parameters and examples through a jaxpr, and finds the products of the two."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from sparsyfed_jax.ops.rewrite.labels import LONE, NOTHING, Label, join, sources_of
from sparsyfed_jax.ops.rewrite.shapes import CASTS, ELEMENTWISE, VIEWS, rows_of_result
from sparsyfed_jax.ops.rewrite.versions import (
  Equation,
  Jaxpr,
  Literal,
  jaxprs_in,
  opened,
  scan_counts,
)
from sparsyfed_jax.ops.rows import Rows, Unknown, Where

PRODUCTS = ("dot_general", "conv_general_dilated")
LOOPS = {"scan": "scan", "while": "while_loop", "cond": "cond"}
REMAT = ("remat2", "remat", "checkpoint")
CALLS = ("jit", "pjit", "closed_call", "core_call", *REMAT)
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call")


class Product(NamedTuple):
  """A product of an input and a parameter inside a function: a layer.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> dense = lambda params, x: jnp.tanh(x @ params["w"])
    >>> params = {"w": jnp.ones((3, 2))}
    >>> (product,) = ops.find_layers(dense, params, jnp.ones((4, 3)))
    >>> product.path, product.kind, product.x_shape, product.rows
    ('w', 'dot_general', (4, 3), Rows(axis=0, after=1, size=4))
  """

  leaves: tuple[str, ...]  # the parameter; several where the weights are computed from them
  kind: str  # of lax: dot_general or conv_general_dilated
  arguments: dict[str, Any]  # of the lax function, besides the operands
  is_swapped: bool  # whether the parameter is the first operand
  x_shape: tuple[int, ...]
  w_shape: tuple[int, ...]
  dtype: Any  # of the result
  rows: Where  # where the batch is in the input
  is_trained: bool  # whether the input depends on parameters
  repeats: int = 1  # how often loops around it compute it; 1 for loops of unknown length
  inside: str = ""  # the innermost loop, branch or remat around it
  problem: str = ""  # why its operation cannot be replaced; empty if it can
  is_custom: bool = False  # whether a custom derivative or `custom_vmap` around it is the problem

  @property
  def path(self) -> str:
    """The parameter, or those that its weights are computed from."""
    return ", ".join(self.leaves)


Found: TypeAlias = list[Product]


def follow(jaxpr: Jaxpr, labels: Sequence[Label]) -> tuple[list[Label], Found]:
  """Finds the labels of a jaxpr's results, and the products inside."""
  known: dict[Any, Label] = dict(zip(jaxpr.invars, labels, strict=True))
  found: Found = []
  for equation in jaxpr.eqns:
    outs, inner = follow_equation(equation, [label_of(known, v) for v in equation.invars])
    found += inner
    known.update(zip(equation.outvars, outs, strict=True))
  return [label_of(known, v) for v in jaxpr.outvars], found


def label_of(known: dict[Any, Label], variable: Any) -> Label:
  """Looks a label up; constants have none."""
  return NOTHING if isinstance(variable, Literal) else known.get(variable, NOTHING)


def follow_equation(equation: Equation, labels: list[Label]) -> tuple[list[Label], Found]:
  """Finds the labels of an equation's results, and the products inside."""
  name = equation.primitive.name
  match name:
    case "cond":
      return _follow_cond(equation, labels)
    case "while":
      return _follow_while(equation, labels)
    case "scan":
      return _follow_scan(equation, labels)
    case "optimization_barrier":
      return labels, []
  if name in CALLS or name in CUSTOM:
    (jaxpr, *_) = jaxprs_in(equation)
    outs, found = follow(opened(jaxpr)[0], labels)
    if name in REMAT:
      found = [_within(product, "checkpoint") for product in found]
    if name in CUSTOM:
      found = [_inside_custom(product, name) for product in found]
    return outs, found
  inner = list(jaxprs_in(equation))
  if inner and name not in ELEMENTWISE and not name.startswith(("reduce", "scatter", "cum")):
    return _follow_opaque(equation, labels, inner)
  found = describe(equation, labels) if name in PRODUCTS else []
  return [_result(equation, labels)] * len(equation.outvars), found


def _result(equation: Equation, labels: list[Label]) -> Label:
  name = equation.primitive.name
  return Label(
    labels[0].path if labels and (name in CASTS or name in VIEWS) else None,
    sources_of(labels),
    rows_of_result(equation, [label.rows for label in labels]),
    any(label.is_data for label in labels),
    any(label.is_random for label in labels),
  )


def describe(equation: Equation, labels: list[Label]) -> Found:
  """Describes a product of an input and a parameter; nothing of any other product."""
  left, right = labels
  if left.path is not None and right.path is not None:
    return [_between_parameters(equation, left, right)]
  weights = [label for label in labels if not label.is_data and label.sources]
  direct = [label for label in labels if label.path is not None]
  if len(direct) == 1:
    w = direct[0]
  elif len(weights) == 1 and (left.is_data or right.is_data):
    w = weights[0]
  else:
    return []
  is_swapped = w is left
  x = right if is_swapped else left
  rows = x.rows
  if rows is None and x.is_random and not x.is_data:
    rows = Unknown("random numbers")
  leaves = (w.path,) if w.path is not None else tuple(sorted(w.sources))
  product = _product(equation, leaves, is_swapped, rows, bool(x.sources))
  stack = str(equation.source_info.name_stack)
  if w.path is None:
    return [_refused(product, "its weights are computed from those parameters")]
  if "jvp(" in stack or "transpose(" in stack:
    return [_refused(product, "it lies inside a derivative; rewrite what is differentiated")]
  return [product]


def _product(
  equation: Equation, leaves: tuple[str, ...], is_swapped: bool, rows: Where, is_trained: bool
) -> Product:
  x, w = (variable.aval for variable in equation.invars)
  if is_swapped:
    x, w = w, x
  out = equation.outvars[0].aval
  arguments = {name: value for name, value in equation.params.items() if value is not None}
  if arguments.get("preferred_element_type") == jnp.result_type(x.dtype, w.dtype):
    del arguments["preferred_element_type"]  # what lax takes by itself
  return Product(
    leaves,
    equation.primitive.name,
    arguments,
    is_swapped,
    x.shape,
    w.shape,
    out.dtype,
    rows,
    is_trained,
  )


def _between_parameters(equation: Equation, left: Label, right: Label) -> Product:
  leaves = tuple(sorted({str(left.path), str(right.path)}))
  product = _product(equation, leaves, False, None, True)
  return _refused(product, "both of its operands are parameters")


def _refused(product: Product, problem: str) -> Product:
  return product if product.problem else product._replace(problem=problem)


def _inside_custom(product: Product, name: str) -> Product:
  is_custom = product.is_custom or not product.problem
  return _refused(product, f"it lies inside a {name}")._replace(is_custom=is_custom)


def _within(product: Product, name: str, repeats: int = 1) -> Product:
  return product._replace(inside=product.inside or name, repeats=product.repeats * repeats)


def _follow_opaque(
  equation: Equation, labels: list[Label], inner: list[Any]
) -> tuple[list[Label], Found]:
  """Follows into a primitive that cannot be rebuilt: nothing is known of its results' rows."""
  name = equation.primitive.name
  found: Found = []
  for jaxpr in inner:
    variables = opened(jaxpr)[0].invars
    inside = [label._replace(rows=label.rows and Unknown(name)) for label in labels]
    if len(variables) != len(labels):
      sources = sources_of(labels)
      inside = [Label(None, sources, Unknown(name), True)] * len(variables)
    found += follow(opened(jaxpr)[0], inside)[1]
  label = Label(
    sources=sources_of(labels),
    rows=Unknown(name) if any(label.rows is not None for label in labels) else None,
    is_data=any(label.is_data for label in labels),
    is_random=any(label.is_random for label in labels),
  )
  refused = [_refused(product, f"it lies inside a {name}") for product in found]
  return [label] * len(equation.outvars), refused


def _follow_cond(equation: Equation, labels: list[Label]) -> tuple[list[Label], Found]:
  results = [follow(opened(branch)[0], labels[1:]) for branch in equation.params["branches"]]
  outs = [join(options, "cond") for options in zip(*(outs for outs, _ in results), strict=True)]
  if labels[0].is_data:
    outs = [label._replace(is_data=True) for label in outs]
  return outs, [_within(product, "cond") for _, found in results for product in found]


def while_labels(equation: Equation, labels: list[Label]) -> tuple[list[Label], list[Label]]:
  """Finds the labels inside the condition and inside the body of a while loop."""
  params = equation.params
  num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
  constants = labels[num_cond : num_cond + num_body]
  body = opened(params["body_jaxpr"])[0]
  carry = _fixpoint(
    lambda carry: follow(body, constants + carry)[0], labels[num_cond + num_body :], "while_loop"
  )
  return labels[:num_cond] + carry, constants + carry


def _follow_while(equation: Equation, labels: list[Label]) -> tuple[list[Label], Found]:
  params = equation.params
  in_cond, in_body = while_labels(equation, labels)
  found = follow(opened(params["body_jaxpr"])[0], in_body)[1]
  found += follow(opened(params["cond_jaxpr"])[0], in_cond)[1]
  carry = in_body[params["body_nconsts"] :]
  return carry, [_within(product, "while_loop") for product in found]


def scan_labels(equation: Equation, labels: list[Label]) -> list[Label]:
  """Finds the labels inside the body of a scan."""
  num_consts, num_carry = scan_counts(equation.params)
  constants = labels[:num_consts]
  slices = [_slice_of(label) for label in labels[num_consts + num_carry :]]
  body = opened(equation.params["jaxpr"])[0]
  carry = _fixpoint(
    lambda carry: follow(body, constants + carry + slices)[0][:num_carry],
    labels[num_consts : num_consts + num_carry],
    "scan",
  )
  return constants + carry + slices


def _slice_of(label: Label) -> Label:
  rows = label.rows
  if not isinstance(rows, Rows) or rows == LONE:
    return label
  is_split = rows.axis == 0
  return label._replace(rows=Unknown("scan") if is_split else rows._replace(axis=rows.axis - 1))


def _follow_scan(equation: Equation, labels: list[Label]) -> tuple[list[Label], Found]:
  inside = scan_labels(equation, labels)
  outs, found = follow(opened(equation.params["jaxpr"])[0], inside)
  num_consts, num_carry = scan_counts(equation.params)
  carry = inside[num_consts : num_consts + num_carry]
  stacked = [
    label._replace(
      path=None,
      rows=label.rows._replace(axis=label.rows.axis + 1)
      if isinstance(label.rows, Rows) and label.rows != LONE
      else label.rows,
    )
    for label in outs[num_carry:]
  ]
  repeats = equation.params["length"]
  return carry + stacked, [_within(product, "scan", repeats) for product in found]


def _fixpoint(
  step: Callable[[list[Label]], list[Label]], carry: list[Label], primitive: str
) -> list[Label]:
  """Finds the labels of carried values that hold in every iteration."""
  combine = functools.partial(join, primitive=primitive)
  while True:
    new = [combine(pair) for pair in zip(carry, step(carry), strict=True)]
    if new == carry:
      return carry
    carry = new
