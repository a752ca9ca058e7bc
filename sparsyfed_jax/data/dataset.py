"""The type of a data set, and the random split into training and test examples."""

from typing import Any, NamedTuple

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


TASKS = ("classification", "next_token", "multi_label", "regression")


class Signature(NamedTuple):
  """What a model and its task have to know of a data set.

  Example:
    >>> import sparsyfed_jax as sf
    >>> sf.data.digits().signature.input_shape
    (8, 8, 1)
  """

  name: str
  kind: str  # one of `TASKS`
  input_shape: tuple[int, ...]
  num_classes: int
  mean: float
  std: float
  target_means: tuple[float, ...] = ()  # of the training set, where numbers are predicted
  target_stds: tuple[float, ...] = ()  # 1 of those that are always the same
  told: str = ""  # what its y is, for messages


class Dataset(NamedTuple):
  """A data set in host memory, of classes to be told unless its `kind` is another.

  Example:
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> data.num_classes, data.x_train.dtype.name, data.mean
    (10, 'uint8', 8.0)
  """

  name: str
  x_train: np.ndarray  # (n, *shape) uint8, int16 or float32; images NHWC
  # (n,) int32 classes in [0, num_classes); (n, length) int32 tokens that come next, -1 behind the
  # end; (n, num_classes) bool labels; or (n,) or (n, num_classes) float32 numbers.
  y_train: np.ndarray
  x_test: np.ndarray  # (m, *shape), dtype of x_train
  y_test: np.ndarray  # (m, ...) as y_train
  client_train: np.ndarray  # (n,) int32 in [0, num_clients); (0,) without a natural split
  num_clients: int  # natural clients, those without training examples included; 0 without a split
  num_classes: int  # or tokens, labels or numbers to predict
  mean: float  # a model sees (x - mean) / std
  std: float
  # (m,) int32, as client_train; (0,) if unknown. Some sources have clients that only test and take
  # part in no round: their numbers are num_clients and above.
  client_test: np.ndarray = np.zeros(0, np.int32)
  classes: tuple[Label, ...] = ()  # (num_classes,) the labels as the source has them; () if none

  @property
  def kind(self) -> str:
    """The task that the data is for: one of `TASKS`."""
    if self.y_train.dtype.kind == "f":
      return "regression"
    if self.y_train.dtype == np.bool_:
      return "multi_label"
    return "classification" if self.y_train.ndim == 1 else "next_token"

  @property
  def signature(self) -> Signature:
    """What a task has to know, without the examples."""
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    if self.kind == "regression":
      known = self.y_train.reshape(len(self.y_train), -1).astype(np.float64)
      width = known.std(0)
      means = tuple(known.mean(0).tolist())
      stds = tuple(np.where(width > 0, width, 1.0).tolist())
    return Signature(
      name=self.name,
      kind=self.kind,
      input_shape=self.x_train.shape[1:],
      num_classes=self.num_classes,
      mean=self.mean,
      std=self.std,
      target_means=means,
      target_stds=stds,
      told=f"{self.y_train.dtype} of shape {self.y_train.shape}",
    )


def flat(x: Any) -> Any:
  """Makes rows of examples, (n, entries), as they are stored on devices; see `fed.task.of_flat`."""
  return x.reshape(len(x), -1) if x.ndim > 2 else x


def split_80_20(num_examples: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
  """Returns sorted train and test indices, one example in five (at least one) for the test."""
  order = generator(key).permutation(num_examples)
  num_test = max(1, num_examples // 5)
  return np.sort(order[num_test:]), np.sort(order[:num_test])
