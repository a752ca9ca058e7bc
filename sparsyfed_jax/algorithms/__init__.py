"""The methods, one file each; `METHODS` is the one list of them.

A file ends in its record, `METHOD`, which is all that other modules know of it.
"""

import functools

from sparsyfed_jax import strangers
from sparsyfed_jax.algorithms import (
  fedavg,
  feddst,
  feddyn,
  fedfade,
  fedmef,
  fedpm,
  fedrts,
  fedtiny,
  flash,
  heterofl,
  prunefl,
  scaffold,
  spafl,
  sparsyfed,
  ssfl,
  static,
  topk,
  zerofl,
)
from sparsyfed_jax.fed.method import Method

# The methods by name.
METHODS: dict[str, Method] = {
  module.METHOD.name: module.METHOD
  for module in (
    # Pictures colour methods in this order: those that the paper compares, then others.
    fedavg,
    feddst,
    flash,
    scaffold,
    sparsyfed,
    static,
    topk,
    zerofl,
    feddyn,
    fedmef,
    fedpm,
    fedrts,
    fedtiny,
    prunefl,
    spafl,
    ssfl,
    heterofl,
    fedfade,
  )
}
# Those that others are held against: the paper's, and training without pruning.
OURS, DENSE = sparsyfed.METHOD.name, fedavg.METHOD.name

__all__ = ["METHODS", "find"]


def find(name: str) -> Method:
  """Finds a method.

  Args:
    name: in `METHODS`, or "package.module:METHOD" or "./file.py:METHOD" of somebody else's, whose
      code is run.

  Raises:
    ValueError: in one line, the name and what would be right.

  Example:
    >>> find("topk").title
    'Top-K'
  """
  if name in METHODS:
    return METHODS[name]
  module, colon, attribute = name.rpartition(":")
  if not colon or not module or not attribute:
    raise ValueError(
      f"{name}: must be one of {', '.join(METHODS)}, or package.module:METHOD or ./file.py:METHOD"
      " of your own"
    )
  try:
    return _load(module, attribute)[0]
  except ValueError as error:
    raise ValueError(f"{name}: must be {error}") from error


def digest_of(name: str) -> str:
  """Makes a SHA-256 of the code of somebody else's method, as it was when it was loaded.

  Args:
    name: as in `find`.
  """
  find(name)
  module, _, attribute = name.rpartition(":")
  return _load(module, attribute)[1]


@functools.cache
def _load(module: str, attribute: str) -> tuple[Method, str]:
  try:
    method = strangers.load(module, attribute)
  except ValueError as error:
    raise ValueError(f"a method that can be imported ({error})") from error
  if not isinstance(method, Method):
    raise ValueError(f"a sparsyfed_jax.Method, but {attribute} is a {type(method).__name__}")
  taken = {setting.name for own in METHODS.values() for setting in own.settings()}
  if method.name in METHODS or not method.name.isidentifier():
    raise ValueError(f"a method with a name of its own, but it is called {method.name!r}")
  try:
    flags = {setting.name for setting in method.settings()}
  except Exception as error:  # annotations are code, too
    raise ValueError(f"a method whose record is right ({error})") from error
  if flags & taken:
    raise ValueError(
      f"a method with flags of its own, but other methods have --{min(flags & taken)}"
    )
  return method, strangers.digest(module, method.make)
