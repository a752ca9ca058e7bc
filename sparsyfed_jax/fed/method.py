"""The record of a method: all that programs know of it, from flags to FLOPs.

A method's file ends in a `Method`. Its knobs, annotated fields of its `Hyper` and `Options`, become
flags with help, ranges and refusals, axes of sweeps, arguments of the factory and rows of tables.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, cast

import jax.numpy as jnp

from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.rules import (
  Argument,
  Choice,
  Knob,
  Pattern,
  Rule,
  arguments,
  refusal,
  refuse,
  with_arguments,
  without_dashes,
)
from sparsyfed_jax.fed.schedules import SPARSITY_SCHEDULES
from sparsyfed_jax.metrics.flops import LayerShares, dense_shares

__all__ = ["Choice", "Configured", "Knob", "Method", "Pattern", "refusal"]


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


class Sparsity(NamedTuple):
  """The numbers that methods share which prune."""

  sparsity: Annotated[
    float,
    Knob("share of the prunable weights that a client's upload leaves at 0", low=0, below=1),
  ] = 0.95
  sparsity_schedule: Annotated[
    str,
    Choice(
      "how uploads become sparse: constant (full sparsity from round 1), cubic or linear (a ramp"
      " from dense over --sparsity_ramp_rounds)",
      tuple(SPARSITY_SCHEDULES),
    ),
  ] = "cubic"
  sparsity_ramp_rounds: Annotated[
    int | None,
    Knob(
      "rounds of the ramp; by default half of the run's, or none where the schedule is constant",
      low=0,
      default=lambda settings: (
        0 if settings.sparsity_schedule == "constant" else settings.rounds // 2
      ),
    ),
  ] = None


# Types of the fields of a method's `Hyper`, which becomes float32, and of its `Options`.
_NUMBERS = (float, int, bool, float | None, int | None)
_FORMS = (str, float, int, bool, str | None, float | None, int | None)
# Of the numbers that methods share, those that follow from a field of `Hyper` that a method reads.
_SPARSITY_OF = {
  "density": ("sparsity",),
  "ramp_rounds": ("sparsity_schedule", "sparsity_ramp_rounds"),
}


class Method(NamedTuple):
  """A federated method as programs see it.

  Called with its arguments by name, it gives what `sparsyfed_jax.simulate` takes.

  Example:
    >>> from sparsyfed_jax.algorithms import METHODS
    >>> METHODS["feddst"](sparsity=0.9, drop_rate=0.3).hyper.drop_rate
    0.3
  """

  name: str  # the value of --algorithm
  title: str  # in tables and pictures
  make: Callable[..., Algorithm]  # (setup, options) -> Algorithm; (setup) where it has one form
  hyper: type = Nothing  # NamedTuple of numbers, `Annotated[float, Knob(...)]`, with defaults
  options: type = Nothing  # NamedTuple of forms, `Annotated[str, Choice(...)]`, with defaults
  reads: tuple[str, ...] = ()  # fields of the common `Hyper` that not every method reads
  takes_densities: bool = False  # whether clients may differ in density
  needs_plain_sgd: bool = False  # whether clients must train without momentum and the like
  # (options, hyper, name of a layer, whether it is the first, its density as the client starts,
  # density of the round) -> what the client computes of the layer; the densities are traced where
  # rounds are timed
  layer_shares: Callable[[Any, Any, str, bool, float, float], LayerShares] = dense_shares
  # whether all clients of a round receive and compute the same amount, as timing them assumes
  are_alike: bool = True
  # (hyper, sparsity) -> (field, what would be right) of a number that contradicts others, or None
  check: Callable[[Any, float], tuple[str, str] | None] = lambda hyper, sparsity: None
  # (hyper, rounds of the run) -> (field, what its value means) of a number that is allowed and yet
  # rarely meant, or None
  remark: Callable[[Any, int], tuple[str, str] | None] = lambda hyper, rounds: None
  prefix: str | None = None  # of its flags; by default `NAME_`

  def algorithm(self, setup: Setup, options: Any = None) -> Algorithm:
    """Makes the pure functions of one of its forms, by default the first.

    Raises:
      ValueError: an option is not known, or the model cannot be trained by the method.
    """
    if self.options is Nothing:
      made = self.make(setup)
    else:
      made = self.make(setup, self.options() if options is None else options)
    if not setup.task.frozen:
      return made
    complete, own = setup.task.complete, made.client_model
    return made._replace(
      model=lambda state: complete(made.model(state)),
      client_model=own and (lambda download, memory: complete(own(download, memory))),
    )

  def __call__(self, **values: Any) -> "Configured":
    """Configures the method.

    Args:
      **values: as `arguments` lists them; the others are as by default.

    Raises:
      TypeError: an argument is unknown.
      ValueError: a value is wrong; the message names it and what would be right.
    """
    self.settings()  # refuses a record that is wrong
    known = {one.name: one for one in self.arguments()}
    unknown = [name for name in values if name not in known]
    if unknown:
      listed = ", ".join(known) or "none"
      raise TypeError(f"{self.name}() has no argument {unknown[0]!r}; its arguments are {listed}")
    refuse({known[name]: value for name, value in values.items()})

    def choose(holder: Any) -> Any:
      return holder(**{name: value for name, value in values.items() if name in holder._fields})

    configured = Configured(self, *map(choose, (Sparsity, self.hyper, self.options)))
    return configured.checked() if None not in configured.hyper else configured

  def arguments(self) -> tuple[Argument, ...]:
    """Lists what it can be called with: the numbers that it shares with others, then its own."""
    shared = [name for field in self.reads for name in _SPARSITY_OF.get(field, ())]
    holders: tuple[Any, ...] = self.hyper, self.options
    own = [one for holder in holders for one in _fields(holder)]
    return (*(one for one in _fields(Sparsity) if one.name in shared), *own)

  def settings(self) -> tuple[Setting, ...]:
    """Lists its knobs, numbers first.

    Raises:
      ValueError: a field of `Hyper` or `Options` has no default or no rule, or is of a type that
        cannot be; or `reads` names what is not read.
    """
    if not isinstance(self.reads, tuple) or not set(self.reads) <= set(Hyper._fields):
      known = ", ".join(Hyper._fields)
      raise ValueError(f"reads={self.reads!r}: must be a tuple of some of {known}")
    return _settings(self)


class Configured(NamedTuple):
  """A method with its arguments, as the factories make it and `sparsyfed_jax.simulate` takes it.

  Example:
    >>> from sparsyfed_jax.algorithms import METHODS
    >>> METHODS["sparsyfed"](beta=1.5).sparsity.sparsity
    0.95
  """

  method: Method
  sparsity: Sparsity
  hyper: Any  # of the method's file
  options: Any  # of the method's file

  def completed(self, settings: Any) -> "Configured":
    """Fills in the numbers whose defaults follow from others.

    Args:
      settings: has the numbers of the run, such as `rounds`, as attributes.

    Raises:
      ValueError: a number does not fit the others; the message names it and what would be right.
    """

    def fill(values: Any) -> Any:
      missing = [one for one in _fields(type(values)) if getattr(values, one.name) is None]
      found = {one: cast(Any, one.rule).default(settings) for one in missing}
      refuse(found)
      return values._replace(**{one.name: value for one, value in found.items()})

    sparsity = fill(self.sparsity)
    most = 0 if sparsity.sparsity_schedule == "constant" else settings.rounds
    if sparsity.sparsity_ramp_rounds > most:
      raise ValueError(
        f"sparsity_ramp_rounds={sparsity.sparsity_ramp_rounds}: must be at most {most} in"
        f" {settings.rounds} rounds with sparsity_schedule={sparsity.sparsity_schedule!r}"
      )
    return self._replace(sparsity=sparsity, hyper=fill(self.hyper)).checked()

  def checked(self) -> "Configured":
    """Returns itself; raises a ValueError if one of its numbers contradicts another."""
    found = self.method.check(self.hyper, self.sparsity.sparsity)
    if found:
      field, right = found
      value = getattr(self.hyper, field)
      raise ValueError(f"{field}={value!r}: must be {without_dashes(right)}")
    return self


def factory(method: Method) -> Callable[..., Configured]:
  """Makes a function of a method, with its signature and its documentation.

  The documentation is the docstring of the method's file, and what the rules of its arguments say.

  Example:
    >>> from sparsyfed_jax.algorithms import METHODS
    >>> fedavg = factory(METHODS["fedavg"])
    >>> fedavg().method.title
    'FedAvg'
  """

  def make(**values: Any) -> Configured:
    return method(**values)

  listed = method.arguments()
  module = sys.modules.get(getattr(method.make, "__module__", ""))
  told = inspect.getdoc(module) if module else None
  documented = cast(Any, make)
  documented.__name__ = documented.__qualname__ = method.name
  documented.__doc__ = with_arguments(told or f"{method.title}.", listed)
  documented.__signature__ = inspect.Signature(
    [
      inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type
      )
      for one in listed
    ],
    return_annotation=Configured,
  )
  return make


@functools.cache
def _settings(method: Method) -> tuple[Setting, ...]:
  prefix = f"{method.name}_" if method.prefix is None else method.prefix
  found = []
  for holder in (method.hyper, method.options):
    is_number = holder is method.hyper
    for one in _fields(holder):
      setting = Setting(prefix + one.name, one.name, one.type, one.default, one.rule, is_number)
      if right := _fault_of(setting):
        raise ValueError(f"{holder.__module__}.{holder.__name__}.{one.name}: must {right}")
      found.append(setting)
  return tuple(found)


def _fault_of(setting: Setting) -> str:
  """Says what would be right in the place of a setting that cannot be a flag or a number."""
  name, rule = setting.name, setting.rule
  if not name.isidentifier() or name.startswith("_"):
    return f"make the name of a flag with the prefix, but --{name} is none"
  kinds = _NUMBERS if setting.is_number else _FORMS
  if setting.type not in kinds:
    return f"be {', '.join(map(_words_of, kinds))}, but is {_words_of(setting.type)}"
  if setting.is_number and setting.default is None and not getattr(rule, "default", None):
    return "have a number as its default, or Knob(default=...), which makes one of the settings"
  return ""


def _words_of(kind: Any) -> str:
  return kind.__name__ if isinstance(kind, type) else str(kind)


def _fields(holder: Any) -> tuple[Argument, ...]:
  found = {one.name: one for one in arguments(holder)}
  for field in holder._fields:
    if field not in holder._field_defaults or field not in found:
      raise ValueError(
        f"{holder.__module__}.{holder.__name__}.{field}: must be written as"
        " Annotated[type, Knob(...), Choice(...) or Pattern(...)] = default"
      )
  return tuple(found.values())


def check_options(options: Any) -> None:
  """Checks the forms that a factory is asked for.

  Raises:
    ValueError: naming the field, its value and what is known.
  """
  refuse({one: getattr(options, one.name) for one in _fields(type(options))})


def with_own(hyper: Hyper, own: Any) -> Hyper:
  """Puts a method's numbers into the common ones, as () float32."""
  return hyper._replace(own=type(own)(*map(jnp.float32, own)))
