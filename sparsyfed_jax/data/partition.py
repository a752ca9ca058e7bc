"""Splits of a training set over clients, as index arrays.

Every split returns one sorted int32 array of example indices per client and gives each example to
exactly one client. Same key, same split. An argument out of range is a ValueError that names it,
the value found and what would be right.

The label splits follow Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification", 2019, https://arxiv.org/abs/1909.06335 (one class
distribution per client, q ~ Dirichlet(a p) with the prior p over the classes; our alpha is their a
divided by the number of classes), SparsyFed, https://arxiv.org/abs/2504.05153 (the same without the
prior: one alpha for all classes), Yurochkin et al.,
"Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019,
https://arxiv.org/abs/1905.12022 (one client distribution per class) and McMahan et al.,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629 (shards).
"""

import math
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from sparsyfed_jax.data.checks import (
  check_alpha,
  check_at_least,
  check_enough,
  checked_distributions,
  checked_ids,
)
from sparsyfed_jax.data.draws import (
  class_distributions,
  concentrations,
  dirichlet_rows,
  generator,
)
from sparsyfed_jax.data.lists import Parts, group


def dirichlet(
  key: jax.Array, labels: np.ndarray, num_clients: int, alpha: float
) -> list[np.ndarray]:
  """Splits into equal sizes, each client with class frequencies ~ Dirichlet(alpha * C * prior).

  The prior is the frequencies of the C classes in `labels`, so that with a large alpha every client
  has them too. Where all classes are equally frequent this is `dirichlet_symmetric`, to the bit.

  `draws.concentrations`, `draws.class_distributions` and `by_distribution`, the latter two with one
  half of the split key each; call them yourself to split a test set by the same class frequencies.

  Args:
    key: a JAX PRNG key.
    labels: (n,) integer classes, from 0.
    num_clients: number of clients, at most n.
    alpha: mean concentration of a class, finite and > 0; small for few classes per client, large
      for all clients alike.

  Returns:
    `num_clients` sorted int32 index arrays; the first n % num_clients hold one example more.
  """
  labels = checked_ids("labels", labels)
  check_alpha(alpha)
  return _by_dirichlet(key, labels, num_clients, concentrations(labels, alpha))


def dirichlet_symmetric(
  key: jax.Array, labels: np.ndarray, num_clients: int, alpha: float
) -> list[np.ndarray]:
  """Splits into equal sizes, each client with class frequencies ~ Dirichlet(alpha), as SparsyFed.

  Every client asks for all classes alike on average, whatever their frequencies in `labels`. Rare
  classes are soon used up, and the last clients get what is left: frequent classes alone.

  Arguments and result are those of `dirichlet`.
  """
  labels = checked_ids("labels", labels)
  check_alpha(alpha)
  return _by_dirichlet(key, labels, num_clients, np.full(labels.max() + 1, alpha))


def _by_dirichlet(
  key: jax.Array, labels: np.ndarray, num_clients: int, alphas: np.ndarray
) -> list[np.ndarray]:
  key_distributions, key_draws = jax.random.split(key)
  distributions = class_distributions(key_distributions, num_clients, len(alphas), alphas)
  return by_distribution(key_draws, labels, distributions)


