"""The flags of `experiments.plan`, besides those of the run that it plans."""

from collections.abc import Sequence
from typing import NamedTuple

from absl import flags as absl_flags

from experiments.flags import ConfigError
from experiments.plan.examples import Shape, told
from experiments.plan.targets import CHIPS


class Options(NamedTuple):
  """What is planned, and how much."""

  target: str
  compare: tuple[str, ...] = ()  # methods; () for that of the run
  chunks: tuple[int, ...] = ()  # clients side by side; () for what --clients_per_chunk says
  search_seconds: int = 240
  plan_dir: str | None = None
  data_shape: tuple[str, ...] = ()
  data_classes: int = 10


def _table() -> absl_flags.FlagValues:
  table = absl_flags.FlagValues()
  defaults = Options("")
  known = ", ".join(f"{chip.name}:{chip.shapes[0]}" for chip in CHIPS.values())
  text = f"what to compile for, a chip and how many of it: {known}, v5e:2x4, h100:8, ..."
  absl_flags.DEFINE_string("target", None, text, flag_values=table)
  text = "comma list of methods, instead of --algorithm"
  absl_flags.DEFINE_list("compare", [], text, flag_values=table)
  text = "comma list of clients side by side, instead of --clients_per_chunk"
  absl_flags.DEFINE_list("chunks", [], text, flag_values=table)
  text = (
    "seconds that looking for the largest --clients_per_chunk may take with each method, besides"
    " the programs that are planned; 0 does not look"
  )
  absl_flags.DEFINE_integer(
    "search_seconds", defaults.search_seconds, text, lower_bound=0, flag_values=table
  )
  text = "a new directory for the files; default: plans/<time>-<target>"
  absl_flags.DEFINE_string("plan_dir", None, text, flag_values=table)
  text = (
    "comma list of the number of training examples and the shape of one, such as 50000,32,32,3, of"
    " data that is not read; the classes of --data_classes"
  )
  absl_flags.DEFINE_list("data_shape", [], text, flag_values=table)
  text = "classes of the data that --data_shape describes"
  absl_flags.DEFINE_integer("data_classes", defaults.data_classes, text, flag_values=table)
  return table


def read(arguments: Sequence[str]) -> tuple[Options, list[str]]:
  """Reads the flags of the plan.

  Args:
    arguments: all flags. Those of the plan are to be among them and not in a file: a run has a
      --target, too, which changes no program.

  Returns:
    The flags of the plan, and those of the run.

  Raises:
    ConfigError: a value is out of range.
    absl's Error: a value is of another type.
  """
  table = _table()
  own, rest = _split(arguments, Options._fields)
  try:
    table(["", *own])
  except absl_flags.Error as error:
    raise absl_flags.Error(str(error).removeprefix("ERROR:: ")) from error
  values = table.flag_values_dict()
  if not values["target"]:
    raise ConfigError("--target: must be given, such as v5e:1x1 or h100:1")
  chunks = values["chunks"]
  if not all(text.isascii() and text.isdigit() for text in chunks):
    raise ConfigError(f"--chunks={','.join(chunks)}: must be numbers separated by commas")
  chosen = Options(**{name: values[name] for name in Options._fields})
  return chosen._replace(
    compare=tuple(dict.fromkeys(values["compare"])),
    chunks=tuple(dict.fromkeys(map(int, chunks))),
    data_shape=tuple(values["data_shape"]),
  ), rest


def shape_of(chosen: Options) -> Shape | None:
  """Reads what the flags tell of the data; raises ConfigError."""
  return told(chosen.data_shape, chosen.data_classes) if chosen.data_shape else None


def describe() -> str:
  """Writes the help of the plan's own flags."""
  table = _table()
  return "\n".join(f"  --{name}: {table[name].help}" for name in Options._fields)


def _split(arguments: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates the flags of these names from others."""
  own: list[str] = []
  rest: list[str] = []
  left = iter(arguments)
  for argument in left:
    name, equals, value = argument.partition("=")
    option = name.removeprefix("-").removeprefix("-")
    if not name.startswith("-") or option not in names:
      rest.append(argument)
      continue
    own.append(f"--{option}={value if equals else next(left, '')}")
  return own, rest
