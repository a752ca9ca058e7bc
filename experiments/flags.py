"""The flags of a run: read from the command line, checked, and completed."""

import io
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags

from experiments import flag_files
from experiments.run.checks import check, remark_of
from experiments.run.config import AUTO, FREE, Config, ConfigError
from experiments.run.learning import without_effect
from experiments.run.settings import (
  DEFAULTS,
  all_flags,
  completed,
  defaults_with,
  flags_of,
  method_of,
  strangers_of,
)
from experiments.run.systems import without_effect as unread_systems
from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.data.sources import InputRange
from sparsyfed_jax.fed.method import Knob, Method
from sparsyfed_jax.fed.optimizers import FEDOPT
from sparsyfed_jax.models.norm import Norm

__all__ = ["AUTO", "DEFAULTS", "Config", "ConfigError", "check"]

_FLAGS = flags.FLAGS
# Flags of numbers that not every method reads, and where they go.
_HYPER_OF_FLAG = {
  "sparsity": "density",
  "sparsity_schedule": "ramp_rounds",
  "sparsity_ramp_rounds": "ramp_rounds",
}


def define(flag_values: flags.FlagValues = _FLAGS, strangers: Sequence[Method] = ()) -> None:
  """Defines the flags of a run in a table of flags, by default the program's.

  Args:
    flag_values: the table.
    strangers: methods that are not in `METHODS`, as `strangers_in` finds them.

  Raises:
    ConfigError: two flags have one name.
  """
  definers: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    Norm: flags.DEFINE_string,
    str | None: flags.DEFINE_string,
    float: flags.DEFINE_float,
    float | None: flags.DEFINE_float,
    int: flags.DEFINE_integer,
    int | None: flags.DEFINE_integer,
    tuple[float, ...]: flags.DEFINE_list,
    tuple[str, ...]: flags.DEFINE_list,
    tuple[int, ...]: flags.DEFINE_list,
    bool: flags.DEFINE_boolean,
  }
  for name, flag in flags_of(*strangers).items():
    default = flag.default
    shown = list(default) if isinstance(default, tuple) else default  # as absl's lists are
    owner = f"of {flag.owner.name}: " if flag.owner else ""
    definers[flag.type](name, shown, owner + flag.rule.help, flag_values=flag_values)
  flag_files.define(flag_values)


def describe(strangers: Sequence[Method] = (), only: Sequence[str] = ()) -> str:
  """Writes the help of all flags or some, those of each method in a group of their own."""
  groups: dict[str, list[str]] = {}
  for name, flag in flags_of(*strangers).items():
    if only and name not in only:
      continue
    owner = flag.owner
    every = "flags" if only else "every run"
    title = f"--algorithm={owner.name} ({owner.title})" if owner else every
    default = ",".join(map(str, flag.default)) if isinstance(flag.default, tuple) else flag.default
    text = f"--{name}: {flag.rule.help}" + (
      f" (default: {default})" if default not in ("", None) else ""
    )
    groups.setdefault(title, []).append(
      textwrap.fill(text, 96, initial_indent="  ", subsequent_indent="    ")
    )
  next(iter(groups.values())).append(
    textwrap.fill(f"--preset: {flag_files.HELP}", 96, initial_indent="  ", subsequent_indent="    ")
  )
  return "\n\n".join("\n".join([f"{title}:", *lines]) for title, lines in groups.items())


def strangers_in(argv: Sequence[str]) -> tuple[Method, ...]:
  """Finds the methods of others that a command line names; they have flags of their own.

  Raises:
    ConfigError: one cannot be used.
  """
  try:
    arguments = flag_files.expand(argv[1:])
  except flags.Error:  # which parsing tells
    return ()
  table = flags.FlagValues()
  flags.DEFINE_string("algorithm", "", "", flag_values=table)
  try:
    table(["", *arguments], known_only=True)
  except flags.Error:
    return ()
  return strangers_of(name.strip() for name in str(table["algorithm"].value).split(","))


def parse(argv: list[str], flag_values: flags.FlagValues = _FLAGS) -> list[str]:
  """Parses flags for `absl.app.run`; a mistake is one line on stderr and exit code 2."""
  print_anywhere()
  try:
    return parse_or_raise(argv, flag_values)
  except flags.Error as error:
    fail(error)


def parse_with_names(argv: list[str], flag_values: flags.FlagValues = _FLAGS) -> list[str]:
  """Parses flags for `absl.app.run`; what is left names what the command reads."""
  print_anywhere()
  try:
    return flag_values(argv)
  except flags.Error as error:
    fail(error)


