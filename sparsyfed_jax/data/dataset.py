"""The type of a data set, and the random split into training and test examples."""

from typing import NamedTuple

import jax
import numpy as np

from sparsyfed_jax.data.draws import generator
from sparsyfed_jax.data.labels import Label


class DataError(ValueError):
  """Data that cannot be used; the one-line message names what is wrong and what would be right.

  Example:
    >>> import sparsyfed_jax as sf
    >>> sf.data.load("npz:missing.npz")
    Traceback (most recent call last):
    sparsyfed_jax.data.dataset.DataError: missing.npz: no such file, must be an .npz file
  """


class Dataset(NamedTuple):
  """A classification data set in host memory.

  Example:
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> data.num_classes, data.x_train.dtype.name, data.mean
    (10, 'uint8', 8.0)
  """

  name: str
  x_train: np.ndarray  # (n, *shape) uint8, int16 or float32; images NHWC
  y_train: np.ndarray  # (n,) int32 in [0, num_classes)
  x_test: np.ndarray  # (m, *shape), dtype of x_train
  y_test: np.ndarray  # (m,) int32
  client_train: np.ndarray  # (n,) int32 in [0, num_clients); (0,) without a natural split
  num_clients: int  # natural clients, those without training examples included; 0 without a split
  num_classes: int
  mean: float  # a model sees (x - mean) / std
  std: float
  client_test: np.ndarray = np.zeros(0, np.int32)  # (m,) int32, as client_train; (0,) if unknown
  classes: tuple[Label, ...] = ()  # (num_classes,) the labels as the source has them


def split_80_20(num_examples: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
  """Returns sorted train and test indices, one example in five (at least one) for the test."""
  order = generator(key).permutation(num_examples)
  num_test = max(1, num_examples // 5)
  return np.sort(order[num_test:]), np.sort(order[:num_test])
