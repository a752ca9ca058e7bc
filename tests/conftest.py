"""Strictness for all tests, and a compilation cache that later runs reuse."""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import platform
import resource
import sys
import tempfile

# Compiling is what takes time here, not running: with these a third. Read when jax is imported.
_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_VERSION = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
if _VERSION < (0, 12) and platform.machine() in ("x86_64", "AMD64"):
  # The older emitters, which 0.12 has no more. They join a product and a sum to one instruction or
  # not, depending on what is around them, and comparisons of two programs would see it: so they
  # compile for a machine that has none.
  _FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
# However small, a program is compiled once, for both workers and for processes that tests start.
_CACHE = pathlib.Path(tempfile.gettempdir()) / "sparsyfed_jax-tests-compilation-cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# An entry that another process is still writing is read as a damaged one, and compiled again.
os.environ.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent compilation cache")
# Of a worker's memory a third was free, in arenas of other threads. Read when a process starts.
os.environ.setdefault("MALLOC_ARENA_MAX", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser: pytest.Parser) -> None:
  """Defines --method."""
  text = "test this method alone: package.module:METHOD or ./file.py:METHOD"
  parser.addoption("--method", help=f"{text}, with tests/algorithms/test_laws.py")


def pytest_configure(config: pytest.Config) -> None:
  """Tells `tests.cases` of --method, which may promote as it does in a session of its author."""
  config.addinivalue_line("markers", "pictures: runs draw theirs")
  if config.getoption("--method"):
    os.environ["SPARSYFED_JAX_METHOD"] = config.getoption("--method")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_numpy_dtype_promotion", "standard")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """Gives what shares programs to one worker: the tests of a method, the others of a module."""
  if config.getoption("--method"):
    from tests import cases

    items[:] = [
      item
      for item in items
      if getattr(item, "callspec", None) and item.callspec.params.get("method") in cases.FORMS
    ]
  for item in items:
    item.add_marker(pytest.mark.xdist_group(_group_of(item)))
  # Together also where one process runs all of them: they share what was traced.
  places: dict[str, int] = {}
  items.sort(key=lambda item: places.setdefault(_group_of(item), len(places)))


def _group_of(item: pytest.Item) -> str:
  params = item.callspec.params if hasattr(item, "callspec") else {}
  return str(params.get("method") or params.get("variant") or item.path)


def pytest_collection_finish() -> None:
  """Lets the garbage collector, a tenth of the time, not look through all that was imported."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000)


@pytest.fixture
def key() -> jax.Array:
  """A PRNG key."""
  return jax.random.key(0)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
  """Drops compiled functions where tests of other programs follow, or when they are many.

  They come back from the disk, but are traced anew, which takes longer than all else. Each holds
  memory, and memory maps, of which a process has 65,530; XLA dies of more.
  """
  if sys.platform == "linux":
    is_last = nextitem is None or _group_of(nextitem) != _group_of(item)
    if _resident_mb() > (1000 if is_last else 2500):
      jax.clear_caches()
      gc.collect()
      ctypes.CDLL(None).malloc_trim(0)  # most of it is free, and the system does not know


def _resident_mb() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize() / 1e6