def by_distribution(
  key: jax.Array, labels: np.ndarray, distributions: np.ndarray
) -> list[np.ndarray]:
  """Splits into equal sizes, each client drawing its classes from a distribution of its own.

  Client by client: draw a class, take a random unused example of it. A class that has run out gets
  probability 0, the others 1e-5 more, renormalised. Late clients thus get what is left over.

  Args:
    key: a JAX PRNG key.
    labels: (n,) integer classes, from 0.
    distributions: (num_clients, num_classes) weights >= 0, rows with a positive sum;
      num_clients <= n.

  Returns:
    `num_clients` sorted int32 index arrays; the first n % num_clients hold one example more.
  """
  labels = checked_ids("labels", labels)
  distributions = checked_distributions(distributions, labels)
  num_clients, num_classes = distributions.shape
  check_enough("num_clients", num_clients, len(labels))
  rng = generator(key)
  pools = _shuffled_by_class(rng, labels, num_classes)
  share, remainder = divmod(len(labels), num_clients)
  parts = []
  for client, weights in enumerate(distributions):
    wanted = share + (client < remainder)
    taken = []
    while wanted:
      left = np.array([len(pool) for pool in pools])
      weights = _without_empty(weights, left)
      classes = rng.choice(num_classes, wanted, p=weights)
      classes = classes[: _draws_until_empty(classes, left)]
      for c, count in enumerate(np.bincount(classes, minlength=num_classes)):
        taken.append(pools[c][:count])
        pools[c] = pools[c][count:]
      wanted -= len(classes)
    parts.append(np.concatenate(taken))
  return _sorted(parts)


def dirichlet_per_class(
  key: jax.Array, labels: np.ndarray, num_clients: int, alpha: float
) -> list[np.ndarray]:
  """Splits each class over the clients in proportions drawn from Dirichlet(alpha).

  Sizes vary, and a client may be empty when alpha is small or examples are few.

  Args:
    key: a JAX PRNG key.
    labels: (n,) integer classes, from 0.
    num_clients: number of clients.
    alpha: concentration, finite and > 0.

  Returns:
    `num_clients` sorted int32 index arrays, some possibly empty.
  """
  labels = checked_ids("labels", labels)
  check_at_least("num_clients", num_clients, 1)
  check_alpha(alpha)
  rng = generator(key)
  pools = _shuffled_by_class(rng, labels, labels.max() + 1)
  proportions = dirichlet_rows(rng, len(pools), np.full(num_clients, alpha))
  pieces = []
  for pool, row in zip(pools, proportions, strict=True):
    cuts = np.rint(np.cumsum(row[:-1]) * len(pool)).astype(np.int64)
    pieces.append(np.split(pool, cuts))
  return _sorted(np.concatenate(piece) for piece in zip(*pieces, strict=True))


def iid(key: jax.Array, num_examples: int, num_clients: int) -> Parts:
  """Splits at random into equal sizes.

  Args:
    key: a JAX PRNG key.
    num_examples: size of the training set.
    num_clients: number of clients, at most `num_examples`.

  Returns:
    `num_clients` sorted int32 index arrays, sizes differing by at most one.
  """
  check_enough("num_clients", num_clients, num_examples)
  sizes = num_examples // num_clients + (np.arange(num_clients) < num_examples % num_clients)
  return _dealt(generator(key).permutation(num_examples), sizes)


def shards(
  key: jax.Array, labels: np.ndarray, num_clients: int, shards_per_client: int
) -> list[np.ndarray]:
  """Sorts by label, cuts into nearly equal shards and deals them at random (McMahan et al. 2017).

  Args:
    key: a JAX PRNG key.
    labels: (n,) integer classes, from 0.
    num_clients: number of clients.
    shards_per_client: shards each client gets; num_clients * shards_per_client <= n.

  Returns:
    `num_clients` sorted int32 index arrays, sizes within `shards_per_client` of each other.
  """
  labels = checked_ids("labels", labels)
  check_enough("num_clients", num_clients, len(labels))
  check_at_least("shards_per_client", shards_per_client, 1)
  num_shards = num_clients * shards_per_client
  check_enough("num_clients * shards_per_client", num_shards, len(labels))
  pieces = np.array_split(np.argsort(labels, kind="stable"), num_shards)
  hands = generator(key).permutation(num_shards).reshape(num_clients, shards_per_client)
  return _sorted(np.concatenate([pieces[i] for i in hand]) for hand in hands)


