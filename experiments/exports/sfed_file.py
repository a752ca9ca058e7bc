"""The file of `sparsyfed_jax.io.model_file`: zeros left out, the smallest, read by this library."""

import pathlib

import numpy as np

from experiments.exports import weights
from experiments.exports.packages import need
from sparsyfed_jax.io import model_file
from sparsyfed_jax.loaded import Loaded, load_model


def write(loaded: Loaded, path: pathlib.Path, dtype: str, compression: str | None) -> None:
  if compression:
    need("zstandard", "sfed")
  values = None if dtype == "float32" else dtype
  model_file.write(path, loaded.description, loaded.trained, values, compression)


def run(loaded: Loaded, path: pathlib.Path, x: np.ndarray) -> np.ndarray:
  found = load_model(path, model=loaded.model)
  return weights.outputs(found, found.trained, x)


def masks(loaded: Loaded, path: pathlib.Path) -> dict[str, np.ndarray]:
  return {
    name: kernel != 0 for name, kernel in weights.prunable(model_file.read(path).variables).items()
  }
