"""All flags there are: those of every run, and the knobs of methods."""

import functools
import typing
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import jax.numpy as jnp

from experiments.run.config import VALUE, Config, ConfigError
from experiments.run.learning import Learning
from experiments.run.starting import Starting
from experiments.run.systems import Systems
from sparsyfed_jax import algorithms
from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.method import Knob, Method, Rule, Setting, with_own

# What config.json has besides flags, and what commands and absl have besides those of runs.
_TAKEN = frozenset(
  "data device jax_enable_x64 xla_flags versions method_sha256 model_sha256 resumed"
  " preset flagfile sweep_mode undefok help helpshort helpfull helpxml".split()
)


class Flag(NamedTuple):
  """What is known of a flag besides its value."""

  type: Any
  default: Any
  rule: Rule
  marks: tuple[str, ...] = ()
  owner: Method | None = None  # whose knob it is
  field: str = ""  # of the method's `Hyper` or `Options`
  is_number: bool = False  # of `Hyper`


@functools.cache
def flags_of(*strangers: Method) -> dict[str, Flag]:
  """Lists all flags: those that every run has, those of `METHODS`, and those of other methods."""
  found = {}
  for holder in (Config, Learning, Starting, Systems):
    for name, hint in typing.get_type_hints(holder, include_extras=True).items():
      kind, rule, *marks = typing.get_args(hint)
      found[name] = Flag(kind, holder._field_defaults[name], rule, tuple(marks))
  for method in (*METHODS.values(), *strangers):
    for setting in method.settings():
      if setting.name in found or setting.name in _TAKEN:
        raise ConfigError(
          f"--algorithm: two methods, or one and the program, have --{setting.name}"
        )
      found[setting.name] = _flag_of(method, setting)
  return found


def _flag_of(method: Method, setting: Setting) -> Flag:
  marks = (VALUE,) if setting.is_number else ()
  return Flag(
    setting.type, setting.default, setting.rule, marks, method, setting.field, setting.is_number
  )


@functools.cache
def defaults_with(*strangers: Method) -> Config:
  """Makes a `Config` of defaults that also has the fields of methods, `METHODS` and others."""
  flags = flags_of(*strangers)
  fields = NamedTuple("Config", [(name, flag.type) for name, flag in flags.items()])  # type: ignore[misc]
  return cast(Config, fields(**{name: flag.default for name, flag in flags.items()}))


DEFAULTS = defaults_with()


def all_flags(config: Config) -> dict[str, Flag]:
  """Lists the flags of a config, whose method may be a stranger's."""
  return flags_of(*strangers_of([config.algorithm]))


def strangers_of(names: Iterable[str]) -> tuple[Method, ...]:
  """Finds the methods that are not in `METHODS`; names that are no method's are left to `check`."""
  found = []
  for name in dict.fromkeys(names):
    if ":" in name:
      try:
        found.append(algorithms.find(name))
      except ValueError as error:
        raise ConfigError(f"--algorithm={error}") from error
      if found[-1].name in {method.name for method in found[:-1]}:
        raise ConfigError(f"--algorithm={name}: another method is called {found[-1].name}, too")
  return tuple(found)


def completed(config: Config) -> Config:
  """Fills in the defaults that follow from other flags."""
  for name, flag in all_flags(config).items():
    if isinstance(flag.rule, Knob) and flag.rule.default and getattr(config, name) is None:
      config = config._replace(**{name: flag.rule.default(config)})  # type: ignore[arg-type]
  return config


def method_of(config: Config) -> Method:
  """Finds the method of a run, whose name was checked."""
  return algorithms.find(config.algorithm)


def source_digest(config: Config) -> str | None:
  """Makes a SHA-256 of the code of a method that is not in `METHODS`, which may change."""
  return None if config.algorithm in METHODS else algorithms.digest_of(config.algorithm)


def own_hyper(config: Config) -> Any:
  """Collects the numbers of the method."""
  return _own(config, method_of(config).hyper, is_number=True)


def own_options(config: Config) -> Any:
  """Collects the forms of the method."""
  return _own(config, method_of(config).options, is_number=False)


def _own(config: Config, holder: Any, is_number: bool) -> Any:
  settings = method_of(config).settings()
  return holder(**{s.field: getattr(config, s.name) for s in settings if s.is_number == is_number})


def make_hyper(config: Config, total_weight: float) -> Hyper:
  """Makes the values that the state carries of resolved flags and the clients' weights."""
  values = {
    **{name: getattr(config, name) for name in Hyper._fields if hasattr(config, name)},
    "density": 1 - config.sparsity,
    "ramp_rounds": config.sparsity_ramp_rounds,
    "total_weight": total_weight,
  }
  common = Hyper(**{name: jnp.float32(value) for name, value in values.items()})
  return with_own(common, own_hyper(config))