def parse_or_raise(argv: list[str], flag_values: flags.FlagValues = _FLAGS) -> list[str]:
  """Parses flags; absl's Error, of one line, for a mistake."""
  try:
    rest = flag_values([*argv[:1], *flag_files.expand(argv[1:])])
  except flags.Error as error:
    raise flags.Error(str(error).removeprefix("ERROR:: ")) from error
  if len(rest) > 1:
    raise flags.Error(f"{rest[1]!r} is not a flag; flags are written --name=value")
  return rest


def print_anywhere() -> None:
  """Lets stdout write `?` for a letter that its encoding lacks, where it would end the program."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="replace")


def fail(error: Exception, code: int = 2) -> NoReturn:
  """Ends the process with a one-line message and an exit code."""
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  sys.exit(code)


def read(flag_values: flags.FlagValues = _FLAGS) -> Config:
  """Collects parsed flags, checked as far as flags alone can tell.

  Raises:
    ConfigError: a value is out of range, or two contradict each other.
  """
  config = collect(flag_values)
  check(config)
  return config


def collect(flag_values: flags.FlagValues) -> Config:
  """Collects parsed flags, which may be out of range; raises ConfigError of what is no number."""
  defaults = defaults_with(*strangers_of([str(flag_values["algorithm"].value)]))
  values: dict[str, Any] = {name: flag_values[name].value for name in defaults._fields}
  for name in ("client_sparsities", "client_sparsity_shares"):
    values[name] = _numbers(name, values[name])
  values["image_size"] = _whole_numbers("image_size", values["image_size"])
  for name in ("trackers", "input_range", "text_columns"):
    values[name] = tuple(values[name])
  return defaults._replace(**values)


def input_range(config: Config) -> InputRange:
  """Reads --input_range as `sources.load` takes it."""
  if config.input_range == (AUTO,):
    return AUTO
  if config.input_range == ("none",):
    return None
  low, high = _numbers("input_range", config.input_range)
  return low, high


def _numbers(name: str, listed: Sequence[str | float]) -> tuple[float, ...]:
  try:
    return tuple(float(entry) for entry in listed)
  except ValueError:
    joined = ",".join(map(str, listed))
    raise ConfigError(f"--{name}={joined}: must be numbers separated by commas") from None


def _whole_numbers(name: str, listed: Sequence[str | int]) -> tuple[int, ...]:
  try:
    return tuple(int(entry) for entry in listed)
  except ValueError:
    joined = ",".join(map(str, listed))
    raise ConfigError(f"--{name}={joined}: must be whole numbers separated by commas") from None


def ignored(config: Config) -> list[str]:
  """Names the flags that neither the method, the server's optimizer nor the data's reader reads."""
  method = method_of(config)
  numbers = [flag for flag, name in _HYPER_OF_FLAG.items() if name not in method.reads]
  own = [name for name, flag in all_flags(config).items() if flag.owner not in (None, method)]
  server = [] if config.server_optimizer in FEDOPT else ["server_tau"]
  return numbers + own + server + without_effect(config) + unread_systems(config)


def notes(config: Config, flag_values: flags.FlagValues = _FLAGS) -> list[str]:
  """Says which flags were given in vain, and which mean what is rarely meant."""
  # A flag that bears the name of another method says so itself; presets set some of those.
  prefixes = tuple(f"{name}_" for name in METHODS)
  vain = [
    f"--{name}"
    for name in ignored(config)
    if flag_values[name].present and not name.startswith(prefixes)
  ]
  said = []
  others = {
    "server_optimizer": ["server_tau"],
    "dataset": without_effect(config),
    "availability": unread_systems(config),
  }
  for flag, names in others.items():
    own = [f"--{name}" for name in names if f"--{name}" in vain]
    vain = [name for name in vain if name not in own]
    if own:
      said.append(f"note: no effect with --{flag}={getattr(config, flag)}: {', '.join(own)}")
  if vain:
    said.append(f"note: no effect with --algorithm={config.algorithm}: {', '.join(vain)}")
  if remark := remark_of(config):
    said.append(f"note: {remark}")
  return said


# Flags whose defaults follow from others, in `resolve`.
DERIVED = tuple(
  name for name, flag in flags_of().items() if isinstance(flag.rule, Knob) and flag.rule.default
)
WITHOUT_EFFECT = tuple(name for name, flag in flags_of().items() if FREE in flag.marks)


def folder(path: str) -> str:
  """Resolves `~`, which a shell leaves alone behind the `=` of a flag."""
  return os.path.expanduser(path)


def resolve(config: Config) -> Config:
  """Fills in the defaults that follow from other flags."""
  config = completed(config)
  return config._replace(output_dir=folder(config.output_dir) if config.output_dir else None)
