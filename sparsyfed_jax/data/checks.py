"""Checks of the arguments of a split; a ValueError names one, its value and what would be right."""

import math

import numpy as np


def check_alpha(alpha: float) -> None:
  """Refuses what is no concentration."""
  if not (math.isfinite(alpha) and alpha > 0):
    raise ValueError(f"alpha={alpha}: must be finite and greater than 0")


def check_at_least(name: str, value: int, least: int) -> None:
  """Refuses a number below the least."""
  if value < least:
    raise ValueError(f"{name}={value}: must be at least {least}")


def check_enough(name: str, value: int, num_examples: int) -> None:
  """Refuses a number below 1, or above that of the examples."""
  check_at_least(name, value, 1)
  if value > num_examples:
    raise ValueError(f"{name}={value}: must be at most the number of examples, {num_examples}")


def checked_ids(name: str, ids: np.ndarray) -> np.ndarray:
  """Takes (n,) integers from 0, n at least 1; returns int64."""
  ids = np.asarray(ids)
  if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
    raise ValueError(
      f"{name}: is {ids.dtype} of shape {ids.shape}, must be a vector of at least one integer"
    )
  if ids.min() < 0:
    raise ValueError(f"{name}: holds {ids.min()}, must be at least 0")
  return ids.astype(np.int64)


def checked_distributions(distributions: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Takes weights of at least the classes of `labels`; returns float64 whose rows sum to 1."""
  distributions = np.asarray(distributions, np.float64)
  if distributions.ndim != 2 or not len(distributions):
    raise ValueError(
      f"distributions: has shape {distributions.shape}, must be (num_clients, num_classes)"
    )
  if distributions.shape[1] <= labels.max():
    raise ValueError(
      f"distributions: has {distributions.shape[1]} columns, must have one for every class;"
      f" labels go up to {labels.max()}"
    )
  sums = distributions.sum(1, keepdims=True)
  if not (np.isfinite(sums).all() and (sums > 0).all() and (distributions >= 0).all()):
    raise ValueError("distributions: must be finite, non-negative and with a positive sum per row")
  return distributions / sums
