"""What every source of data returns, and what the sources share."""

from typing import NamedTuple

import jax
import numpy as np

from sparsyfed_jax.data.partition import generator

# What is stored for each dtype that a source may hold, then mean and std: dtypes by kind and item
# size, so that byte order does not matter. uint8 is (x / 255 - 0.5) / 0.5.
PIXELS = {
  "u1": (np.uint8, 127.5, 127.5),
  "i2": (np.int16, 0.0, 32768.0),
  "f2": (np.float32, 0.0, 1.0),
  "f4": (np.float32, 0.0, 1.0),
  "f8": (np.float32, 0.0, 1.0),
}


class DataError(ValueError):
  """Data that cannot be used; the one-line message names what is wrong and what would be right."""


class Dataset(NamedTuple):
  """A classification data set in host memory."""

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


def split_80_20(num_examples: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
  """Returns sorted train and test indices, one example in five (at least one) for the test."""
  order = generator(key).permutation(num_examples)
  num_test = max(1, num_examples // 5)
  return np.sort(order[num_test:]), np.sort(order[:num_test])
