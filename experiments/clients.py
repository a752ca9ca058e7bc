"""Federated evaluation: how accurate the model is for each client."""

from collections.abc import Sequence

import numpy as np

from experiments.build import TestOwners


def owners_at(owners: TestOwners, shift_round: int | None, done: int) -> np.ndarray:
  """Chooses whose the test examples are after `done` rounds; (num_test,) int32."""
  return owners.before if shift_round is None or done <= shift_round else owners.after


def client_accuracies(hits: np.ndarray, owners: np.ndarray) -> list[float]:
  """Computes the accuracy of each client that has test examples, in the order of their numbers.

  Args:
    hits: (num_test,) bool, which examples the model gets right.
    owners: (num_test,) int32, whose they are.
  """
  counts = np.bincount(owners)
  right = np.bincount(owners, weights=hits)
  return (right[counts > 0] / counts[counts > 0]).tolist()


def client_spread(accuracies: Sequence[float]) -> dict[str, float]:
  """Describes accuracies of clients, each counting alike: columns of a row of metrics."""
  values = np.asarray(accuracies)
  return {
    "client_accuracy_mean": float(values.mean()),
    "client_accuracy_std": float(values.std()),
    "client_accuracy_min": float(values.min()),
    "client_accuracy_p10": float(np.quantile(values, 0.1)),
  }
