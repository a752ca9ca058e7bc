"""Rules of arguments: what each is, which values are right, and the refusal of the others.

An argument or a field is written `name: Annotated[type, Knob(...)] = default`. Flags, ranges,
refusals and docstrings follow from that one line.
"""

import functools
import inspect
import math
import numbers
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, NamedTuple, TypeVar, cast

from sparsyfed_jax.trees import is_pattern

_Fn = TypeVar("_Fn", bound=Callable[..., Any])
_NOUNS = {float: "a number", int: "a whole number", str: "a string", bool: "True or False"}
_WIDTH = 100  # of the lines of a docstring


class Knob(NamedTuple):
  """A number, or anything without a rule, that a user may set.

  Example:
    >>> from typing import Annotated, NamedTuple
    >>> class Hyper(NamedTuple):
    ...   rate: Annotated[float, Knob("of something", low=0, high=1)] = 0.5
    >>> [(one.name, one.default, one.rule.high) for one in arguments(Hyper)]
    [('rate', 0.5, 1)]
  """

  help: str
  low: float = -math.inf  # least value that is right
  high: float = math.inf
  above: float = -math.inf  # the value must be larger
  below: float = math.inf
  default: Callable[[Any], Any] | None = None  # of all settings, where the value is None


class Choice(NamedTuple):
  """A name out of a list, which chooses the form of a method.

  Example:
    >>> refusal(Choice("of the mask", ("random", "saliency")), "best")
    'one of random, saliency'
  """

  help: str
  known: tuple[str, ...]


class Pattern(NamedTuple):
  """A regular expression over names of layers; empty for none.

  Example:
    >>> refusal(Pattern("layers that stay dense"), "Dense_[0")
    'a regular expression'
  """

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
    return "" if value in rule.known else _words(rule)
  if isinstance(rule, Pattern):
    return "" if is_pattern(value) else _words(rule)
  if isinstance(value, bool) or not isinstance(value, int | float) or _is_within(rule, value):
    return ""
  is_open = isinstance(value, float) and min(rule.high, rule.below) == math.inf
  return " and ".join(filter(None, [_words(rule), "finite" if is_open else ""]))


def _words(rule: Rule) -> str:
  """Describes the values that are right; "" if all are."""
  if isinstance(rule, Choice):
    return "one of " + ", ".join(rule.known)
  if isinstance(rule, Pattern):
    return "a regular expression"
  if rule.low > -math.inf and rule.high < math.inf:
    return f"between {rule.low} and {rule.high}"
  parts = [
    f"at least {rule.low}" if rule.low > -math.inf else "",
    f"above {rule.above}" if rule.above not in (-math.inf, 0) else "",
    "positive" if rule.above == 0 else "",
    f"at most {rule.high}" if rule.high < math.inf else "",
    f"below {rule.below}" if rule.below < math.inf else "",
  ]
  return " and ".join(filter(None, parts))


def _is_within(rule: Knob, value: float) -> bool:
  is_inside = rule.low <= value <= rule.high and rule.above < value < rule.below
  return is_inside and math.isfinite(value)


class Argument(NamedTuple):
  """An argument that has a rule."""

  name: str
  type: Any
  default: Any
  rule: Rule

  def refuse(self, value: Any) -> None:
    """Raises a ValueError that names argument, value and what is right, unless it is right."""
    kinds = typing.get_args(self.type) or (self.type,)
    if value is None and NoneType in kinds:
      return
    right = refusal(self.rule, value.item() if hasattr(value, "item") else value)
    if not any(_is_instance(value, kind) for kind in kinds):
      right = right or _NOUNS[kinds[0]]
    if right:
      raise ValueError(f"{self.name}={value!r}: must be {right}")

  def describe(self) -> str:
    """Makes its entry in the Args of a docstring."""
    kind = (typing.get_args(self.type) or (self.type,))[0].__name__
    words = "" if isinstance(self.rule, Pattern) else _words(self.rule)
    said = ", ".join(filter(None, [kind, words]))
    text = f"{self.name} ({said}): {without_dashes(self.rule.help)}."
    return textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")


def arguments(holder: Any) -> tuple[Argument, ...]:
  """Lists the arguments of a function, or the fields of a NamedTuple, that have rules."""
  hints = typing.get_type_hints(holder, include_extras=True)
  found = []
  for name, parameter in inspect.signature(holder).parameters.items():
    kind, *rules = typing.get_args(hints[name]) or (hints[name],)
    if len(rules) == 1 and isinstance(rules[0], Rule):
      found.append(Argument(name, kind, parameter.default, rules[0]))
  return tuple(found)


def checked(fn: _Fn) -> _Fn:
  """Makes a function refuse arguments that break their rules, and describe them in its docstring.

  Args:
    fn: of which some arguments are `Annotated` with a rule; the others are listed in its
      docstring, under Args.

  Raises:
    ValueError: of the function that is returned, naming the argument, its value and what is right.

  Example:
    >>> from typing import Annotated
    >>> @checked
    ... def half(share: Annotated[float, Knob("to halve", low=0)]) -> float:
    ...   return share / 2
    >>> half(-1.0)
    Traceback (most recent call last):
    ValueError: share=-1.0: must be at least 0 and finite
  """
  listed, signature = arguments(fn), inspect.signature(fn)

  @functools.wraps(fn)
  def call(*args: Any, **kwargs: Any) -> Any:
    bound = signature.bind(*args, **kwargs).arguments
    refuse({one: bound[one.name] for one in listed if one.name in bound})
    return fn(*args, **kwargs)

  hints = typing.get_type_hints(fn)  # without the rules, which the docstring has
  plain = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
  documented = cast(Any, call)
  del documented.__wrapped__  # whose docstring and signature are not those of the result
  documented.__signature__ = signature.replace(parameters=plain)
  documented.__doc__ = with_arguments(inspect.getdoc(fn) or "", listed)
  return documented


def refuse(values: Mapping[Argument, Any]) -> None:
  """Raises a ValueError of one line for the first value that breaks the rule of its argument."""
  for argument, value in values.items():
    argument.refuse(value)


def with_arguments(doc: str, listed: Iterable[Argument]) -> str:
  """Adds arguments to a docstring, at the end of its Args, or before its next section."""
  entries = "\n".join(argument.describe() for argument in listed)
  head, section, rest = doc.partition("\n\nArgs:\n")
  if section:
    own, gap, others = rest.partition("\n\n")
    return f"{head}{section}{own}\n{entries}{gap}{others}"
  if not entries:
    return doc
  place = re.search(r"\n\n(?=(Returns|Raises|Example):\n)", doc)
  end = place.start() if place else len(doc)
  return f"{doc[:end]}\n\nArgs:\n{entries}{doc[end:]}"


def without_dashes(text: str) -> str:
  """Writes the names of flags as those of arguments."""
  return re.sub(r"--(?=[a-z])", "", text)


def _is_instance(value: Any, kind: Any) -> bool:
  wanted = {float: numbers.Real, int: numbers.Integral}.get(kind, kind)
  return isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
