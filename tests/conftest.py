"""Strictness for all tests, and a compilation cache that later runs reuse."""

import os
import pathlib
import tempfile
from collections.abc import Iterator

# Compiling is what takes time here, not running: a third less of it. Read when jax is imported.
os.environ.setdefault(
  "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
_CACHE = pathlib.Path(tempfile.gettempdir()) / "sparsyfed_jax-tests-compilation-cache"
jax.config.update(
  "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_addoption(parser: pytest.Parser) -> None:
  """Defines --method."""
  text = "test this method alone: package.module:METHOD or ./file.py:METHOD"
  parser.addoption("--method", help=f"{text}, with tests/algorithms/test_laws.py")


def pytest_configure(config: pytest.Config) -> None:
  """Tells `tests.cases` of --method, which may promote as it does in a session of its author."""
  if config.getoption("--method"):
    os.environ["SPARSYFED_JAX_METHOD"] = config.getoption("--method")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_numpy_dtype_promotion", "standard")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """Gives the tests of a method to one worker, which compiles it once for all of them."""
  if config.getoption("--method"):
    from tests import cases

    items[:] = [
      item
      for item in items
      if getattr(item, "callspec", None) and item.callspec.params.get("method") in cases.FORMS
    ]
  for item in items:
    callspec = getattr(item, "callspec", None)
    if callspec and "method" in callspec.params:
      item.add_marker(pytest.mark.xdist_group(str(callspec.params["method"])))


@pytest.fixture
def key() -> jax.Array:
  """A PRNG key."""
  return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps() -> Iterator[None]:
  """Every compiled function holds memory maps, of which a process has 65,530; XLA dies of more."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
    jax.clear_caches()
