"""Federated evaluation: how good the model is for each client."""

from collections.abc import Sequence

import numpy as np

from experiments.run.data import TestOwners
from sparsyfed_jax.fed.metric import ACCURACY, Metric
from sparsyfed_jax.types import Mean


def owners_at(owners: TestOwners, shift_round: int | None, done: int) -> np.ndarray:
  """Chooses whose the test examples are after `done` rounds; (num_test,) int32."""
  return owners.before if shift_round is None or done <= shift_round else owners.after


def lists_of(owners: np.ndarray, num_clients: int) -> np.ndarray:
  """Lists the test examples of each client, as `Simulation.score_own` takes them.

  Args:
    owners: (num_test,) int32, whose they are.
    num_clients: of the run.

  Returns:
    (num_clients, most) int32, in which num_test fills up what is shorter.
  """
  known = owners[owners < num_clients]  # others take part in no round, and keep nothing
  counts = np.bincount(known, minlength=num_clients)
  lists = np.full((num_clients, max(int(counts.max()), 1)), len(owners), np.int32)
  order = np.argsort(owners, kind="stable")[: len(known)]
  lists[np.arange(lists.shape[1]) < counts[:, None]] = order
  return lists


def client_scores(scores: Mean, owners: np.ndarray, num_clients: int) -> list[float | None]:
  """Computes how good a model is for each client on its own test examples.

  Args:
    scores: of each test example, (num_test,) arrays, such as hits and ones.
    owners: (num_test,) int32, whose they are.
    num_clients: of the run.

  Returns:
    An entry for each client, by its number; None for one without test examples.
  """
  totals, weights = (
    np.bincount(owners, weights=np.asarray(leaf, np.float64), minlength=num_clients)
    for leaf in scores
  )
  return [
    float(total / weight) if weight else None for total, weight in zip(totals, weights, strict=True)
  ]


def spread_columns(metric: Metric) -> tuple[str, ...]:
  """Names the columns that describe a metric over the clients: the worst client, and a tenth."""
  ends = ("min", "p10") if metric.is_higher_better else ("max", "p90")
  return tuple(f"client_{metric.name}_{end}" for end in ("mean", "std", *ends))


def client_spread(scores: Sequence[float | None], metric: Metric = ACCURACY) -> dict[str, float]:
  """Describes the scores of clients: columns of a row of metrics.

  Each client that has one counts alike; at least one has to.
  """
  values = np.array([value for value in scores if value is not None])
  tenth = np.quantile(values, 0.1 if metric.is_higher_better else 0.9)
  described = values.mean(), values.std(), metric.worst(values), tenth
  return dict(zip(spread_columns(metric), map(float, described), strict=True))
