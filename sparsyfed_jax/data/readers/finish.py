"""Data sets made of what readers find."""

from typing import NamedTuple

import jax
import numpy as np

from sparsyfed_jax.data import scaling
from sparsyfed_jax.data.arrays import from_arrays
from sparsyfed_jax.data.dataset import DataError, Dataset, split_80_20
from sparsyfed_jax.data.readers.checks import in_range
from sparsyfed_jax.data.readers.record import Found, Part


class Opened(NamedTuple):
  """A data set, and the names of its clients.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from sparsyfed_jax.data.readers import Found, Part
    >>> found = Found("toy", Part(np.eye(5), np.arange(5) % 2, np.array(list("abcba"))))
    >>> finish(found, jax.random.key(0), "toy").clients
    ('a', 'b', 'c')
  """

  dataset: Dataset
  clients: tuple[str | int, ...] = ()  # by number; those that only test come last


def finish(found: Found, key: jax.Array, where: str, task: str = "") -> Opened:
  """Makes a data set of what a reader found.

  Clients of the training examples are numbered in sorted order; those that only have test examples
  come behind them, also in sorted order, and take part in no round.

  Args:
    found: what the reader found.
    key: a JAX PRNG key; not used where there is a test set.
    where: what is read, for messages.
    task: what is learned; classification by default.

  Raises:
    DataError: the examples cannot be used.
  """
  train, test = found.train, found.test
  if found.classes and not found.is_text and task not in ("", "classification"):
    raise DataError(f"--task={task}: must be classification, as the labels of {where} are classes")
  ids = np.unique(train.clients) if train.clients is not None else np.zeros(0, np.int64)
  others = ids[:0]
  if test is None:
    train, test = _split(train, key, where)
  elif train.clients is not None and test.clients is not None:
    others = np.setdiff1d(test.clients, ids)
  nobody = np.zeros(0, np.int32)
  own = [_numbered(ids, others, part.clients) if len(ids) else nobody for part in (train, test)]
  dataset = _tokens(found, train, test) if found.is_text else None
  dataset = dataset or _examples(found, train, test, where, task)
  dataset = dataset._replace(client_train=own[0], client_test=own[1], num_clients=len(ids))
  return Opened(dataset, (*ids.tolist(), *others.tolist()))


def _split(whole: Part, key: jax.Array, where: str) -> tuple[Part, Part]:
  if len(whole.y) < 2:
    raise DataError(f"{where}: holds {len(whole.y)} example, must be 2 or more to be split 80/20")
  train, test = (
    Part(whole.x[kept], whole.y[kept], None if whole.clients is None else whole.clients[kept])
    for kept in split_80_20(len(whole.y), key)
  )
  return train, test


def _numbered(ids: np.ndarray, others: np.ndarray, clients: np.ndarray | None) -> np.ndarray:
  if clients is None:
    return np.zeros(0, np.int32)
  found = np.searchsorted(ids, clients)
  is_known = ids[np.minimum(found, len(ids) - 1)] == clients
  if len(others):
    found = np.where(is_known, found, len(ids) + np.searchsorted(others, clients))
  return found.astype(np.int32)


def _tokens(found: Found, train: Part, test: Part) -> Dataset:
  return Dataset(
    name=found.name,
    x_train=train.x,
    y_train=train.y,
    x_test=test.x,
    y_test=test.y,
    client_train=np.zeros(0, np.int32),
    num_clients=0,
    num_classes=len(found.classes),
    mean=0.0,
    std=1.0,
    classes=found.classes,
  )


def _examples(found: Found, train: Part, test: Part, where: str, task: str) -> Dataset:
  arrays = {"x_train": train.x, "y_train": train.y, "x_test": test.x, "y_test": test.y}
  dataset = from_arrays(arrays, None, where, found.name, task)
  if found.classes and dataset.kind == "classification":
    for noun, part in (("train", train), ("test", test)):
      in_range(f"{where}: {noun}", part.y, len(found.classes))
    dataset = dataset._replace(
      y_train=train.y.astype(np.int32),
      y_test=test.y.astype(np.int32),
      classes=found.classes,
      num_classes=len(found.classes),
    )
  if found.limits != "auto":
    mean, std = scaling.mean_and_std(found.limits)
    dataset = dataset._replace(mean=mean, std=std)
  return dataset
