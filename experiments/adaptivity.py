"""How methods recover when the data of the clients changes half-way: free masks and fixed ones.

`python -m experiments.adaptivity --dataset=npz:cifar10.npz --output_dir=runs/shift`, or --smoke.
See experiments/studies/study.py for what the studies have in common.

--shift_kind says what changes, --shift_round when; by default the examples are dealt anew, with
labels more skewed, after half of the rounds.
"""

import pathlib
from collections.abc import Sequence

from experiments.pictures.panels import Panel
from experiments.run.measures import Recovery, recovery
from experiments.studies import pictures
from experiments.studies.study import (
  ACCURACY,
  SEEDS,
  Column,
  Grid,
  Outcome,
  Setting,
  Study,
  run,
  table_of,
)
from experiments.sweeps.results import decimals

_PANELS = {
  "test_accuracy": "Accuracy on the test set",
  "client_accuracy_p10": "Its 10th percentile over the clients",
}


def _recovery(outcome: Outcome) -> Recovery:
  return recovery(outcome.rows, _shift_round(outcome))


def _shift_round(outcome: Outcome) -> int:
  return outcome.config.shift_round or 0


_COLUMNS = (
  Column("before the shift, %", lambda o: _recovery(o).accuracy_before, decimals(100, 2)),
  Column("lowest after", lambda o: _recovery(o).lowest_after, decimals(100, 2)),
  Column("rounds to regain", lambda o: _recovery(o).rounds_to_regain, decimals(1, 0), "never"),
  ACCURACY._replace(title="at the end, %"),
  Column(
    "10th percentile over the clients, %",
    lambda o: o.rows[-1].get("client_accuracy_p10"),
    decimals(100, 2),
  ),
)


def report(settings: Sequence[Setting]) -> str:
  return "Test accuracy around the shift\n\n" + table_of(settings, _COLUMNS)


def draw(settings: Sequence[Setting], path: pathlib.Path) -> None:
  shift_round = _shift_round(settings[0].outcomes[0])
  views = [
    pictures.over_rounds(
      settings,
      key,
      Panel(title, "%", [], first=shift_round // 2, mark=shift_round),
      scale=100,
    )
    for key, title in _PANELS.items()
  ]
  pictures.save(views, path)


def _add_shift(grid: Grid) -> Grid:
  half = min(map(int, grid["rounds"])) // 2
  return {"shift_round": [str(half)], **grid}


STUDY = Study(
  "adaptivity",
  blocks=(
    (
      "--preset=studies/adaptivity",
      "--sparsity=0.95",
      "--dirichlet_alpha=1000",
      "--shift_dirichlet_alpha=0.1",
      "--client_eval=true",
      SEEDS,
    ),
  ),
  smoke=("--rounds=24", "--sparsity=0.8", "--seed=0,1"),
  report=report,
  draw=draw,
  complete=_add_shift,
)

if __name__ == "__main__":
  run(STUDY)
