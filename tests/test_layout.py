"""The rooms: imports point one way and never in a circle; what the program is made of is short."""

import ast
import graphlib
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
# Rooms of the library, each of which imports from itself and from those before it only.
ROOMS = (
  "types",
  "trees",
  "strangers",
  "ops",
  "wire",
  "data",
  "models",
  "metrics",
  "fed",
  "algorithms",
)
ON_THE_WIRE = {"sparsyfed_jax.wire.size", "sparsyfed_jax.wire.rounding"}  # all that methods need


def module_name(path):
  *folders, name = path.relative_to(REPOSITORY).with_suffix("").parts
  return ".".join(folders if name == "__init__" else [*folders, name])


SOURCES = {
  module_name(path): path
  for package in ("sparsyfed_jax", "experiments")
  for path in sorted((REPOSITORY / package).rglob("*.py"))
}
LIBRARY = [name for name in SOURCES if name.startswith("sparsyfed_jax")]
PROGRAM = [name for name in SOURCES if name.startswith("experiments")]


def imports_in(path):
  """Finds the modules of this project that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}, line {node.lineno}: a relative import"
      inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(SOURCES)
      found |= inside or {node.module}
  return found & set(SOURCES)


@pytest.fixture(scope="module")
def graph():
  return {name: imports_in(path) for name, path in SOURCES.items()}


def rank_of(name):
  """Where a module stands among the rooms; what is in none of them stands above all."""
  room = [*name.split("."), ""][1]
  return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def test_the_graph_knows_the_imports(graph):
  assert len(LIBRARY) > 50 and len(PROGRAM) > 50
  assert "sparsyfed_jax.wire.size" in graph["sparsyfed_jax.fed.measures"]
  assert "sparsyfed_jax.trees" in graph["sparsyfed_jax.wire.schema"]


def test_imports_make_no_circle(graph):
  graphlib.TopologicalSorter(graph).prepare()  # the CycleError names the modules


def test_the_library_does_not_know_the_program(graph):
  assert {name: graph[name] & set(PROGRAM) for name in LIBRARY if graph[name] & set(PROGRAM)} == {}


def test_rooms_import_from_those_below(graph):
  upward = [
    (name, imported)
    for name in LIBRARY
    for imported in graph[name]
    if rank_of(imported) > rank_of(name)
  ]
  assert upward == []


def test_methods_and_engine_do_not_encode(graph):
  known = [name for name in LIBRARY if name.split(".")[1:2] in (["fed"], ["algorithms"])]
  wire = {imported for name in known for imported in graph[name] if ".wire" in imported}
  assert wire <= ON_THE_WIRE


def test_files_of_the_program_are_short():
  lengths = {name: len(SOURCES[name].read_bytes().splitlines()) for name in PROGRAM}
  assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_of_the_program_are_short():
  lengths = {
    f"{name}.{node.name}, line {node.lineno}": node.end_lineno - node.lineno + 1
    for name in PROGRAM
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  }
  assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}
