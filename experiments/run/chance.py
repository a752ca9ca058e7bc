"""Whether a result is better than guessing, and what to try where it is not."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.flags import ignored
from experiments.run.config import Config
from experiments.run.defaults import default_client_lr, default_server_lr

STANDARD_ERRORS = 2.0
_FAR = 3.0  # times the default: a rate to suspect first


def guessing_level(labels: ArrayLike) -> float:
  """Computes the accuracy of always naming the most frequent class.

  Args:
    labels: (num_examples,) int classes of the test set, at least one.
  """
  _, counts = np.unique(np.asarray(labels), return_counts=True)
  return float(counts.max() / counts.sum())


def is_chance(accuracy: float, labels: ArrayLike) -> bool:
  """Tells whether an accuracy is no better than guessing, within two standard errors.

  Args:
    accuracy: on the test set, in [0, 1].
    labels: (num_examples,) int classes of the test set.

  Returns:
    Whether it is at most the `guessing_level` and two standard errors of it; never for a test set
    of one class, where nothing is better than guessing.
  """
  level, num_examples = guessing_level(labels), np.size(labels)
  margin = STANDARD_ERRORS * math.sqrt(level * (1 - level) / num_examples)
  return level < 1 and accuracy <= level + margin


def describe_chance(accuracy: float, labels: ArrayLike) -> dict[str, Any]:
  """Makes the entries of summary.json: `chance_accuracy` and `is_chance`."""
  return {"chance_accuracy": guessing_level(labels), "is_chance": is_chance(accuracy, labels)}


def chance_note(config: Config, summary: Mapping[str, Any]) -> str:
  """Writes the closing line of a run that ends at chance; "" for any other.

  Args:
    config: resolved flags.
    summary: the contents of summary.json.
  """
  if not summary.get("is_chance"):
    return ""
  return (
    f"note: a test accuracy of {summary['test_accuracy']:.4f} is not better than guessing, which"
    f" gives {summary['chance_accuracy']:.4f}; try {' or '.join(_to_try(config))}"
  )


def _to_try(config: Config) -> list[str]:
  rates = (
    ("client_lr", config.client_optimizer, default_client_lr(config)),
    ("server_lr", config.server_optimizer, default_server_lr(config)),
  )
  smaller = [
    f"a smaller --{name} (it is {getattr(config, name):g}; the default of {optimizer} is {usual:g})"
    for name, optimizer, usual in rates
    if getattr(config, name) > _FAR * usual
  ]
  if smaller:
    return smaller
  others = [f"another --client_lr (it is {config.client_lr:g})"]
  others.append(f"more --rounds (they are {config.rounds})")
  if config.dataset.startswith("npz:"):
    others.append(f"another --input_range (it is {','.join(config.input_range)})")
  if config.sparsity > 0 and "sparsity" not in ignored(config):
    others.append(f"a lower --sparsity (it is {config.sparsity:g})")
  return others
