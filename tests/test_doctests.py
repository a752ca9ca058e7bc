"""Examples in docstrings: every public name has one, and each does what it shows."""

import doctest
import functools
import importlib
import inspect
import pkgutil
import typing

import jax
import pytest

import sparsyfed_jax

MODULES = ["sparsyfed_jax"] + [
  module.name for module in pkgutil.walk_packages(sparsyfed_jax.__path__, "sparsyfed_jax.")
]
PUBLIC = [
  (module, name)
  for module in MODULES
  for name in getattr(importlib.import_module(module), "__all__", ())
]
FINDER = doctest.DocTestFinder(exclude_empty=True)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def _home(value):
  return getattr(value, "__module__", None)


def has_example(value):
  """Whether a name has an example or needs none, as modules, values and types do."""
  is_alias = isinstance(value, functools.partial) or typing.get_origin(value) is not None
  if inspect.ismodule(value) or not callable(value) or is_alias:
    return True
  if getattr(value, "_is_protocol", False):  # which is not called, but followed
    return bool(value.__doc__) and "Args:" in value.__call__.__doc__
  return ">>> " in (inspect.getdoc(value) or "")


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.xdist_group("doctests")
def test_examples_do_what_they_show(module):
  runner = doctest.DocTestRunner(optionflags=OPTIONS)
  failures = []
  room = importlib.import_module(module)
  # What the module imports, a reader has to import too.
  known = {key: value for key, value in vars(room).items() if module == _home(value)}
  with jax.numpy_dtype_promotion("standard"):  # as a reader's session has it
    for test in FINDER.find(room, globs=known):
      runner.run(test, out=failures.append)
  assert not failures, "\n".join(failures)


def test_every_public_name_has_an_example():
  assert len(PUBLIC) > 100
  missing = [
    f"{module}.{name}"
    for module, name in PUBLIC
    if not has_example(getattr(importlib.import_module(module), name))
  ]
  assert missing == []


def test_a_name_without_an_example_is_found():
  def undocumented():
    """Does nothing."""

  assert not has_example(undocumented)
