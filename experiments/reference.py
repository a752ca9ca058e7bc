"""Repeats the authors' runs on CIFAR-10 and holds them against their curves.

`python -m experiments.reference --dataset=npz:cifar10.npz --output_dir=runs/reference` trains
SparsyFed and dense FedAvg for 700 rounds with the preset cifar10-lda1000, as a sweep: other flags
of `experiments.sweep` change it, and the same command goes on where it was stopped. --traces names
a file of the authors' accuracy by round (columns lda_alpha, method, target_sparsity, round,
test_accuracy, global_sparsity_percent), which is then drawn beside.

Writes the sweep's files, and reference.md and reference.png.
"""

import csv
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, logging
from absl import flags as absl_flags
from rich.console import Console
from rich.markdown import Markdown

from experiments import flags, sweep
from experiments.pictures.plots import Curve, plot_sweep
from experiments.sweeps.grid import read_grid
from experiments.sweeps.members import directory_of
from experiments.sweeps.results import LACKING, read_outcome
from sparsyfed_jax.algorithms import DENSE

PRESET = "cifar10-lda1000"
LAST_ROUNDS = 50  # whose mean accuracy is compared
_AUTHORS_NAMES = {DENSE: "dense"}

Rows = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str]) -> None:
  """Runs the sweep and compares."""
  table = absl_flags.FLAGS
  traces = table["traces"].value
  if traces and not pathlib.Path(traces).is_file():
    flags.fail(flags.ConfigError(f"--traces={traces}: no such file"))
  sweep.main(argv)
  _, runs = read_grid(table)
  directory = directory_of(table["output_dir"].value)
  curves = []
  lines = [
    f"| | seed | accuracy, mean of {LAST_ROUNDS} rounds, % | zeros after rounds 1, 2, 3 |",
    "|---|---|---:|---|",
  ]
  for run in runs:
    summary, rows = read_outcome(run, directory)
    if not rows or set(LACKING) & set(summary):
      continue  # the sweep's table says why
    name = run.config.algorithm
    lines.append(_line(name, str(run.config.seed), rows))
    curves.append(Curve(name, [rows]))
    theirs = _read_trace(traces, run.config) if traces else []
    if theirs and name not in (curve.label.removesuffix(" (authors)") for curve in curves[:-1]):
      lines.append(_line(name, "authors", theirs))
      curves.append(Curve(f"{name} (authors)", [theirs]))
  text = "\n".join(lines) + "\n"
  (directory / "reference.md").write_text(text, encoding="utf-8")
  plot_sweep(curves, directory / "reference.png")
  Console().print(Markdown(text))


def _line(name: str, seed: str, rows: Rows) -> str:
  last = rows[-1]["round"]
  accuracies = [
    100 * row["test_accuracy"]
    for row in rows
    if row["test_accuracy"] is not None and row["round"] > last - LAST_ROUNDS
  ]
  early = [row["global_sparsity"] for row in rows if row["round"] in (1, 2, 3)]
  zeros = ", ".join("–" if value is None else f"{value:.4f}" for value in early)
  return f"| {name} | {seed} | {statistics.mean(accuracies):.2f} | {zeros} |"


def _read_trace(path: str, config: flags.Config) -> list[dict[str, Any]]:
  """Reads the authors' run of a setting as rows of metrics; [] where they have none."""
  method = _AUTHORS_NAMES.get(config.algorithm, config.algorithm)
  sparsity = 0.0 if method == "dense" else config.sparsity
  rows = []
  with open(path, newline="", encoding="utf-8") as file:
    for row in csv.DictReader(file):
      setting = float(row["lda_alpha"]), row["method"], float(row["target_sparsity"])
      if setting == (config.dirichlet_alpha, method, sparsity) and int(row["round"]) > 0:
        zeros = row["global_sparsity_percent"]
        rows.append(
          {
            "round": int(row["round"]),
            "test_accuracy": float(row["test_accuracy"]),
            "global_sparsity": float(zeros) / 100 if zeros else None,
            "prunable_sparsity": float(zeros) / 100 if zeros else None,
          }
        )
  return rows


if __name__ == "__main__":
  sweep.define()
  absl_flags.DEFINE_string("traces", None, "the authors' accuracy by round, a csv file")
  absl_flags.adopt_module_key_flags(sys.modules[__name__])
  logging.set_verbosity(logging.WARNING)
  sys.argv.insert(1, f"--preset={PRESET}")
  sys.argv.insert(2, "--preset=studies/reference")
  app.run(main, flags_parser=flags.parse)
