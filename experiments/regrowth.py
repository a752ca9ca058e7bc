"""How many pruned weights come back a round, by method, and how many times those of SparsyFed.

`python -m experiments.regrowth --dataset=npz:cifar10.npz --output_dir=runs/regrowth`, or --smoke.
See experiments/studies/study.py for what the studies have in common.

The paper (arXiv 2504.05153) says that SparsyFed has 200 times less of it than others, and not how
it counts. Here a weight comes back in a client if it is 0 in what the client downloads and not in
what it uploads, and in the server if it is 0 in the global model before a round and not after it.
"""

import functools
import math
import pathlib
from collections.abc import Sequence

from experiments.pictures.panels import Panel
from experiments.run.measures import mean_from
from experiments.studies import pictures
from experiments.studies.study import (
  METHODS,
  SEEDS,
  Column,
  Outcome,
  Setting,
  Study,
  cell,
  markdown,
  mean,
  run,
)
from sparsyfed_jax.algorithms import OURS

FIRST_ROUND = 2  # the models before round 1 are dense
_KEYS = {"client_regrowth": "client", "server_regrowth": "server"}


def _regrowth(key: str, outcome: Outcome) -> float | None:
  return mean_from(outcome.rows, key, FIRST_ROUND)


def ratio(setting: Setting, settings: Sequence[Setting], key: str) -> float | None:
  """Divides the regrowth of a setting by SparsyFed's in the like setting; None if there is none."""
  like = {**setting.point, "algorithm": OURS}
  reference = next((other for other in settings if other.point == like), None)
  own = mean(setting, functools.partial(_regrowth, key))
  theirs = mean(reference, functools.partial(_regrowth, key)) if reference else None
  if own is None or theirs is None or own == theirs == 0:
    return None
  return own / theirs if theirs else math.inf


def report(settings: Sequence[Setting]) -> str:
  titles = []
  rows: list[list[str]] = [list(setting.point.values()) for setting in settings]
  for key, where in _KEYS.items():
    titles += [f"{where}, % of the weights a round", "times SparsyFed's"]
    column = Column("", functools.partial(_regrowth, key), lambda value: f"{100 * value:.3g}")
    for row, setting in zip(rows, settings, strict=True):
      times = ratio(setting, settings, key)
      row += [cell(setting, column), "" if times is None else f"{times:.3g}".replace("inf", "∞")]
  table = markdown([*settings[0].point], titles, rows)
  return f"Regrown weights, mean from round {FIRST_ROUND} on\n\n{table}"


def draw(settings: Sequence[Setting], path: pathlib.Path) -> None:
  views = [
    pictures.over_rounds(
      settings,
      key,
      Panel(f"Weights that come back, {where}", "%", [], (0, 100), 1, first=FIRST_ROUND),
      scale=100,
    )
    for key, where in _KEYS.items()
  ]
  pictures.save(views, path)


STUDY = Study(
  "regrowth",
  blocks=((METHODS, "--sparsity=0.95", "--sparsity_schedule=constant", SEEDS),),
  smoke=(
    "--preset=studies/regrowth-smoke",
    "--sparsity=0.8",
    "--seed=0,1",
  ),
  report=report,
  draw=draw,
)

if __name__ == "__main__":
  run(STUDY)
