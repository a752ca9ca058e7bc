"""Data sets made of what readers find."""

from typing import NamedTuple

import jax
import numpy as np

from sparsyfed_jax.data.arrays import from_arrays
from sparsyfed_jax.data.dataset import DataError, Dataset, Part, dataset_of, split_80_20
from sparsyfed_jax.data.readers.checks import in_range
from sparsyfed_jax.data.readers.record import Found


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
    train, test = split_80_20(train, key, where)
  elif train.clients is not None and test.clients is not None:
    others = np.setdiff1d(test.clients, ids)
  nobody = np.zeros(0, np.int32)
  own = [_numbered(ids, others, part.clients) if len(ids) else nobody for part in (train, test)]
  if found.is_text:
    dataset = dataset_of(found.name, train, test, found.classes)
  else:
    dataset = _examples(found, train, test, where, task)
  dataset = dataset._replace(client_train=own[0], client_test=own[1], num_clients=len(ids))
  return Opened(dataset, (*ids.tolist(), *others.tolist()))


def in_memory(found: Found) -> Found:
  """Reads the examples that a reader has left in their files."""
  train, test = (part and part._replace(x=np.asarray(part.x)) for part in (found.train, found.test))
  assert train is not None
  return found._replace(train=train, test=test)


def _numbered(ids: np.ndarray, others: np.ndarray, clients: np.ndarray | None) -> np.ndarray:
  if clients is None:
    return np.zeros(0, np.int32)
  found = np.searchsorted(ids, clients)
  is_known = ids[np.minimum(found, len(ids) - 1)] == clients
  if len(others):
    found = np.where(is_known, found, len(ids) + np.searchsorted(others, clients))
  return found.astype(np.int32)


def _examples(found: Found, train: Part, test: Part, where: str, task: str) -> Dataset:
  arrays = {"x_train": train.x, "y_train": train.y, "x_test": test.x, "y_test": test.y}
  dataset = from_arrays(arrays, None, where, found.name, task, found.limits)
  if not found.classes or dataset.kind != "classification":
    return dataset
  for noun, part in (("train", train), ("test", test)):
    in_range(f"{where}: {noun}", part.y, len(found.classes))
  return dataset._replace(
    y_train=train.y.astype(np.int32),
    y_test=test.y.astype(np.int32),
    classes=found.classes,
    num_classes=len(found.classes),
  )
