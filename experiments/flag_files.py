"""Files of flags: the presets that come with the program, and those that --flagfile names.

They are read before absl sees the command line, so that presets are found from any folder and in an
installed package, and so that a file may name a preset by `--preset=NAME`.
"""

import importlib.resources
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from absl import flags

_PRESETS = importlib.resources.files("experiments") / "presets"
_ENDING = ".flags"
_OPTIONS = ("preset", "flagfile")


def presets() -> list[str]:
  """Lists the names of the presets."""
  files = (entry.name for entry in _PRESETS.iterdir())
  return sorted(name.removesuffix(_ENDING) for name in files if name.endswith(_ENDING))


def _is_preset(name: str) -> bool:
  """Tells whether there is such a preset; those of studies are called studies/NAME."""
  folder, _, rest = name.rpartition("/")
  is_name = bool(re.fullmatch(r"[\w.-]+", rest)) and folder in ("", "studies")
  return is_name and (_PRESETS / f"{name}{_ENDING}").is_file()


def define(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines --preset, for --help alone: `expand` replaces it before flags are parsed."""
  flags.DEFINE_string("preset", None, HELP, flag_values=flag_values)
  flags.register_validator(
    "preset", lambda value: value is None, "must have been expanded", flag_values
  )


HELP = f"settings that come with the program, which later flags override: {', '.join(presets())}"


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates the flags that name files from all others, which it returns second.

  Raises:
    flags.Error: a flag that names a file is without a value.
  """
  items = list(_items(arguments))
  files = [f"--{option}={value}" for option, value, _ in items if option]
  return files, [argument for option, _, argument in items if not option]


def expand(arguments: Sequence[str], within: tuple[str, ...] = ()) -> list[str]:
  """Replaces each flag that names a file by the flags in it.

  Args:
    arguments: flags, without the name of the program.
    within: the files that are being read, the outermost first.

  Raises:
    flags.Error: a file is missing, cannot be read, or includes itself.
  """
  expanded: list[str] = []
  for option, value, argument in _items(arguments):
    if option == "preset":
      expanded += _expand_preset(value, within)
    elif option == "flagfile":
      expanded += _expand_file(value, within)
    else:
      expanded.append(argument)
  return expanded


def _items(arguments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
  """Yields option and value of flags that name files, ("", "", argument) of the others."""
  rest = iter(arguments)
  for argument in rest:
    name, equals, value = argument.partition("=")
    option = name.removeprefix("-").removeprefix("-")
    if argument == "--":  # what follows is no flag
      yield "", "", argument
      for other in rest:
        yield "", "", other
    elif not name.startswith("-") or option not in _OPTIONS:
      yield "", "", argument
    else:
      found = value if equals else next(rest, "")
      if not found:
        raise flags.Error(f"--{option}: must be given a value, --{option}=...")
      yield option, found, argument


def _expand_preset(name: str, within: tuple[str, ...]) -> list[str]:
  if not _is_preset(name):
    raise flags.Error(f"--preset={name}: must be one of {', '.join(presets())}")
  text = (_PRESETS / f"{name}{_ENDING}").read_text(encoding="utf-8")
  return _expand_lines(f"--preset={name}", text, within)


def _expand_file(value: str, within: tuple[str, ...]) -> list[str]:
  path = pathlib.Path(os.path.expanduser(value))
  if not path.exists() and path.parent.name == "presets" and path.stem in presets():
    return _expand_preset(path.stem, within)  # named from the top of the repository
  try:
    text = path.read_text(encoding="utf-8")
  except OSError as error:
    raise flags.Error(
      f"--flagfile={value}: {error.strerror}; must be a file of flags, a line each"
      " (--preset=NAME names what comes with the program)"
    ) from error
  except UnicodeDecodeError as error:
    raise flags.Error(f"--flagfile={value}: must be text in UTF-8 ({error})") from error
  return _expand_lines(f"--flagfile={path.resolve()}", text, within)


def _expand_lines(source: str, text: str, within: tuple[str, ...]) -> list[str]:
  if source in within:
    raise flags.Error(f"{source}: must not include itself")
  lines = (line.strip() for line in text.splitlines())
  arguments = [line for line in lines if line and not line.startswith(("#", "//"))]
  return expand(arguments, (*within, source))
