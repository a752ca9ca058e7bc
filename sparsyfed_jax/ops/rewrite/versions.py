"""What differs between the versions of jax that are allowed."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax
from jax.extend import core

Equation: TypeAlias = Any  # jax.extend.core.JaxprEqn
Jaxpr: TypeAlias = Any  # jax.extend.core.Jaxpr
Literal = core.Literal
_NO_DEBUG_INFO = core.DebugInfo("rewrite_layers", "rewrite_layers", None, None)


def opened(jaxpr: Any) -> tuple[Jaxpr, Sequence[Any]]:
  """Takes a jaxpr and its constants apart; jax 0.12 has one class for open and closed ones."""
  if isinstance(jaxpr, core.ClosedJaxpr):
    return jaxpr.jaxpr, jaxpr.consts
  return jaxpr, ()


def jaxprs_in(equation: Equation) -> Iterator[Any]:
  """Finds the jaxprs among the parameters of an equation."""
  kinds = core.Jaxpr, core.ClosedJaxpr
  for value in equation.params.values():
    entries = value if isinstance(value, tuple | list) else (value,)
    yield from (entry for entry in entries if isinstance(entry, kinds))


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
  """Counts constants and carried values of a scan; jax 0.11 has them in trees."""
  if "num_carry" in params:
    return params["num_consts"], params["num_carry"]
  consts, carry, _ = params["ft_in"].unpack()
  return len(consts), len(carry)


def context_of(equation: Equation) -> contextlib.AbstractContextManager[Any]:
  """Returns a context that restores the settings of jax under which an equation was traced.

  It does nothing if they are in force already: jax's caches distinguish settings that were entered
  from equal defaults, so all that is called inside would be traced again.
  """
  now = core.new_jaxpr_eqn([], [], equation.primitive, {}, core.no_effects).ctx
  return contextlib.nullcontext() if equation.ctx == now else equation.ctx.manager


def evaluate(equation: Equation, args: Sequence[Any]) -> list[Any]:
  """Evaluates an equation as it is, custom derivatives and effects included."""
  values = {
    variable: value
    for variable, value in zip(equation.invars, args, strict=True)
    if not isinstance(variable, Literal)
  }
  alone = core.Jaxpr(
    (), list(values), equation.outvars, [equation], equation.effects, _NO_DEBUG_INFO
  )
  return jax.core.eval_jaxpr(alone, (), *values.values())
