"""The type of a data set, what it is made of, and the random split into training and test."""

from typing import Any, NamedTuple

import jax
import numpy as np

from sparsyfed_jax.data.draws import generator
from sparsyfed_jax.data.labels import Label
from sparsyfed_jax.data.rows import Examples, select
from sparsyfed_jax.data.scaling import Range, mean_and_std


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
  x_train: Examples  # (n, *shape) uint8, int16 or float32; images NHWC; `Rows` of what is in files
  # (n,) int32 classes in [0, num_classes); (n, length) int32 tokens that come next, -1 behind the
  # end; (n, num_classes) bool labels; or (n,) or (n, num_classes) float32 numbers.
  y_train: np.ndarray
  x_test: Examples  # (m, *shape), dtype of x_train
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


class Part(NamedTuple):
  """Examples for training, or for the test.

  Example:
    >>> import numpy as np
    >>> Part(np.zeros((2, 3)), np.array([0, 1]), np.array(["ann", "bob"])).clients.tolist()
    ['ann', 'bob']
  """

  x: Examples  # (n, *shape); of a text (n, length) int32 tokens
  y: np.ndarray  # (n, ...) as `sources.npz` takes it; of a text (n, length) int32, -1 for none
  clients: np.ndarray | None = None  # (n,) integers or strings, whose they are


def dataset_of(
  name: str,
  train: Part,
  test: Part,
  classes: tuple[Label, ...] = (),
  num_clients: int = 0,
  limits: Range | None = None,
  num_classes: int | None = None,
) -> Dataset:
  """Makes a data set of its two parts.

  Args:
    name: of the data set.
    train: as a `Dataset` has them, clients by their numbers.
    test: of the same dtypes.
    classes: the labels as the source has them; () if none.
    num_clients: natural ones.
    limits: the values that a model sees as -1 and 1; None for the values as they are.
    num_classes: or tokens, labels or numbers to predict; that of `classes` by default.
  """
  nobody = np.zeros(0, np.int32)
  owners = [nobody if part.clients is None else part.clients for part in (train, test)]
  mean, std = mean_and_std(limits)
  return Dataset(
    name=name,
    x_train=train.x,
    y_train=train.y,
    x_test=test.x,
    y_test=test.y,
    client_train=owners[0],
    num_clients=num_clients,
    num_classes=len(classes) if num_classes is None else num_classes,
    mean=mean,
    std=std,
    client_test=owners[1],
    classes=classes,
  )


def check_splits(count: int, where: str) -> None:
  """Refuses to split fewer than 2 examples; raises DataError."""
  if count < 2:
    raise DataError(f"{where}: holds {count} example, must be 2 or more to be split 80/20")


def split_80_20(whole: Part, key: jax.Array, where: str) -> tuple[Part, Part]:
  """Splits examples at random, one in five (at least one) for the test; each part keeps the order.

  Args:
    whole: the examples.
    key: a JAX PRNG key; decides which.
    where: what they are called in messages.

  Raises:
    DataError: there are fewer than 2.
  """
  count = len(whole.y)
  check_splits(count, where)
  order = generator(key).permutation(count)
  num_test = max(1, count // 5)
  train, test = (
    Part(
      select(whole.x, rows), whole.y[rows], None if whole.clients is None else whole.clients[rows]
    )
    for rows in (np.sort(order[num_test:]), np.sort(order[:num_test]))
  )
  return train, test
