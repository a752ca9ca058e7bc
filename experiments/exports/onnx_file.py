"""ONNX by jax2onnx: any network, from `x`, whose scaling is inside, to `logits`."""

import json
import logging
import pathlib
from collections import Counter
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from experiments.exports import weights
from experiments.exports.network import ExportError
from experiments.exports.packages import need
from sparsyfed_jax.io.writers import json_value
from sparsyfed_jax.loaded import Loaded
from sparsyfed_jax.ops import untuned


def write(loaded: Loaded, path: pathlib.Path, dtype: str, compression: str | None) -> None:
  jax2onnx = need("jax2onnx", "onnx")
  dtype_of_x = jnp.int32 if loaded.task == "next_token" else jnp.float32

  def logits(x: jax.Array) -> Any:
    return loaded.compute(loaded.trained, x)

  shape = (*jax.export.symbolic_shape("batch"), *loaded.input_shape)
  for name in ("jax2onnx", "onnx_ir"):  # of shapes that only the run time knows
    logging.getLogger(name).setLevel(logging.ERROR)
  try:
    # It traces with operations of its own, which promote, and knows no choice by platform.
    promotion = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with promotion[0], promotion[1], untuned():
      proto = jax2onnx.to_onnx(
        logits,
        [jax.ShapeDtypeStruct(shape, dtype_of_x)],
        model_name=str(loaded.description.get("algorithm", "model")),
        input_names=["x"],
        output_names=["logits"],
      )
  except Exception as error:  # what it does not know
    line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ExportError(
      f"--format=onnx: jax2onnx cannot convert {type(loaded.model).__name__}: {line}"
    ) from error
  entry = proto.metadata_props.add()
  entry.key, entry.value = "sparsyfed_jax", json.dumps(json_value(loaded.description))
  path.write_bytes(proto.SerializeToString())


def session(path: pathlib.Path) -> Any:
  """Opens a file in ONNX Runtime, on one core of the CPU."""
  runtime = need("onnxruntime", "onnx")
  options = runtime.SessionOptions()
  options.intra_op_num_threads = 1
  return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(loaded: Loaded, path: pathlib.Path, x: np.ndarray) -> np.ndarray:
  return np.asarray(session(path).run(["logits"], {"x": x})[0])


def masks(loaded: Loaded, path: pathlib.Path) -> dict[str, np.ndarray]:
  """Finds each layer's weights by their values among the constants, which may be transposed."""
  onnx = need("onnx", "onnx")
  constants: Counter[bytes] = Counter()
  for entry in onnx.load(path).graph.initializer:
    values = onnx.numpy_helper.to_array(entry)
    if values.dtype == np.float32:
      constants[_sorted(values)] += 1
  found = {}
  for name, kernel in weights.prunable(loaded.trained).items():
    is_there = constants[_sorted(kernel)] > 0
    found[name] = kernel != 0 if is_there else np.zeros_like(kernel, bool)
  return found


def _sorted(values: np.ndarray) -> bytes:
  return np.sort(values, axis=None).tobytes()
