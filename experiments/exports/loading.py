"""Models of runs, loaded by commands: those of others only where the caller names their code."""

import pathlib
from typing import Any

from experiments import flags
from experiments.run.models import make_strange
from sparsyfed_jax.io import model_file
from sparsyfed_jax.io.model_places import find_file
from sparsyfed_jax.loaded import Loaded, load_model

HELP = (
  "package.module:factory or ./file.py:factory, where the run's model was somebody else's: that"
  " code is run, and none that the run names"
)


def load(run: pathlib.Path, which: str, model: str | None) -> Loaded:
  """Loads a model.

  Args:
    run: folder of a run, or a model file.
    which: "last" or "best".
    model: the flag --model.

  Raises:
    ValueError: there is none, it is damaged, or `model` is not what it was trained with.
    OSError: it cannot be read.
  """
  return load_model(run, which, None if model is None else _make(run, which, model))


def _make(run: pathlib.Path, which: str, model: str) -> Any:
  if ":" not in model:
    raise flags.ConfigError(f"--model={model}: must be package.module:factory or ./file.py:factory")
  place = find_file(run, which)
  told = model_file.read(place).description
  shape, count = told.get("input_shape"), told.get("num_classes")
  if not isinstance(shape, list) or not isinstance(count, int):
    raise flags.ConfigError(f"{place}: input_shape and num_classes must be told")
  return make_strange(model, tuple(shape), count)
