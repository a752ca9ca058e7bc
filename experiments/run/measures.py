"""What the rows of metrics.jsonl say of a whole run: how good it ended, when, how it recovered."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparsyfed_jax.fed.metric import ACCURACY, Metric

ROWS_BEFORE_SHIFT = 3  # evaluated rows whose mean is the accuracy before a shift
LAST_SHARE = 1 / 14  # of the rounds, whose mean accuracy is final: 50 of the paper's 700

Rows = Sequence[Mapping[str, Any]]


class Recovery(NamedTuple):
  """How a run went through a shift of its data."""

  accuracy_before: float | None  # mean test accuracy of the last evaluated rows before
  lowest_after: float | None  # least test accuracy after
  rounds_to_regain: int | None  # from the shift; None where the accuracy is not regained


def final_accuracy(rows: Rows) -> float | None:
  """Averages the test accuracy over the evaluated rows of the last LAST_SHARE of the rounds."""
  last = rows[-1]["round"] if rows else 0
  return mean_from(rows, "test_accuracy", last - max(int(LAST_SHARE * last), 1) + 1)


def mean_from(rows: Rows, key: str, first_round: int) -> float | None:
  """Averages a column over the rows from a round on that have it; None where none has."""
  values = [
    row[key]
    for number, row in enumerate(rows, start=1)
    if row.get("round", number) >= first_round and row.get(key) is not None
  ]
  return statistics.fmean(values) if values else None


def bytes_to_accuracy(rows: Rows, target: float, metric: Metric = ACCURACY) -> float | None:
  """Reads the bytes sent until the metric on the test set reached a target; None if never."""
  row = _first_reaching(rows, target, metric)
  return None if row is None else row.get("cumulative_bytes")


def rounds_to_accuracy(rows: Rows, target: float, metric: Metric = ACCURACY) -> int | None:
  """Reads the round in which the metric on the test set reached a target; None if never."""
  row = _first_reaching(rows, target, metric)
  return None if row is None else int(row["round"])


def seconds_to_accuracy(rows: Rows, target: float, metric: Metric = ACCURACY) -> float | None:
  """Reads the virtual time at which the metric on the test set reached a target; None if never."""
  row = _first_reaching(rows, target, metric)
  return None if row is None else row.get("virtual_seconds")


def recovery(rows: Rows, shift_round: int) -> Recovery:
  """Measures the fall of the test accuracy at a shift, and the way back.

  The accuracy is regained in the first evaluated row, from the lowest one after the shift on, that
  is at least as accurate as before: a fall may set in slowly, so that rows ahead of the lowest do
  not count. Where nothing falls, the first evaluated row after the shift counts.

  Args:
    rows: of metrics.jsonl; those without test_accuracy are passed over.
    shift_round: the last round of the old data.
  """
  evaluated = [row for row in rows if row.get("test_accuracy") is not None]
  earlier = [row["test_accuracy"] for row in evaluated if row["round"] <= shift_round]
  after = [row for row in evaluated if row["round"] > shift_round]
  before = statistics.fmean(earlier[-ROWS_BEFORE_SHIFT:]) if earlier else None
  if not after or before is None:
    lowest = min((row["test_accuracy"] for row in after), default=None)
    return Recovery(before, lowest, None)
  accuracies = [row["test_accuracy"] for row in after]
  lowest = min(accuracies)
  start = accuracies.index(lowest) if lowest < before else 0
  regained = _first_reaching(after[start:], before)
  rounds = None if regained is None else int(regained["round"]) - shift_round
  return Recovery(before, lowest, rounds)


def _first_reaching(
  rows: Rows, target: float, metric: Metric = ACCURACY
) -> Mapping[str, Any] | None:
  key = f"test_{metric.name}"
  evaluated = (row for row in rows if row.get(key) is not None)
  return next((row for row in evaluated if metric.reaches(row[key], target)), None)
