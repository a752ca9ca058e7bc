"""Federated evaluation: how accurate the model is for each client."""

from collections.abc import Sequence

import numpy as np

from experiments.run.data import TestOwners


def owners_at(owners: TestOwners, shift_round: int | None, done: int) -> np.ndarray:
  """Chooses whose the test examples are after `done` rounds; (num_test,) int32."""
  return owners.before if shift_round is None or done <= shift_round else owners.after


def client_accuracies(hits: np.ndarray, owners: np.ndarray, num_clients: int) -> list[float | None]:
  """Computes the accuracy of each client on its own test examples.

  Args:
    hits: (num_test,) bool, which examples the model gets right.
    owners: (num_test,) int32, whose they are.
    num_clients: of the run.

  Returns:
    An entry for each client, by its number; None for one without test examples.
  """
  counts = np.bincount(owners, minlength=num_clients)
  right = np.bincount(owners, weights=hits, minlength=num_clients)
  return [
    float(of_client) if count else None
    for of_client, count in zip(right / np.maximum(counts, 1), counts, strict=True)
  ]


def client_spread(accuracies: Sequence[float | None]) -> dict[str, float]:
  """Describes accuracies of clients: columns of a row of metrics.

  Each client that has an accuracy counts alike; at least one has to.
  """
  values = np.array([value for value in accuracies if value is not None])
  return {
    "client_accuracy_mean": float(values.mean()),
    "client_accuracy_std": float(values.std()),
    "client_accuracy_min": float(values.min()),
    "client_accuracy_p10": float(np.quantile(values, 0.1)),
  }
