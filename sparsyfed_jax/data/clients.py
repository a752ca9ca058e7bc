"""Data sets split over clients, by a seed: the input of a simulation.

The splits are those of `partition`, with the key that a run with the same seed uses.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsyfed_jax.data import partition, sources
from sparsyfed_jax.data.characters import cut, from_pieces
from sparsyfed_jax.data.dataset import Dataset
from sparsyfed_jax.data.lists import sizes_of
from sparsyfed_jax.data.reading import READING
from sparsyfed_jax.data.sources import InputRange
from sparsyfed_jax.types import make_keys


class Clients(NamedTuple):
  """A data set and its split over clients.

  A split of your own is as good as those below: any index arrays will do, and examples may belong
  to several clients or to none.

  Example:
    >>> import numpy as np
    >>> data = digits(seed=0)
    >>> halves = Clients(data, np.array_split(np.arange(len(data.y_train)), 2))
    >>> halves.sizes
    array([719, 719])
  """

  data: Dataset
  parts: Sequence[np.ndarray]  # of each client, the (size,) indices of its training examples

  @property
  def sizes(self) -> np.ndarray:
    """The number of examples of each client; (num_clients,) int."""
    return sizes_of(self.parts).astype(int)


def load(
  name: str, seed: int = 0, input_range: InputRange = "auto", task: str = "", **reading: Any
) -> Dataset:
  """Loads a data set by its name.

  Args:
    name: 'digits', 'npz:PATH', 'folder:PATH' of .npy files, 'text:PATH', 'tfds:NAME', a set that
      tensorflow_datasets has prepared, or 'FORMAT:PATH' with a format of `sources.READERS`.
    seed: decides the train/test split where the source has none.
    input_range: the stored values that a model sees as -1 and 1; None for the values as they are,
      'auto' for what the training set suggests.
    task: what is learned; by default of a text the next token, and of others classification.
    **reading: of a text: `clients` ("blocks", "chapters" or "column"), `num_clients`, `pattern`,
      `columns` and `sequence_length`.

  Raises:
    DataError: the name is unknown or the data cannot be used.

  Example:
    >>> load("digits", seed=1).x_test.shape
    (359, 8, 8, 1)
  """
  key = make_keys(jax.random.key(seed)).split
  return sources.load(name, key, input_range, task, READING._replace(**reading))


def digits(seed: int = 0) -> Dataset:
  """Loads scikit-learn's handwritten digits: 1797 images (8, 8, 1) uint8 from 0 to 16, 10 classes.

  Args:
    seed: decides the random 80/20 split into training and test examples.

  Example:
    >>> digits(seed=0).x_train.shape
    (1438, 8, 8, 1)
  """
  return load("digits", seed)


def iid(data: Dataset, num_clients: int = 100, seed: int = 0) -> Clients:
  """Splits the training examples at random into equal sizes.

  Args:
    data: whose training examples are split.
    num_clients: at most the number of training examples.
    seed: of the split.

  Example:
    >>> iid(digits(), num_clients=4).sizes
    array([360, 360, 359, 359])
  """
  key = make_keys(jax.random.key(seed)).partition
  return Clients(data, partition.iid(key, len(data.y_train), num_clients))


def dirichlet(data: Dataset, num_clients: int = 100, alpha: float = 1.0, seed: int = 0) -> Clients:
  """Splits the training examples into equal sizes and skewed classes.

  The class frequencies of a client are drawn from Dirichlet(alpha * C * prior), of the C classes
  and their frequencies in the training set (Hsu et al. 2019, arXiv 1909.06335).

  Args:
    data: whose training examples are split.
    num_clients: at most the number of training examples.
    alpha: concentration, positive: 1000 makes all clients alike, 0.1 gives each a few classes.
    seed: of the split.

  Example:
    >>> clients = dirichlet(digits(), num_clients=100, alpha=0.1, seed=0)
    >>> len(set(clients.data.y_train[clients.parts[0]])) < 5
    True
  """
  key = make_keys(jax.random.key(seed)).partition
  return Clients(data, partition.dirichlet(key, data.y_train, num_clients, alpha))


def dirichlet_symmetric(
  data: Dataset, num_clients: int = 100, alpha: float = 1.0, seed: int = 0
) -> Clients:
  """Splits like `dirichlet`, with class frequencies ~ Dirichlet(alpha), as SparsyFed's paper does.

  Where classes are equally frequent it is `dirichlet`; where not, rare classes are soon used up,
  and the last clients get frequent ones alone. Arguments are those of `dirichlet`.

  Example:
    >>> dirichlet_symmetric(digits(), num_clients=3).sizes
    array([480, 479, 479])
  """
  key = make_keys(jax.random.key(seed)).partition
  return Clients(data, partition.dirichlet_symmetric(key, data.y_train, num_clients, alpha))


def dirichlet_per_class(
  data: Dataset, num_clients: int = 100, alpha: float = 1.0, seed: int = 0
) -> Clients:
  """Splits each class in proportions ~ Dirichlet(alpha), so that sizes differ too.

  Yurochkin et al., ICML 2019, arXiv 1905.12022. A client may be left without examples. Arguments
  are those of `dirichlet`.

  Example:
    >>> int(dirichlet_per_class(digits(), num_clients=3).sizes.sum())
    1438
  """
  key = make_keys(jax.random.key(seed)).partition
  return Clients(data, partition.dirichlet_per_class(key, data.y_train, num_clients, alpha))


def shards(
  data: Dataset, num_clients: int = 100, shards_per_client: int = 2, seed: int = 0
) -> Clients:
  """Sorts by label and deals equal shards at random (McMahan et al. 2017, arXiv 1602.05629).

  Args:
    data: whose training examples are split.
    num_clients: of whom each gets `shards_per_client` shards.
    shards_per_client: few shards mean few classes per client.
    seed: of the split.

  Example:
    >>> shards(digits(), num_clients=2, shards_per_client=3).sizes
    array([719, 719])
  """
  key = make_keys(jax.random.key(seed)).partition
  return Clients(data, partition.shards(key, data.y_train, num_clients, shards_per_client))


def power_law(
  data: Dataset, num_clients: int = 100, exponent: float = 1.0, seed: int = 0
) -> Clients:
  """Splits at random into sizes proportional to rank^-exponent, with ranks shuffled.

  Args:
    data: whose training examples are split.
    num_clients: each of whom gets at least one example where there are enough.
    exponent: at least 0; 0 gives equal numbers.
    seed: of the split.

  Example:
    >>> sorted(power_law(digits(), num_clients=3).sizes.tolist())
    [262, 392, 784]
  """
  key = make_keys(jax.random.key(seed)).partition
  return Clients(data, partition.power_law(key, len(data.y_train), num_clients, exponent))


def natural(data: Dataset) -> Clients:
  """Splits by the client that comes with each example.

  Args:
    data: whose `client_train` says so.

  Raises:
    DataError: the data names no clients.

  Example:
    >>> import numpy as np
    >>> x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    >>> data = from_arrays(x, y, x, y, client_train=np.array(["ann", "bob", "bob", "bob"]))
    >>> natural(data).sizes
    array([1, 3])
  """
  if not data.num_clients:
    raise sources.DataError(f"{data.name}: has no clients of its own; name them in client_train")
  return Clients(data, partition.natural(data.client_train, data.num_clients))


def from_arrays(
  x_train: np.ndarray,
  y_train: np.ndarray,
  x_test: np.ndarray,
  y_test: np.ndarray,
  client_train: np.ndarray | None = None,
  client_test: np.ndarray | None = None,
  name: str = "data",
  task: str = "classification",
) -> Dataset:
  """Makes a data set of arrays, checked as those of an .npz file are.

  Values are scaled by what the training examples suggest: bytes, for instance, to [-1, 1].

  Args:
    x_train: `(n, *shape)` booleans, integers or floats; images (n, h, w, channels) or (n, h, w).
    y_train: (n,) labels, integers or strings; (n, labels) of 0 and 1 for multi_label; (n,) or
      (n, numbers) for regression.
    x_test: `(m, *shape)`.
    y_test: (m,).
    client_train: (n,) client of each training example, integers or strings; None if unknown.
    client_test: (m,) as `client_train`.
    name: of the data set.
    task: what is learned: classification, multi_label or regression.

  Raises:
    DataError: an array cannot be used; the message names it and what would be right.

  Example:
    >>> import numpy as np
    >>> x, y = np.eye(4, dtype=np.uint8), np.array(["cat", "dog", "cat", "dog"])
    >>> data = from_arrays(x, y, x, y)
    >>> data.num_classes, data.classes
    (2, ('cat', 'dog'))
  """
  arrays = {
    "x_train": x_train,
    "y_train": y_train,
    "x_test": x_test,
    "y_test": y_test,
    "client_train": client_train,
    "client_test": client_test,
  }
  given = {key: np.asarray(array) for key, array in arrays.items() if array is not None}
  return sources.from_arrays(given, None, name, name, task)


def text(
  content: str,
  num_clients: int = 100,
  pattern: str | None = None,
  sequence_length: int = 64,
  name: str = "text",
) -> Dataset:
  r"""Makes sequences of the characters of a text, of which the next one is to be predicted.

  The last fifth of each client's part is its test set, and the characters of the other four fifths
  are the vocabulary. `natural` splits the data set by the clients.

  Args:
    content: the text.
    num_clients: as many blocks of lines, of nearly equal numbers, are the clients.
    pattern: a regular expression that finds the headings of chapters, which are then the clients.
    sequence_length: characters of an example.
    name: of the data set.

  Raises:
    DataError: an argument cannot be obeyed; the message names it and what would be right.

  Example:
    >>> lines = "one\ntwo\nthree\nfour and five\n"
    >>> data = text(lines, num_clients=2, sequence_length=4)
    >>> data.kind, natural(data).sizes, "".join(data.classes[2:])
    ('next_token', array([2, 4]), ' adefhnortuw')
  """
  clients = "blocks" if pattern is None else "chapters"
  reading = READING._replace(
    clients=clients, num_clients=num_clients, pattern=pattern or "", sequence_length=sequence_length
  )
  return from_pieces(cut(content, reading, name), sequence_length, name)
