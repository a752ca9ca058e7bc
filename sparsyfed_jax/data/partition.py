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

# Between them a gamma draw and its logarithm are finite.
_LEAST_ALPHA, _LARGEST_ALPHA = 5e-324, 1e307


def generator(key: jax.Array) -> np.random.Generator:
  """Makes a NumPy generator from a JAX PRNG key: equal keys give equal streams."""
  return np.random.default_rng(jax.device_get(jax.random.key_data(key)).ravel())


def dirichlet(
  key: jax.Array, labels: np.ndarray, num_clients: int, alpha: float
) -> list[np.ndarray]:
  """Splits into equal sizes, each client with class frequencies ~ Dirichlet(alpha * C * prior).

  The prior is the frequencies of the C classes in `labels`, so that with a large alpha every client
  has them too. Where all classes are equally frequent this is `dirichlet_symmetric`, to the bit.

  `concentrations`, `class_distributions` and `by_distribution`, the latter two with one half of the
  split key each; call them yourself to split a test set by the same class frequencies.

  Args:
    key: a JAX PRNG key.
    labels: (n,) integer classes, from 0.
    num_clients: number of clients, at most n.
    alpha: mean concentration of a class, finite and > 0; small for few classes per client, large
      for all clients alike.

  Returns:
    `num_clients` sorted int32 index arrays; the first n % num_clients hold one example more.
  """
  labels = _checked_ids("labels", labels)
  _check_alpha(alpha)
  return _by_dirichlet(key, labels, num_clients, concentrations(labels, alpha))


def dirichlet_symmetric(
  key: jax.Array, labels: np.ndarray, num_clients: int, alpha: float
) -> list[np.ndarray]:
  """Splits into equal sizes, each client with class frequencies ~ Dirichlet(alpha), as SparsyFed.

  Every client asks for all classes alike on average, whatever their frequencies in `labels`. Rare
  classes are soon used up, and the last clients get what is left: frequent classes alone.

  Arguments and result are those of `dirichlet`.
  """
  labels = _checked_ids("labels", labels)
  _check_alpha(alpha)
  return _by_dirichlet(key, labels, num_clients, np.full(labels.max() + 1, alpha))


def _by_dirichlet(
  key: jax.Array, labels: np.ndarray, num_clients: int, alphas: np.ndarray
) -> list[np.ndarray]:
  key_distributions, key_draws = jax.random.split(key)
  distributions = class_distributions(key_distributions, num_clients, len(alphas), alphas)
  return by_distribution(key_draws, labels, distributions)


def concentrations(labels: np.ndarray, alpha: float) -> np.ndarray:
  """Computes alpha * C * prior, of the C classes that occur and their frequencies in `labels`.

  Args:
    labels: (n,) integer classes, from 0.
    alpha: mean of the result over the classes that occur, finite and > 0.

  Returns:
    (labels.max() + 1,) float64; exactly alpha for all classes of the mean frequency, 0 for a class
    without examples.
  """
  counts = np.bincount(_checked_ids("labels", labels))
  _check_alpha(alpha)
  # C * count / n first: it is exactly 1 where the classes are balanced.
  ratios = np.count_nonzero(counts) * counts / counts.sum()
  with np.errstate(over="ignore", under="ignore"):
    return np.where(counts > 0, np.clip(alpha * ratios, _LEAST_ALPHA, _LARGEST_ALPHA), 0.0)


def class_distributions(
  key: jax.Array, num_clients: int, num_classes: int, alpha: float | np.ndarray
) -> np.ndarray:
  """Draws one distribution over the classes per client from a Dirichlet distribution.

  Args:
    key: a JAX PRNG key.
    num_clients: number of rows, at least 1.
    num_classes: number of columns, at least 1.
    alpha: concentration, finite and > 0; or (num_classes,) float64, one for each class, of which
      those that are 0 never come up.

  Returns:
    (num_clients, num_classes) float64; rows sum to 1 and are never NaN, however small alpha is.
  """
  _check_at_least("num_clients", num_clients, 1)
  _check_at_least("num_classes", num_classes, 1)
  alphas = np.broadcast_to(np.asarray(alpha, np.float64), (num_classes,))
  if not (np.isfinite(alphas).all() and (alphas >= 0).all() and alphas.any()):
    raise ValueError(f"alpha={alpha}: must be finite and greater than 0")
  return _dirichlet_rows(generator(key), num_clients, alphas)


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
  labels = _checked_ids("labels", labels)
  distributions = _checked_distributions(distributions, labels)
  num_clients, num_classes = distributions.shape
  _check_enough("num_clients", num_clients, len(labels))
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
  labels = _checked_ids("labels", labels)
  _check_at_least("num_clients", num_clients, 1)
  _check_alpha(alpha)
  rng = generator(key)
  pools = _shuffled_by_class(rng, labels, labels.max() + 1)
  proportions = _dirichlet_rows(rng, len(pools), np.full(num_clients, alpha))
  pieces = []
  for pool, row in zip(pools, proportions, strict=True):
    cuts = np.rint(np.cumsum(row[:-1]) * len(pool)).astype(np.int64)
    pieces.append(np.split(pool, cuts))
  return _sorted(np.concatenate(piece) for piece in zip(*pieces, strict=True))


