"""Sphinx: the pages are run when they are built, and the API is written from what is public."""

import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import shutil
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from sphinx.util import logging

import sparsyfed_jax

HERE = pathlib.Path(__file__).parent
API = HERE / "api"
logger = logging.getLogger(__name__)

project = "sparsyfed_jax"
author = "The sparsyfed_jax authors"
version = release = sparsyfed_jax.__version__
extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.autosummary",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "sparsyfed_jax"
html_theme_options = {"light_css_variables": {"code-font-size": "0.74em"}}
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
templates_path = ["_templates"]
exclude_patterns = ["_build", "runs"]
default_role = "code"  # docstrings put names between single backticks
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Pages run from here, in a fresh process each, with the commands of this environment.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_render_markdown_format = "myst"
os.environ["COLUMNS"] = "88"
# Programs that pages share are compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE / "runs" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ["IPYTHONDIR"] = str(HERE / "runs" / "ipython")
os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])


def write_api() -> list[str]:
  """Writes a page for each room: a page a name of its `__all__`, or a page a module without one.

  Returns:
    The files, for autosummary, which by itself would take those of the build before.
  """
  rooms = [sparsyfed_jax, *_below(sparsyfed_jax, packages=True)]
  at_front: list[str] = []  # classes, which autodoc describes once
  for room in rooms:
    modules = _below(room)
    for module in (room, *modules):
      _unwrap_functions(module)
    public = {name: getattr(room, name) for name in getattr(room, "__all__", ())}
    names = [name for name, value in public.items() if not inspect.ismodule(value)]
    elsewhere = [name for name in names if name in at_front]
    if room is sparsyfed_jax:
      at_front = [name for name in names if inspect.isclass(public[name])]
      shown = {getattr(public[name], "__module__", None) for name in names}
      modules = [module for module in modules if module.__name__ not in shown]
    if not names or room is sparsyfed_jax:
      names += [module.__name__.rpartition(".")[2] for module in modules]
    own = [name for name in names if name not in elsewhere]
    (API / f"{room.__name__}.rst").write_text(_room_page(room, own, elsewhere))
  index = ["API", "===", "", ".. toctree::", "   :maxdepth: 1", ""]
  (API / "index.rst").write_text("\n".join([*index, *(f"   {room.__name__}" for room in rooms)]))
  return [f"api/{room.__name__}.rst" for room in rooms]


def _unwrap_functions(module: ModuleType) -> None:
  """Undoes jax.custom_jvp and the like, which autodoc takes for values without a signature."""
  for name, value in vars(module).items():
    if callable(value) and hasattr(value, "__wrapped__"):
      setattr(module, name, inspect.unwrap(value))


def _below(package: ModuleType, packages: bool = False) -> list[ModuleType]:
  """Imports the modules of a package, or all packages below it."""
  walk = pkgutil.walk_packages if packages else pkgutil.iter_modules
  found = walk(package.__path__, package.__name__ + ".")
  return [importlib.import_module(module.name) for module in found if module.ispkg == packages]


def _room_page(room: ModuleType, own: Sequence[str], elsewhere: Sequence[str]) -> str:
  title = f"``{room.__name__}``"
  lines = [title, "=" * len(title), "", f".. automodule:: {room.__name__}", "   :no-members:", ""]
  lines += [".. autosummary::", "   :toctree: names", "   :nosignatures:", ""]
  lines += [*(f"   {name}" for name in own), ""]
  if elsewhere:
    lines += [".. autosummary::", "   :nosignatures:", ""]
    lines += [*(f"   sparsyfed_jax.{name}" for name in elsewhere), ""]
  return "\n".join(lines)


def show_fields(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
  """Shows comments: those of a named tuple's fields, beside them, and that of a value."""
  if what == "data":
    lines[:] = _comment_above(name.rpartition(".")[2])
  if not lines:
    logger.warning("%s has no docstring", name)
  if what == "class" and hasattr(value, "_fields"):
    fields = re.sub(
      r'^  """.*?"""\n+', "", inspect.getsource(value), flags=re.DOTALL | re.MULTILINE
    )
    fields = re.split(r"^ +(?:@|def )", fields, flags=re.MULTILINE)[0].rstrip()
    lines += ["", ".. code-block:: python", "", *(f"   {line}" for line in fields.splitlines()), ""]


def spread_pages(app: Any, env: Any, names: list[str]) -> None:
  """Spreads the pages, which are run, over all documents, which processes read in chunks."""
  pages = [name for name in names if "/" not in name]
  others = [name for name in names if "/" in name]
  places = {name: i / len(group) for group in (pages, others) for i, name in enumerate(group)}
  names.sort(key=places.__getitem__)


def skip_fields(
  app: Any, what: str, name: str, value: object, skip: bool, options: Any
) -> bool | None:
  """Leaves out "Alias for field number 0"."""
  return True if type(value).__name__ == "_tuplegetter" else None


def _comment_above(name: str) -> list[str]:
  """Finds the comment above the line that defines a value, wherever it was imported from."""
  definition = re.compile(rf"((?:^#.*\n)+){name}\b[^=\n]* = ", re.MULTILINE)
  texts = (path.read_text() for path in pathlib.Path(sparsyfed_jax.__path__[0]).rglob("*.py"))
  found = next(filter(None, map(definition.search, texts)), None)
  return [line.lstrip("# ") for line in found[1].splitlines()] if found else []


def setup(app: Any) -> None:
  """Adds the hooks of this file."""
  app.connect("autodoc-process-docstring", show_fields)
  app.connect("autodoc-skip-member", skip_fields)
  app.connect("env-before-read-docs", spread_pages)


for place in (API, HERE / "runs"):  # what an earlier build has left
  shutil.rmtree(place, ignore_errors=True)
  place.mkdir()
startup = pathlib.Path(os.environ["IPYTHONDIR"], "profile_default", "startup")
startup.mkdir(parents=True)
shutil.copy(HERE / "shell_cells.py", startup)
autosummary_generate = write_api()
