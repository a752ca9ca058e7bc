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
from experiments.exports.network import ExportError, forward
from experiments.exports.packages import need
from sparsyfed_jax.loaded import Loaded
from sparsyfed_jax.metrics.flops import product_costs
from sparsyfed_jax.models.network import network_of

Predict = Callable[[], Any]

BATCHES = (1, 32)
_SECONDS = 4.0  # of a column, at least
_LEAST, _MOST = 9, 300  # calls of a cell
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
  lines += [f"{_processor()}, Python {platform.python_version()}, {versions}."]
  return "\n".join(lines) + "\n"


def use_one_core() -> None:
  """Keeps this process on one core, before libraries choose how many threads they start.

  Threads of libraries that wait for work would take the core from the one that is measured.
  """
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  need("threadpoolctl", "csr").threadpool_limits(1)


def _processor() -> str:
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
  except OSError:
    return platform.processor() or platform.machine()
  names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
  return names[0] if names else platform.machine()


def _about(loaded: Loaded) -> list[str]:
  kernels = weights.prunable(loaded.trained)
  density = {name: np.count_nonzero(kernel) / kernel.size for name, kernel in kernels.items()}
  total = sum(leaf.size for leaf in weights.flat(loaded.trained).values())
  size = sum(kernel.size for kernel in kernels.values())
  zeros = 1 - sum(density[name] * kernel.size for name, kernel in kernels.items()) / max(size, 1)
  text = (
    f"{type(loaded.model).__name__} after round {loaded.round}, {total:,} numbers, {zeros:.2%} of"
    " the weights of layers are 0"
  )
  if csr_folder.is_whole(
    loaded
  ):  # large layers, which are the sparsest, are not those that take long
    products = network_of(loaded.model, loaded.input_shape).products
    costs = {cost.name: cost.forward for cost in product_costs(products)}
    left = sum(costs[name] * density[name] for name in density) / sum(costs.values())
    text += f", and {left:.1%} of the products of a prediction are left"
  return [f"{text}."]


def _sizes(loaded: Loaded, place: pathlib.Path) -> tuple[list[str], list[str]]:
  dense = sum(4 * leaf.size for leaf in weights.flat(loaded.trained).values())
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
    calls = _calls(loaded, place, formats.examples(loaded, batch))
    for names, seconds in _in_turns(calls).items():
      times.setdefault(names, []).append(f"{1e3 * seconds:.2f}")
  lines += [f"| {' | '.join(names)} | {' | '.join(each)} |" for names, each in times.items()]
  note = (
    "Medians of calls in turns, all on one core. Products are dense where a library has none of"
    " sparse weights without structure on a CPU."
  )
  return lines, [note]


def _calls(loaded: Loaded, place: pathlib.Path, x: np.ndarray) -> dict[tuple[str, str], Predict]:
  calls: dict[tuple[str, str], Predict] = {}
  scaled = weights.scaled(loaded, x)
  calls["JAX", "dense"] = lambda: jax.block_until_ready(loaded.compute(loaded.trained, x))
  if (place / "model-onnx.onnx").exists():
    session = onnx_file.session(place / "model-onnx.onnx")
    calls["ONNX Runtime", "dense"] = lambda: session.run(["logits"], {"x": x})
  if (place / "model-torch.pt").exists():
    torch = need("torch", "torch")
    torch.set_num_threads(1)
    state = torch.load(place / "model-torch.pt", weights_only=True)
    of_torch = torch_file.ops(loaded, state)

    def in_torch() -> Any:
      with torch.no_grad():
        return forward(loaded.model, of_torch, scaled)

    calls["PyTorch", "dense"] = in_torch
  if csr_folder.is_whole(loaded):
    dense = csr_folder.ops(loaded, place / "model-csr", is_dense=True)
    sparse = csr_folder.ops(loaded, place / "model-csr")
    calls["NumPy", "dense"] = lambda: csr_folder.predict(loaded, dense, scaled)
    calls["SciPy", "CSR"] = lambda: csr_folder.predict(loaded, sparse, scaled)
  return calls


def _in_turns(calls: dict[tuple[str, str], Predict]) -> dict[tuple[str, str], float]:
  """Calls each in its turn, so that what else the machine does meets all; the median seconds."""
  for call in calls.values():
    call()  # compiles
  times: dict[tuple[str, str], list[float]] = {names: [] for names in calls}
  started, turns = time.perf_counter(), 0
  while turns < _LEAST or (time.perf_counter() - started < _SECONDS and turns < _MOST):
    for names, call in calls.items():
      before = time.perf_counter()
      call()
      times[names].append(time.perf_counter() - before)
    turns += 1
  return {names: statistics.median(each) for names, each in times.items()}


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return ""
