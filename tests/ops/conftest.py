"""Both lowerings of what is tuned to CPUs."""

import contextlib
from collections.abc import Iterator

import pytest

from sparsyfed_jax.ops import untuned


@pytest.fixture(params=["tuned", "untuned"])
def on_any_platform(request: pytest.FixtureRequest) -> Iterator[None]:
  """Runs a test as it is lowered here, and as it is for accelerators."""
  with untuned() if request.param == "untuned" else contextlib.nullcontext():
    yield