def iid(key: jax.Array, num_examples: int, num_clients: int) -> list[np.ndarray]:
  """Splits at random into equal sizes.

  Args:
    key: a JAX PRNG key.
    num_examples: size of the training set.
    num_clients: number of clients, at most `num_examples`.

  Returns:
    `num_clients` sorted int32 index arrays, sizes differing by at most one.
  """
  _check_enough("num_clients", num_clients, num_examples)
  return _sorted(np.array_split(generator(key).permutation(num_examples), num_clients))


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
  labels = _checked_ids("labels", labels)
  _check_enough("num_clients", num_clients, len(labels))
  _check_at_least("shards_per_client", shards_per_client, 1)
  num_shards = num_clients * shards_per_client
  _check_enough("num_clients * shards_per_client", num_shards, len(labels))
  pieces = np.array_split(np.argsort(labels, kind="stable"), num_shards)
  hands = generator(key).permutation(num_shards).reshape(num_clients, shards_per_client)
  return _sorted(np.concatenate([pieces[i] for i in hand]) for hand in hands)


def power_law(
  key: jax.Array, num_examples: int, num_clients: int, exponent: float
) -> list[np.ndarray]:
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
  _check_at_least("num_examples", num_examples, 1)
  _check_at_least("num_clients", num_clients, 1)
  if not (math.isfinite(exponent) and exponent >= 0):
    raise ValueError(f"exponent={exponent}: must be finite and at least 0")
  rng = generator(key)
  least = int(num_examples >= num_clients)
  law = np.cumsum(np.arange(1.0, num_clients + 1) ** -exponent)
  # Rounding the running sum, not the sizes, keeps the total exact.
  ends = np.rint(law / law[-1] * (num_examples - least * num_clients)).astype(np.int64)
  sizes = rng.permutation(least + np.diff(ends, prepend=0))
  return _sorted(np.split(rng.permutation(num_examples), np.cumsum(sizes)[:-1]))


def natural(clients: np.ndarray, num_clients: int) -> list[np.ndarray]:
  """Groups the examples by the client that comes with them; needs no key.

  Args:
    clients: (n,) integer client of each example, in [0, num_clients).
    num_clients: number of clients; one without examples gets an empty array.

  Returns:
    `num_clients` sorted int32 index arrays, some possibly empty.
  """
  clients = _checked_ids("clients", clients)
  _check_at_least("num_clients", num_clients, 1)
  if clients.max() >= num_clients:
    raise ValueError(f"clients: holds id {clients.max()}, must be below num_clients={num_clients}")
  order = np.argsort(clients, kind="stable")
  return _sorted(np.split(order, np.cumsum(np.bincount(clients, minlength=num_clients))[:-1]))


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


def stack_clients(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Pads the index arrays of a split to one rectangle, the form a compiled round gathers from.

  Args:
    parts: one index array per client, at least one client.

  Returns:
    Indices, (num_clients, n_max) int32, rows padded with 0 (a valid index: mask by size), where
    n_max is the largest size, at least 1; and sizes, (num_clients,) int32.
  """
  _check_at_least("len(parts)", len(parts), 1)
  sizes = np.array([len(part) for part in parts], np.int32)
  indices = np.zeros((len(parts), max(1, sizes.max())), np.int32)
  for row, part in zip(indices, parts, strict=True):
    row[: len(part)] = part
  return indices, sizes


def _dirichlet_rows(rng: np.random.Generator, rows: int, alphas: np.ndarray) -> np.ndarray:
  """Draws Dirichlet rows in log space: with a small alpha plain gamma draws underflow to 0 / 0.

  Gamma(alpha) = Gamma(alpha + 1) * U^(1 / alpha), here both sides to the power min(alphas, 1).
  """
  shape = (rows, len(alphas))
  power = min(float(alphas[alphas > 0].min()), 1.0)
  logs = power * np.log(rng.standard_gamma(alphas + 1, shape))
  with np.errstate(divide="ignore", over="ignore"):  # -inf where alpha is 0
    logs -= power / alphas * rng.standard_exponential(shape)
    weights = np.exp((logs - logs.max(1, keepdims=True)) / power)
  return weights / weights.sum(1, keepdims=True)


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


def _check_alpha(alpha: float) -> None:
  if not (math.isfinite(alpha) and alpha > 0):
    raise ValueError(f"alpha={alpha}: must be finite and greater than 0")


def _check_at_least(name: str, value: int, least: int) -> None:
  if value < least:
    raise ValueError(f"{name}={value}: must be at least {least}")


def _check_enough(name: str, value: int, num_examples: int) -> None:
  _check_at_least(name, value, 1)
  if value > num_examples:
    raise ValueError(f"{name}={value}: must be at most the number of examples, {num_examples}")


def _checked_ids(name: str, ids: np.ndarray) -> np.ndarray:
  ids = np.asarray(ids)
  if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
    raise ValueError(
      f"{name}: is {ids.dtype} of shape {ids.shape}, must be a vector of at least one integer"
    )
  if ids.min() < 0:
    raise ValueError(f"{name}: holds {ids.min()}, must be at least 0")
  return ids.astype(np.int64)


def _checked_distributions(distributions: np.ndarray, labels: np.ndarray) -> np.ndarray:
  distributions = np.asarray(distributions, np.float64)
  if distributions.ndim != 2 or not len(distributions):
    raise ValueError(
      f"distributions: has shape {distributions.shape}, must be (num_clients, num_classes)"
    )
  if distributions.shape[1] <= labels.max():
    raise ValueError(
      f"distributions: has {distributions.shape[1]} columns, must have one for every class;"
      f" labels go up to {labels.max()}"
    )
  sums = distributions.sum(1, keepdims=True)
  if not (np.isfinite(sums).all() and (sums > 0).all() and (distributions >= 0).all()):
    raise ValueError("distributions: must be finite, non-negative and with a positive sum per row")
  return distributions / sums
