"""FedFade without each of its parts in turn, beside the methods that it is held against.

`python -m experiments.ablation_fedfade --preset=digits --output_dir=runs/fedfade`, or --smoke. See
experiments/studies/study.py for what the studies have in common.

Bytes are those of all clients and rounds, both ways.
"""

import functools
from collections.abc import Sequence

from experiments.studies.pictures import accuracy_against
from experiments.studies.study import (
  ACCURACY,
  SEEDS,
  Column,
  Setting,
  Study,
  run,
  table_of,
)
from experiments.terminal import format_bytes

_COMMON = ("--sparsity=0.99,0.999", "--dirichlet_alpha=1,0.1", SEEDS)
_OURS = ("--preset=studies/extreme", *_COMMON)
_OTHERS = ("--preset=studies/extreme-others", *_COMMON)
# Without the background, without readjustments and so on.
_WITHOUT = (
  "--fedfade_fade_until=0",
  "--fedfade_update_until=0",
  "--fedfade_drops=smallest",
  "--fedfade_grows=zero",
  "--fedfade_floor=0,1",
  "--fedfade_biases_from=0,1000",
  "--fedfade_fade_power=2",
  "--fedfade_beta=1.25",
)


def report(settings: Sequence[Setting]) -> str:
  sent = Column(
    "sent", lambda outcome: outcome.summary.get("total_bytes"), format_bytes, "not measured"
  )
  return "FedFade and its parts\n\n" + table_of(settings, (ACCURACY, sent))


STUDY = Study(
  "ablation_fedfade",
  blocks=(_OTHERS, _OURS, *((*_OURS, one) for one in _WITHOUT)),
  smoke=("--sparsity=0.9,0.95", "--dirichlet_alpha=1", "--seed=0,1"),
  report=report,
  draw=functools.partial(accuracy_against, "sparsity"),
)

if __name__ == "__main__":
  run(STUDY)
