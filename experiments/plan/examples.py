"""The data sets of plans: read where they are at hand, otherwise known by their shapes alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.run.config import Config, ConfigError
from experiments.run.data import load
from experiments.run.learning import task_of
from sparsyfed_jax.data.dataset import DataError, Dataset


class Shape(NamedTuple):
  """What programs depend on of a classification set."""

  num_train: int
  num_test: int
  example: tuple[int, ...]  # images as height, width, channels
  num_classes: int
  dtype: str = "uint8"


# As tensorflow_datasets' catalogue has them, in the form in which `data.prepared` reads them.
KNOWN = {
  "tfds:cifar10": Shape(50_000, 10_000, (32, 32, 3), 10),
  "tfds:cifar100": Shape(50_000, 10_000, (32, 32, 3), 100),
  "tfds:mnist": Shape(60_000, 10_000, (28, 28, 1), 10),
  "tfds:fashion_mnist": Shape(60_000, 10_000, (28, 28, 1), 10),
  "tfds:svhn_cropped": Shape(73_257, 26_032, (32, 32, 3), 10),
  "tfds:emnist": Shape(697_932, 116_323, (28, 28, 1), 62),
  "tfds:speech_commands": Shape(85_511, 4_890, (8000,), 12, "int16"),
}


def told(values: Sequence[str], num_classes: int) -> Shape:
  """Reads --data_shape, the number of training examples and the shape of one, and --data_classes.

  A fifth as many test examples are taken; numbers of bytes follow from uint8.

  Raises:
    ConfigError: these are not numbers of at least 1.
  """
  text = ",".join(values)
  numbers = [int(value) if value.isascii() and value.isdigit() else 0 for value in values]
  if len(numbers) < 2 or min(numbers) < 1:
    raise ConfigError(
      f"--data_shape={text}: must be the number of training examples and the shape of one, such as"
      " 50000,32,32,3"
    )
  if num_classes < 2:
    raise ConfigError(f"--data_classes={num_classes}: must be at least 2")
  count, *example = numbers
  return Shape(count, max(1, count // 5), tuple(example), num_classes)


def take(config: Config, shape: Shape | None) -> tuple[Dataset, str]:
  """Makes the data set of a plan.

  Args:
    config: checked flags.
    shape: what the command line tells of it; None where it tells nothing.

  Returns:
    The data set, and a line that says what is known of it. Where only its shapes are, all examples
    are one number, which takes no memory, and classes take turns.

  Raises:
    ConfigError: the flags need more of the data than its shapes.
    DataError: it cannot be read, and its shapes are not known.
  """
  if shape is None and config.dataset not in KNOWN:
    try:
      return load(config), f"{config.dataset}, read"
    except DataError as error:
      raise DataError(f"{error}; or tell its shape by --data_shape and --data_classes") from error
  known = shape or KNOWN[config.dataset]
  if task_of(config) != "classification":
    raise ConfigError(f"--task={task_of(config)}: must be classification where data is not read")
  if config.partition == "natural":
    raise ConfigError("--partition=natural: needs the data, of which a plan knows only the shapes")
  described = f"{config.dataset}, {known.num_train} examples of {known.example} {known.dtype}"
  return _pretend(config.dataset, known), f"{described}, not read; classes as if of one size"


def _pretend(name: str, known: Shape) -> Dataset:
  value = np.zeros((), known.dtype)
  middle, width = (127.5, 127.5) if known.dtype == "uint8" else (0.0, 32768.0)

  def classes(count: int) -> np.ndarray:
    return (np.arange(count) % known.num_classes).astype(np.int32)

  return Dataset(
    name=name.partition(":")[2] or name,
    x_train=np.broadcast_to(value, (known.num_train, *known.example)),
    y_train=classes(known.num_train),
    x_test=np.broadcast_to(value, (known.num_test, *known.example)),
    y_test=classes(known.num_test),
    client_train=np.zeros(0, np.int32),
    num_clients=0,
    num_classes=known.num_classes,
    mean=middle,
    std=width,
    classes=tuple(range(known.num_classes)),
  )


def num_values(dataset: Dataset) -> int:
  """Counts the values of an example."""
  return math.prod(dataset.x_train.shape[1:])
