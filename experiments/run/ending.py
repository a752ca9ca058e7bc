"""The flags that say which model of a run is kept, and when a run may end before its last round."""

from typing import Annotated, TypeAlias

from experiments.run.choices import FREE, VALUE
from sparsyfed_jax.fed.method import Choice, Knob
from sparsyfed_jax.fed.tasks import TASKS

NOTHING = "none"
# What --keep_best may name, and whether less of it is better.
IS_LOSS = {
  f"test_{metric.name}": not metric.is_higher_better
  for judgement in TASKS.values()
  for metric in judgement.metrics
} | {"test_loss": True}

KeepBest: TypeAlias = Annotated[
  str,
  Choice(
    "whose model is kept in best/: that of the evaluation with the best test_accuracy, test_loss or"
    " other metric of the task, or none",
    (NOTHING, *IS_LOSS),
  ),
  VALUE,
]
StopAtTarget: TypeAlias = Annotated[
  bool,
  Knob("whether the run ends with the evaluation that reaches --target_accuracy, or --target"),
  VALUE,
  FREE,
]
EarlyStopPatience: TypeAlias = Annotated[
  int,
  Knob(
    "evaluations without a better value of what --keep_best names, or else of the task's main"
    " metric, after which the run ends; 0 for never",
    low=0,
  ),
  VALUE,
  FREE,
]
