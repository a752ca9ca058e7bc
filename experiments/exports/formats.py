"""The formats that there are, and how a file of one is written and checked."""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.exports import (
  csr_folder,
  onnx_file,
  safetensors_file,
  sfed_file,
  torch_file,
  weights,
)
from experiments.exports.network import ExportError
from sparsyfed_jax.io.writers import json_value, sync_directory, write_json
from sparsyfed_jax.loaded import Loaded

TOLERANCE = 1e-5  # of logits, relative to the largest where that is above 1
DTYPES = ("float32", "bfloat16", "float16")
COMPRESSIONS = ("none", "zstd")
_NUM_EXAMPLES = 16


class Format(NamedTuple):
  """A format."""

  write: Callable[[Loaded, pathlib.Path, str, str | None], None]
  run: Callable[[Loaded, pathlib.Path, np.ndarray], np.ndarray]  # logits, in its own runtime
  masks: Callable[[Loaded, pathlib.Path], dict[str, np.ndarray]]  # what is not 0 in each kernel
  suffix: str
  takes_dtype: bool = False
  takes_compression: bool = False
  has_description: bool = True  # inside; or else in a file beside it


FORMATS = {
  "safetensors": Format(
    safetensors_file.write, safetensors_file.run, safetensors_file.masks, ".safetensors", True
  ),
  "torch": Format(torch_file.write, torch_file.run, torch_file.masks, ".pt", has_description=False),
  "onnx": Format(onnx_file.write, onnx_file.run, onnx_file.masks, ".onnx"),
  "sfed": Format(sfed_file.write, sfed_file.run, sfed_file.masks, ".sfed", True, True),
  "csr": Format(csr_folder.write, csr_folder.run, csr_folder.masks, ""),
}


class Exported(NamedTuple):
  """What was written and checked."""

  size: int  # bytes
  difference: float  # largest of a logit, between the format's runtime and JAX
  rounding: float  # largest of a logit that `dtype` makes, already in JAX


def export(
  loaded: Loaded, format_name: str, output: pathlib.Path, dtype: str, compression: str | None
) -> Exported:
  """Writes a model beside its place, checks what was written, and puts it there.

  Args:
    loaded: the model.
    format_name: one of FORMATS.
    output: file or folder; what is there is replaced.
    dtype: of the values.
    compression: "zstd" or None.

  Raises:
    ExportError: the format does not know the model, a package is missing, or what was written does
      not give the model's logits and zeros: then it is left beside `output`, which stays as it was.
    OSError: it cannot be written.
  """
  form = FORMATS[format_name]
  model = weights.rounded(loaded, dtype)
  temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
  _remove(temporary)
  is_checked = False
  try:
    form.write(model, temporary, dtype, compression)
    x = examples(loaded)
    expected = weights.outputs(model, model.trained, x)
    difference, problem = _compare(form, model, temporary, x, expected)
    is_checked = True
    if problem:
      wrong = output.with_name(f"{output.name}.wrong")
      _remove(wrong)
      temporary.rename(wrong)
      raise ExportError(
        f"--format={format_name}: {problem}; what was written is in {wrong}, and {output} is as it"
        " was"
      )
  finally:
    if not is_checked:
      _remove(temporary)
  size = size_of(temporary)
  if output.is_dir():
    _remove(output)
  os.replace(temporary, output)
  if not form.has_description:
    write_json(description_path(output), json_value(loaded.description))
  sync_directory(output.parent)
  exact = weights.outputs(loaded, loaded.trained, x)
  return Exported(size, difference, float(np.max(np.abs(exact - expected))))


def examples(loaded: Loaded, count: int = _NUM_EXAMPLES) -> np.ndarray:
  """Draws inputs that the model may see, (count, *input_shape) float32, or int32 tokens."""
  rng = np.random.default_rng(0)
  shape = (count, *loaded.input_shape)
  if loaded.task == "next_token":
    return rng.integers(0, loaded.signature.num_classes, shape).astype(np.int32)
  if loaded.input_range is None:
    return rng.normal(size=shape).astype(np.float32)
  return rng.uniform(*loaded.input_range, size=shape).astype(np.float32)


def description_path(output: pathlib.Path) -> pathlib.Path:
  """Names the file beside one that cannot hold a description itself."""
  return output.with_name(f"{output.name}.json")


def size_of(path: pathlib.Path) -> int:
  """Counts the bytes of a file, or of all files in a folder."""
  places = path.iterdir() if path.is_dir() else [path]
  return sum(place.stat().st_size for place in places)


def _compare(
  form: Format, model: Loaded, path: pathlib.Path, x: np.ndarray, expected: np.ndarray
) -> tuple[float, str]:
  """Runs what was written; returns the largest difference of a logit, and what is wrong, or ""."""
  found = form.run(model, path, x)
  if found.shape != expected.shape:
    return 0.0, f"its logits have shape {found.shape}, must have {expected.shape}"
  difference = float(np.max(np.abs(found - expected)))
  limit = TOLERANCE * max(1.0, float(np.max(np.abs(expected))))
  if not difference <= limit:
    return difference, f"its logits differ by {difference:.2g}, must by at most {limit:.2g}"
  masks = form.masks(model, path)
  for name, kernel in weights.prunable(model.trained).items():
    changed = int(np.sum(masks[name] != (kernel != 0)))
    if changed:
      return difference, f"{changed} of the zeros of {name} are not kept"
  return difference, ""


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
