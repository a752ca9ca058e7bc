"""The record of a method: all that programs know of it, from flags to FLOPs.

A method's file ends in a `Method`. Its knobs, annotated fields of its `Hyper` and `Options`, become
flags with help, ranges and refusals, axes of sweeps, arguments of the factory and rows of tables.
"""

import functools
import math
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax.numpy as jnp

from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.metrics.flops import LayerShares, dense_shares
from sparsyfed_jax.trees import is_pattern


class Knob(NamedTuple):
  """A number, or anything without a rule, that a user may set."""

  help: str
  low: float = -math.inf  # least value that is right
  high: float = math.inf
  above: float = -math.inf  # the value must be larger
  below: float = math.inf
  default: Callable[[Any], Any] | None = None  # of all settings, where the value is None


class Choice(NamedTuple):
  """A name out of a list, which chooses the form of a method."""

  help: str
  known: tuple[str, ...]


class Pattern(NamedTuple):
  """A regular expression over names of layers; empty for none."""

  help: str


Rule = Knob | Choice | Pattern


def refusal(rule: Rule, value: Any) -> str:
  """Says what would be right in the place of a value.

  Returns:
    Words such as "at least 1", which follow "must be"; "" for a value that is right.

  Example:
    >>> refusal(Knob("share of the weights", low=0, below=1), 1.5)
    'at least 0 and below 1'
  """
  if isinstance(rule, Choice):
    return "" if value in rule.known else "one of " + ", ".join(rule.known)
  if isinstance(rule, Pattern):
    return "" if is_pattern(value) else "a regular expression"
  if isinstance(value, bool) or not isinstance(value, int | float) or _is_within(rule, value):
    return ""
  if rule.low > -math.inf and rule.high < math.inf:
    return f"between {rule.low} and {rule.high}"
  parts = [
    f"at least {rule.low}" if rule.low > -math.inf else "",
    f"above {rule.above}" if rule.above not in (-math.inf, 0) else "",
    "positive" if rule.above == 0 else "",
    f"at most {rule.high}" if rule.high < math.inf else "",
    f"below {rule.below}" if rule.below < math.inf else "",
    "finite" if isinstance(value, float) and min(rule.high, rule.below) == math.inf else "",
  ]
  return " and ".join(part for part in parts if part)


def _is_within(rule: Knob, value: float) -> bool:
  is_inside = rule.low <= value <= rule.high and rule.above < value < rule.below
  return is_inside and math.isfinite(value)


class Setting(NamedTuple):
  """A field of a method's `Hyper` or `Options` as the rest of a program sees it."""

  name: str  # of the flag: `feddst_drop_rate`
  field: str  # `drop_rate`
  type: Any
  default: Any
  rule: Rule
  is_number: bool  # of `Hyper`: a traced number, which changes no program


class Nothing(NamedTuple):
  """No numbers, or no forms."""


class Method(NamedTuple):
  """A federated method as programs see it."""

  name: str  # the value of --algorithm
  title: str  # in tables and pictures
  make: Callable[..., Algorithm]  # (setup, options) -> Algorithm; (setup) where it has one form
  hyper: type = Nothing  # NamedTuple of numbers, `Annotated[float, Knob(...)]`, with defaults
  options: type = Nothing  # NamedTuple of forms, `Annotated[str, Choice(...)]`, with defaults
  reads: tuple[str, ...] = ()  # fields of the common `Hyper` that not every method reads
  takes_densities: bool = False  # whether clients may differ in density
  needs_plain_sgd: bool = False  # whether clients must train without momentum and the like
  # (options, hyper, name of a layer, whether it is the first, its density as the client starts,
  # density of the round) -> what the client computes of the layer
  layer_shares: Callable[[Any, Any, str, bool, float, float], LayerShares] = dense_shares
  # (hyper, sparsity) -> (field, what would be right) of a number that contradicts others, or None
  check: Callable[[Any, float], tuple[str, str] | None] = lambda hyper, sparsity: None
  prefix: str | None = None  # of its flags; by default `NAME_`

  def algorithm(self, setup: Setup, options: Any = None) -> Algorithm:
    """Makes the pure functions of one of its forms, by default the first.

    Raises:
      ValueError: an option is not known, or the model cannot be trained by the method.
    """
    if self.options is Nothing:
      return self.make(setup)
    return self.make(setup, self.options() if options is None else options)

  def settings(self) -> tuple[Setting, ...]:
    """Lists its knobs, numbers first.

    Raises:
      ValueError: a field of `Hyper` or `Options` has no default or no rule.
    """
    return _settings(self)


@functools.cache
def _settings(method: Method) -> tuple[Setting, ...]:
  prefix = f"{method.name}_" if method.prefix is None else method.prefix
  return tuple(
    Setting(prefix + field, field, kind, default, rule, holder is method.hyper)
    for holder in (method.hyper, method.options)
    for field, kind, default, rule in _fields(holder)
  )


@functools.cache
def _fields(holder: Any) -> tuple[tuple[str, Any, Any, Rule], ...]:
  hints = typing.get_type_hints(holder, include_extras=True)
  found = []
  for field in holder._fields:
    kind, *rules = typing.get_args(hints[field]) or (hints[field],)
    is_ruled = len(rules) == 1 and isinstance(rules[0], Rule)
    if field not in holder._field_defaults or not is_ruled:
      raise ValueError(
        f"{holder.__module__}.{holder.__name__}.{field}: must be written as"
        " Annotated[type, Knob(...), Choice(...) or Pattern(...)] = default"
      )
    found.append((field, kind, holder._field_defaults[field], rules[0]))
  return tuple(found)


def check_options(options: Any) -> None:
  """Checks the forms that a factory is asked for.

  Raises:
    ValueError: naming the field, its value and what is known.
  """
  for field, _, _, rule in _fields(cast(Any, type(options))):
    value = getattr(options, field)
    right = refusal(rule, value)
    if right:
      raise ValueError(f"{field}={value!r}: must be {right}")


def with_own(hyper: Hyper, own: Any) -> Hyper:
  """Puts a method's numbers into the common ones, as () float32."""
  return hyper._replace(own=type(own)(*map(jnp.float32, own)))
