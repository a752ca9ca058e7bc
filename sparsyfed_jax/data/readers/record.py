"""What a reader of a format is, and what it finds."""

import pathlib
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from sparsyfed_jax.data.dataset import Part
from sparsyfed_jax.data.labels import Label
from sparsyfed_jax.data.reading import Reading
from sparsyfed_jax.data.scaling import Range


class Found(NamedTuple):
  """What a reader finds.

  Example:
    >>> import numpy as np
    >>> from sparsyfed_jax.data.readers import Part
    >>> part = Part(np.zeros((2, 3)), np.array([0, 1]))
    >>> Found("toy", part, classes=("cat", "dog")).test is None
    True
  """

  name: str  # of the data set
  train: Part
  test: Part | None = None  # None where the seed is to split `train` 80/20
  classes: tuple[Label, ...] = ()  # of labels 0, 1, ...; () for those that occur
  limits: Range | Literal["auto"] | None = "auto"  # values that a model sees as -1 and 1
  is_text: bool = False


Open: TypeAlias = Callable[[pathlib.Path, Reading, str], Found]


class Reader(NamedTuple):
  """A format of data.

  Example:
    >>> import numpy as np
    >>> def rows(path, reading, task):
    ...   table = np.loadtxt(path, delimiter=",")
    ...   return Found(path.stem, Part(table[:, :-1], table[:, -1].astype(int)))
    >>> Reader("csv", rows).extra
    ''
  """

  name: str  # NAME of --dataset=NAME:PATH
  open: Open  # of the path, how to read it, and the task, "" for the usual one; raises DataError
  extra: str = ""  # of the packages that it needs
  has_text: bool = False  # whether the next character may be what is learned
