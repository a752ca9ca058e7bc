"""How much masks agree: those of the clients of a round, and the global ones of several rounds.

`python -m experiments.consensus --dataset=npz:cifar10.npz --output_dir=runs/consensus`, or --smoke.
See experiments/studies/study.py for what the studies have in common.

Agreement is the intersection over union (IoU) of the weights that two masks keep.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence

from experiments.pictures.panels import Panel, mean_points
from experiments.run.files import read_similarity
from experiments.run.mask_files import iou_by_distance
from experiments.run.measures import mean_from
from experiments.studies import pictures
from experiments.studies.study import (
  METHODS,
  SEEDS,
  Column,
  Outcome,
  Setting,
  Study,
  finished,
  run,
  table_of,
)
from experiments.sweeps.results import decimals

FIRST_ROUND = 2  # the models before round 1 are dense
_PANEL = Panel("", "IoU", [], (0, 1), first=FIRST_ROUND)
_KEYS = {"client_mask_iou": "Clients of a round", "mask_iou": "Global masks, round to round"}


def by_distance(outcome: Outcome) -> dict[int, float]:
  """Averages the IoU of global masks over the pairs that are as many rounds apart."""
  return iou_by_distance(read_similarity(outcome.directory))


def report(settings: Sequence[Setting]) -> str:
  columns = [
    Column(title, functools.partial(_mean, key), decimals(1, 4)) for key, title in _KEYS.items()
  ]
  distances = sorted({d for setting in settings for o in finished(setting) for d in by_distance(o)})
  for i in range(len(distances).bit_length()):
    distance = distances[0] * 2**i
    columns.append(Column(f"{distance} rounds apart", _at(distance), decimals(1, 4)))
  return "Intersection over union of masks\n\n" + table_of(settings, columns)


def _mean(key: str, outcome: Outcome) -> float | None:
  return mean_from(outcome.rows, key, FIRST_ROUND)


def _at(distance: int) -> Callable[[Outcome], float | None]:
  return lambda outcome: by_distance(outcome).get(distance)


def draw(settings: Sequence[Setting], path: pathlib.Path) -> None:
  found = [mean_points([by_distance(o) for o in finished(setting)]) for setting in settings]
  lines = pictures.lines_of([(s.point, points) for s, points in zip(settings, found, strict=True)])
  views = [
    pictures.over_rounds(settings, key, _PANEL._replace(title=title))
    for key, title in _KEYS.items()
  ]
  apart = Panel("Global masks further apart", "IoU", lines, (0, 1), x_title="rounds apart")
  pictures.save([*views, apart], path)


STUDY = Study(
  "consensus",
  blocks=((METHODS, "--sparsity=0.95", "--mask_metrics_every=10", SEEDS),),
  smoke=(
    "--preset=studies/consensus-smoke",
    "--sparsity=0.8",
    "--sparsity_schedule=constant",
    "--mask_metrics_every=2",
    "--seed=0,1",
  ),
  report=report,
  draw=draw,
)

if __name__ == "__main__":
  run(STUDY)
