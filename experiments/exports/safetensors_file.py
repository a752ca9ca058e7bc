"""safetensors: arrays by their paths, such as `params/Conv_0/kernel`, in flax's layouts."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.exports import weights
from experiments.exports.packages import need
from sparsyfed_jax.io.writers import json_value
from sparsyfed_jax.loaded import Loaded

_FLOATS = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_OTHERS = {"bool": "BOOL"} | {
  f"{kind}{bits}": f"{kind[0].upper()}{bits}"
  for kind in ("int", "uint")
  for bits in (8, 16, 32, 64)
}


def write(loaded: Loaded, path: pathlib.Path, dtype: str, compression: str | None) -> None:
  save = need("safetensors.numpy", "safetensors").save
  # `flat` makes contiguous copies, for `save` takes transposed arrays for what they are not.
  table = {
    name: leaf.astype(jnp.dtype(dtype)) if leaf.dtype == np.float32 else leaf
    for name, leaf in weights.flat(loaded.trained).items()
  }
  told = {"sparsyfed_jax": json.dumps(json_value(loaded.description))}
  path.write_bytes(save(table, metadata=told))


def run(loaded: Loaded, path: pathlib.Path, x: np.ndarray) -> np.ndarray:
  return weights.outputs(loaded, weights.nested(read(path), loaded.trained), x)


def masks(loaded: Loaded, path: pathlib.Path) -> dict[str, np.ndarray]:
  kernels = weights.prunable(weights.nested(read(path), loaded.trained))
  return {name: kernel != 0 for name, kernel in kernels.items()}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads arrays by their paths, floats as float32; `safetensors.numpy` knows no bfloat16."""
  safetensors = need("safetensors", "safetensors")
  kinds = {short: jnp.dtype(name) for name, short in (_FLOATS | _OTHERS).items()}
  table: dict[str, Any] = {}
  for name, entry in safetensors.deserialize(path.read_bytes()):
    kind = kinds.get(entry["dtype"])
    if kind is None:
      raise ValueError(f"{path}: {name} is of {entry['dtype']}, must be of {', '.join(kinds)}")
    values = np.frombuffer(bytes(entry["data"]), kind).reshape(entry["shape"])
    table[name] = values.astype(np.float32) if entry["dtype"] in _FLOATS.values() else values
  return table
