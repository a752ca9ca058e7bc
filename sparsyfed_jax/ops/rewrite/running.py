"""Runs a jaxpr with the operations of some products replaced."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from jax import lax

from sparsyfed_jax.ops.rewrite.following import (
  CALLS,
  CUSTOM,
  PRODUCTS,
  REMAT,
  Product,
  describe,
  follow_equation,
  label_of,
  scan_labels,
  while_labels,
)
from sparsyfed_jax.ops.rewrite.labels import Label
from sparsyfed_jax.ops.rewrite.versions import (
  Equation,
  Jaxpr,
  Literal,
  context_of,
  evaluate,
  jaxprs_in,
  opened,
  scan_counts,
)

# Computes a product: of (product, op, x, w), where op(x, w) is what the function itself computes.
Rule: TypeAlias = Callable[
  [Product, Callable[[jax.Array, jax.Array], jax.Array], jax.Array, jax.Array], jax.Array
]


class How(NamedTuple):
  """What is replaced, by what."""

  rule: Rule
  is_replaced: Callable[[Product], bool]


def run(
  jaxpr: Jaxpr,
  consts: Sequence[Any],
  args: Sequence[Any],
  labels: Sequence[Label],
  how: How,
  inside: str = "",
) -> list[Any]:
  """Evaluates a jaxpr.

  Args:
    jaxpr: open.
    consts: values of its constants.
    args: values of its arguments.
    labels: of its arguments.
    how: to compute products.
    inside: the loop, branch or remat whose body this is.
  """
  values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
  values.update(zip(jaxpr.invars, args, strict=True))
  known: dict[Any, Label] = dict(zip(jaxpr.invars, labels, strict=True))
  last_use = _last_uses(jaxpr)

  def value_of(variable: Any) -> Any:
    return variable.val if isinstance(variable, Literal) else values[variable]

  for number, equation in enumerate(jaxpr.eqns):
    operands = [value_of(variable) for variable in equation.invars]
    got = [label_of(known, variable) for variable in equation.invars]
    outs, found = follow_equation(equation, got)
    if any(map(how.is_replaced, found)):
      results = _rebuilt(equation, operands, got, how, inside)
    else:
      results = evaluate(equation, operands)
    values.update(zip(equation.outvars, results, strict=True))
    known.update(zip(equation.outvars, outs, strict=True))
    for variable in last_use.get(number, ()):
      del values[variable]
  return [value_of(variable) for variable in jaxpr.outvars]


def _last_uses(jaxpr: Jaxpr) -> dict[int, list[Any]]:
  """Lists what is not needed any more after each equation."""
  number_of: dict[Any, int] = {}
  for number, equation in enumerate(jaxpr.eqns):
    number_of |= {v: number for v in equation.invars if not isinstance(v, Literal)}
  for variable in jaxpr.outvars:
    if not isinstance(variable, Literal):
      number_of.pop(variable, None)
  last: dict[int, list[Any]] = {}
  for variable, number in number_of.items():
    last.setdefault(number, []).append(variable)
  return last


def _rebuilt(
  equation: Equation, args: list[Any], labels: list[Label], how: How, inside: str
) -> Sequence[Any]:
  """Computes an equation that has a product inside, by public functions."""
  name, params = equation.primitive.name, equation.params
  if name in PRODUCTS:
    return [_product(equation, args, labels, how, inside)]
  if name in REMAT:
    jaxpr, consts = opened(params["jaxpr"])
    remat = jax.checkpoint(
      lambda *args: run(jaxpr, consts, args, labels, how, inside or "checkpoint"),
      prevent_cse=params["prevent_cse"],
      policy=params["policy"],
    )
    return remat(*args)
  if name in CALLS or name in CUSTOM:
    (called, *_) = jaxprs_in(equation)
    return run(*opened(called), args, labels, how, inside)
  if name == "cond":
    branches = [
      lambda *args, branch=branch: run(*opened(branch), args, labels[1:], how, inside or "cond")
      for branch in params["branches"]
    ]
    return lax.switch(args[0], branches, *args[1:])
  return (
    _while(equation, args, labels, how) if name == "while" else _scan(equation, args, labels, how)
  )


def _product(
  equation: Equation, args: list[Any], labels: list[Label], how: How, inside: str
) -> jax.Array:
  (product,) = describe(equation, labels)
  product = product._replace(inside=inside)
  function = getattr(lax, product.kind)
  given = {name: value for name, value in equation.params.items() if value is not None}

  def op(x: jax.Array, w: jax.Array) -> jax.Array:
    operands = (w, x) if product.is_swapped else (x, w)
    return function(*operands, **given)

  x, w = reversed(args) if product.is_swapped else args
  stack = str(equation.source_info.name_stack)
  with jax.named_scope(stack) if stack else contextlib.nullcontext(), context_of(equation):
    return how.rule(product, op, x, w)


def _while(equation: Equation, args: list[Any], labels: list[Label], how: How) -> Sequence[Any]:
  params = equation.params
  num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
  of_cond, of_body = args[:num_cond], args[num_cond : num_cond + num_body]
  in_cond, in_body = while_labels(equation, labels)
  cond, body = opened(params["cond_jaxpr"]), opened(params["body_jaxpr"])
  return lax.while_loop(
    lambda carry: run(*cond, [*of_cond, *carry], in_cond, how, "while_loop")[0],
    lambda carry: run(*body, [*of_body, *carry], in_body, how, "while_loop"),
    list(args[num_cond + num_body :]),
  )


def _scan(equation: Equation, args: list[Any], labels: list[Label], how: How) -> Sequence[Any]:
  params = equation.params
  num_consts, num_carry = scan_counts(params)
  inside, body = scan_labels(equation, labels), opened(params["jaxpr"])
  end = num_consts + num_carry

  def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
    outs = run(*body, [*args[:num_consts], *carry, *xs], inside, how, "scan")
    return outs[:num_carry], outs[num_carry:]

  carry, ys = lax.scan(
    step,
    list(args[num_consts:end]),
    list(args[end:]),
    length=params["length"],
    reverse=params["reverse"],
    unroll=params["unroll"],
  )
  return [*carry, *ys]
