"""The accuracy of all methods by sparsity and skew of the labels (SparsyFed, arXiv 2504.05153).

`python -m experiments.table1 --dataset=npz:cifar10.npz --output_dir=runs/table1`, or --smoke. See
experiments/studies/study.py for what the studies have in common.

With CIFAR-10 the authors' figures stand beside: experiments/authors_cifar10.csv holds those of
SparsyFed's comparison as plotted when it was submitted, in percent; "dense" is FedAvg.
"""

import csv
import functools
import pathlib
import re
from collections.abc import Sequence

from experiments import flags
from experiments.pictures.panels import Panel
from experiments.studies import pictures
from experiments.studies.study import (
  ACCURACY,
  METHODS,
  SEEDS,
  SPARSITIES,
  Setting,
  Study,
  cell,
  pivot,
  run,
)
from sparsyfed_jax.algorithms import DENSE

_AUTHORS = pathlib.Path(__file__).parent / "authors_cifar10.csv"


def authors(config: flags.Config) -> float | None:
  """Reads the authors' accuracy of a setting in percent; None where they have none."""
  name = pathlib.PurePath(config.dataset.partition(":")[2]).name
  if not re.match(r"cifar-?10(?!\d)", name, re.IGNORECASE):
    return None
  is_dense = config.algorithm == DENSE
  setting = config.dirichlet_alpha, 0.0 if is_dense else config.sparsity
  return _read_authors().get(("dense" if is_dense else config.algorithm, *setting))


@functools.cache
def _read_authors() -> dict[tuple[str, float, float], float]:
  with open(_AUTHORS, newline="", encoding="utf-8") as file:
    return {
      (row["method"], float(row["dirichlet_alpha"]), float(row["target_sparsity"])): float(
        row["test_accuracy_percent"]
      )
      for row in csv.DictReader(file)
    }


def _known(setting: Setting) -> float | None:
  return authors(setting.outcomes[0].config)


def report(settings: Sequence[Setting]) -> str:
  def text(setting: Setting) -> str:
    theirs = _known(setting)
    return cell(setting, ACCURACY) + ("" if theirs is None else f" ({theirs:.2f})")

  note = "; in brackets the authors'" if any(map(_known, settings)) else ""
  return f"{ACCURACY.title}{note}\n\n" + pivot(settings, "sparsity", text)


def draw(settings: Sequence[Setting], path: pathlib.Path) -> None:
  views = pictures.against_flag(
    settings,
    "sparsity",
    ACCURACY.value,
    Panel("Test accuracy", "%", []),
    scale=100,
    panel_flag="dirichlet_alpha",
    known=lambda setting: None if (theirs := _known(setting)) is None else theirs / 100,
  )
  pictures.save(views, path)


STUDY = Study(
  "table1",
  blocks=((METHODS, SPARSITIES, "--dirichlet_alpha=1000,1,0.1", SEEDS),),
  smoke=(
    "--preset=studies/table1-smoke",
    "--sparsity=0.9,0.99",
    "--dirichlet_alpha=1000,0.1",
    "--seed=0,1",
  ),
  report=report,
  draw=draw,
)

if __name__ == "__main__":
  run(STUDY)
