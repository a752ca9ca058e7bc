"""Sizes of a model in all formats, and how long predictions take on this CPU, dense and sparse."""

import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import numpy as np

from experiments.exports import csr_folder, formats, onnx_file, torch_file, weights
from experiments.exports.network import ExportError, forward, is_known
from experiments.exports.packages import need
from sparsyfed_jax.loaded import Loaded

Predict = Callable[[], Any]

BATCHES = (1, 32)
_SECONDS = 0.5  # at least, of each row
_LEAST = 5  # calls
_MOST = 300
_VARIANTS = (
  *(("safetensors", "float32", None), ("safetensors", "bfloat16", None)),
  *(("torch", "float32", None), ("onnx", "float32", None), ("csr", "float32", None)),
  *(("sfed", "float32", None), ("sfed", "bfloat16", None)),
  *(("sfed", "float32", "zstd"), ("sfed", "bfloat16", "zstd")),
)
_PACKAGES = ("jax", "numpy", "scipy", "torch", "onnxruntime", "jax2onnx", "safetensors")


def make_table(loaded: Loaded) -> str:
  """Writes Markdown: two tables, and what they were made on."""
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    sizes, notes = _sizes(loaded, place)
    speeds, more = _speeds(loaded, place)
  versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES if _version(name))
  lines = [*_about(loaded), "", *sizes, "", *speeds, "", *dict.fromkeys([*notes, *more])]
  lines += [
    f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPU"
    f" cores ({platform.machine()}), Python {platform.python_version()}, {versions}."
  ]
  return "\n".join(lines) + "\n"


def _about(loaded: Loaded) -> list[str]:
  kernels = weights.prunable(loaded.variables).values()
  total = sum(leaf.size for leaf in weights.flat(loaded.variables).values())
  zeros = 1 - sum(np.count_nonzero(k) for k in kernels) / max(sum(k.size for k in kernels), 1)
  return [
    f"{type(loaded.model).__name__} after round {loaded.round}, {total:,} numbers, {zeros:.2%} of"
    " the weights of layers are 0."
  ]


def _sizes(loaded: Loaded, place: pathlib.Path) -> tuple[list[str], list[str]]:
  dense = sum(4 * leaf.size for leaf in weights.flat(loaded.variables).values())
  lines = ["| format | bytes | dense float32 / it | logits differ by |", "|---|---:|---:|---:|"]
  lines.append(f"| dense float32, without names | {dense:,} | 1.0 | |")
  notes = []
  for name, dtype, compression in _VARIANTS:
    output = place / f"model-{name}{formats.FORMATS[name].suffix}"
    if dtype != "float32" or compression:
      output = place / f"{name}-{dtype}-{compression}{formats.FORMATS[name].suffix}"
    try:
      done = formats.export(loaded, name, output, dtype, compression)
    except ExportError as error:
      notes.append(f"Left out: {error}.")
      continue
    title = " ".join(filter(None, (name, dtype if dtype != "float32" else "", compression)))
    change = max(done.difference, done.rounding)
    lines.append(f"| {title} | {done.size:,} | {dense / done.size:.1f} | {change:.1g} |")
  return lines, notes


def _speeds(loaded: Loaded, place: pathlib.Path) -> tuple[list[str], list[str]]:
  lines = ["| library | products | " + " | ".join(f"batch {b}, ms" for b in BATCHES) + " |"]
  lines.append("|---|---|" + "---:|" * len(BATCHES))
  times: dict[tuple[str, str], list[str]] = {}
  for batch in BATCHES:
    x = formats.examples(loaded, batch)
    for names, call in _calls(loaded, place, x).items():
      times.setdefault(names, []).append(f"{1e3 * _median_seconds(call):.2f}")
  lines += [f"| {' | '.join(names)} | {' | '.join(each)} |" for names, each in times.items()]
  note = "Products are dense where the library has none of unstructured sparse weights on a CPU."
  return lines, [note]


def _calls(loaded: Loaded, place: pathlib.Path, x: np.ndarray) -> dict[tuple[str, str], Predict]:
  calls: dict[tuple[str, str], Predict] = {}
  scaled = weights.scaled(loaded, x)
  apply = jax.jit(lambda variables, x: loaded.model.apply(variables, x, train=False))
  calls["JAX", "dense"] = lambda: jax.block_until_ready(apply(loaded.variables, scaled))
  if (place / "model-onnx.onnx").exists():
    session = onnx_file.session(place / "model-onnx.onnx")
    calls["ONNX Runtime", "dense"] = lambda: session.run(["logits"], {"x": x})
  if (place / "model-torch.pt").exists():
    torch = need("torch", "torch")
    state = torch.load(place / "model-torch.pt", weights_only=True)
    of_torch = torch_file.ops(loaded, state)

    def in_torch() -> Any:
      with torch.no_grad():
        return forward(loaded.model, of_torch, scaled)

    calls["PyTorch", "dense"] = in_torch
  if is_known(loaded.model):
    dense = csr_folder.ops(loaded, place / "model-csr", is_dense=True)
    sparse = csr_folder.ops(loaded, place / "model-csr")
    calls["NumPy", "dense"] = lambda: forward(loaded.model, dense, scaled)
    calls["SciPy", "CSR"] = lambda: forward(loaded.model, sparse, scaled)
  return calls


def _median_seconds(call: Predict) -> float:
  call()  # compiles
  times: list[float] = []
  while len(times) < _LEAST or (sum(times) < _SECONDS and len(times) < _MOST):
    started = time.perf_counter()
    call()
    times.append(time.perf_counter() - started)
  return statistics.median(times)


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return ""
