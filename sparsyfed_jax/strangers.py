"""Code of somebody else's, named as package.module:NAME or ./file.py:NAME."""

import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import sys
from typing import Any


def load(module: str, attribute: str) -> Any:
  """Imports a module, or a file whose name ends in `.py`, and takes an attribute; runs its code.

  Raises:
    ValueError: in a few words, why that is not possible.

  Example:
    >>> load("math", "tau").is_integer()
    False
  """
  try:
    holder = _import_file(pathlib.Path(module)) if module.endswith(".py") else None
    return getattr(holder or importlib.import_module(module), attribute)
  except Exception as error:  # of code that is not ours
    raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def digest(module: str, *functions: Any) -> str:
  """Makes a SHA-256 of the file that was loaded, and those of functions that come from others.

  Args:
    module: as in `load`, which was called with it.
    functions: that may be written in Python.

  Example:
    >>> len(digest("dataclasses"))
    64
  """
  named = module if module.endswith(".py") else inspect.getfile(sys.modules[module])
  files = [named, *(inspect.getfile(one) for one in functions if inspect.isfunction(one))]
  paths = dict.fromkeys(pathlib.Path(file).resolve() for file in files)
  return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _import_file(path: pathlib.Path) -> object:
  # Other files may have this stem.
  name = f"_method_{path.stem}_{hashlib.sha256(bytes(path.resolve())).hexdigest()[:8]}"
  spec = importlib.util.spec_from_file_location(name, path.resolve())
  if spec is None or spec.loader is None or not path.is_file():
    raise FileNotFoundError(f"{path}: no such file")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # where typing looks annotations up
  spec.loader.exec_module(module)
  return module
