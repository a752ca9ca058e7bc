"""Strictness for all tests, and a compilation cache that later runs reuse."""

import os
import pathlib
import tempfile

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
_CACHE = pathlib.Path(tempfile.gettempdir()) / "sparsyfed_jax-tests-compilation-cache"
jax.config.update(
  "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def key() -> jax.Array:
  """A PRNG key."""
  return jax.random.key(0)
