"""What a task is judged by: pictures, tables and checks follow from these records."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

STANDARD_ERRORS = 2.0  # by which a result has to be better than guessing


class Chance(NamedTuple):
  """What a model that has learned nothing reaches.

  Example:
    >>> import numpy as np
    >>> of_most_frequent(np.array([0, 1, 1, 1])).level
    0.75
  """

  level: float  # of the best answer that does not look at the example
  limit: float | None  # what has to be passed to be better; None where nothing can be


# Of the targets of the test set.
ChanceOf: TypeAlias = Callable[[np.ndarray], Chance]


class Metric(NamedTuple):
  """A number that says how good a model is.

  Example:
    >>> ACCURACY.is_better(0.9, 0.8), ACCURACY.is_share, ACCURACY.text(0.5)
    (True, True, '50.00 %')
  """

  name: str  # columns are `train_<name>` and `test_<name>`
  title: str  # as in "Test <title>", in lower case
  is_higher_better: bool = True
  low: float = 0
  high: float = 1
  # Of the means by name, such as exp(loss); None for what is itself a mean over the examples.
  of: Callable[[Mapping[str, Any]], Any] | None = None
  chance: ChanceOf | None = None

  @property
  def is_share(self) -> bool:
    """Whether it is shown in percent."""
    return (self.low, self.high) == (0, 1)

  @property
  def factor(self) -> int:
    """By which it is multiplied where it is shown."""
    return 100 if self.is_share else 1

  @property
  def unit(self) -> str:
    """In which it is shown."""
    return "%" if self.is_share else ""

  @property
  def decimals(self) -> int:
    """With which it is shown, in tables."""
    return 2 if self.is_share else 3

  def text(self, value: float) -> str:
    """Writes a value with its unit."""
    return f"{self.factor * value:.{self.decimals}f} {self.unit}".rstrip()

  def is_better(self, value: float, other: float) -> bool:
    """Tells whether a value is better than another."""
    return value > other if self.is_higher_better else value < other

  def reaches(self, value: float, target: float) -> bool:
    """Tells whether a value is at least as good as a target."""
    return value >= target if self.is_higher_better else value <= target

  def worst(self, values: np.ndarray) -> float:
    """Finds the worst of (n,) values."""
    return float(values.min() if self.is_higher_better else values.max())


def of_most_frequent(labels: np.ndarray) -> Chance:
  """Computes the accuracy of always naming the most frequent class.

  Args:
    labels: (n,) int classes of the test set, at least one.

  Example:
    >>> import numpy as np
    >>> of_most_frequent(np.zeros(9, int))
    Chance(level=1.0, limit=None)
  """
  _, counts = np.unique(np.asarray(labels), return_counts=True)
  level = float(counts.max() / counts.sum())
  margin = STANDARD_ERRORS * math.sqrt(level * (1 - level) / np.size(labels))
  return Chance(level, level + margin if level < 1 else None)


ACCURACY = Metric("accuracy", "accuracy", chance=of_most_frequent)
