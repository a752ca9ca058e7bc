"""Saves tests of the programs what they do not look at: pictures, and programs traced again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import train
from experiments.run.build import program_key

_NUM_KEPT = 6  # compiled programs, which take memory


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
  """Leaves out the pictures of a run, of which drawing takes half, but where a test is marked."""
  if "pictures" not in request.keywords:
    for name in ("plot_curves", "plot_split"):
      monkeypatch.setattr(f"experiments.run.loop.{name}", lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def shared_programs() -> Iterator[None]:
  """Lets runs of one program key share what is compiled, as the runs of a sweep do."""
  kept: dict[Any, Any] = {}
  run, compile_programs = train.run, train.compile_programs

  def run_shared(config: Any, experiment: Any, directory: Path) -> dict[str, Any]:
    key = program_key(config, experiment)

    def compile_once(experiment: Any) -> Any:
      if key not in kept:
        kept[key] = compile_programs(experiment)
        if len(kept) > _NUM_KEPT:
          del kept[next(iter(kept))]
      return kept[key]

    with pytest.MonkeyPatch.context() as patch:
      if train.compile_programs is compile_programs:  # else a test has put its own there
        patch.setattr(train, "compile_programs", compile_once)
      return run(config, experiment, directory)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, "run", run_shared)
    yield