def power_law(key: jax.Array, num_examples: int, num_clients: int, exponent: float) -> Parts:
  """Splits at random into sizes proportional to rank^-exponent, ranks shuffled over clients.

  Each client first gets one example where there are enough; the rest follows the law.

  Args:
    key: a JAX PRNG key.
    num_examples: size of the training set.
    num_clients: number of clients; those beyond `num_examples` stay empty.
    exponent: finite and >= 0; 0 gives equal sizes.

  Returns:
    `num_clients` sorted int32 index arrays.
  """
  check_at_least("num_examples", num_examples, 1)
  check_at_least("num_clients", num_clients, 1)
  if not (math.isfinite(exponent) and exponent >= 0):
    raise ValueError(f"exponent={exponent}: must be finite and at least 0")
  rng = generator(key)
  least = int(num_examples >= num_clients)
  law = np.cumsum(np.arange(1.0, num_clients + 1) ** -exponent)
  # Rounding the running sum, not the sizes, keeps the total exact.
  ends = np.rint(law / law[-1] * (num_examples - least * num_clients)).astype(np.int64)
  sizes = rng.permutation(least + np.diff(ends, prepend=0))
  return _dealt(rng.permutation(num_examples), sizes)


def natural(clients: np.ndarray, num_clients: int) -> Parts:
  """Groups the examples by the client that comes with them; needs no key.

  Args:
    clients: (n,) integer client of each example, in [0, num_clients).
    num_clients: number of clients; one without examples gets an empty array.

  Returns:
    `num_clients` sorted int32 index arrays, some possibly empty.
  """
  clients = checked_ids("clients", clients)
  check_at_least("num_clients", num_clients, 1)
  if clients.max() >= num_clients:
    raise ValueError(f"clients: holds id {clients.max()}, must be below num_clients={num_clients}")
  return group(clients, num_clients)


def like_training(key: jax.Array, labels: np.ndarray, training: Sequence[np.ndarray]) -> np.ndarray:
  """Deals a test set by the class frequencies of the clients' training examples.

  Each example goes to one client, and clients get equal numbers, by `by_distribution`.

  Args:
    key: a JAX PRNG key.
    labels: (m,) integer classes of the test set, from 0.
    training: the labels of each client's training examples; a client without any gets all classes
      alike.

  Returns:
    (m,) int32, whose each test example is.
  """
  num_classes = 1 + max(int(part.max(initial=0)) for part in (labels, *training))
  counts = np.stack([np.bincount(part, minlength=num_classes) for part in training])
  weights = np.where(counts.sum(1, keepdims=True) > 0, counts, 1)
  owners = np.zeros(len(labels), np.int32)
  for client, part in enumerate(by_distribution(key, labels, weights)):
    owners[part] = client
  return owners


def _dealt(order: np.ndarray, sizes: np.ndarray) -> Parts:
  """Gives each client as many examples as it is due, of those in an order."""
  owners = np.empty(len(order), np.int32)
  owners[order] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
  return group(owners, len(sizes))


def _shuffled_by_class(
  rng: np.random.Generator, labels: np.ndarray, num_classes: int
) -> list[np.ndarray]:
  """Groups the example indices by class, in random order within each."""
  order = rng.permutation(len(labels))
  order = order[np.argsort(labels[order], kind="stable")]
  return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])


def _without_empty(weights: np.ndarray, left: np.ndarray) -> np.ndarray:
  """Takes the classes of which nothing is left out of the (classes,) probabilities."""
  if left.all():
    return weights
  weights = np.where(left > 0, weights + 1e-5, 0.0)
  return weights / weights.sum()


def _draws_until_empty(classes: np.ndarray, left: np.ndarray) -> int:
  """Counts the draws up to the first that takes the last example of its class."""
  counts = np.bincount(classes, minlength=len(left))
  emptied = np.flatnonzero((left > 0) & (counts >= left))
  ends = [int(np.flatnonzero(classes == c)[left[c] - 1]) + 1 for c in emptied]
  return min(ends, default=len(classes))


def _sorted(parts: Iterable[np.ndarray]) -> list[np.ndarray]:
  return [np.sort(part).astype(np.int32) for part in parts]
