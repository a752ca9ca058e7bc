"""Random draws on the host: NumPy generators of JAX's keys, and class frequencies of clients."""

import jax
import numpy as np

from sparsyfed_jax.data.checks import check_alpha, check_at_least, checked_ids

# Between them a gamma draw and its logarithm are finite.
_LEAST_ALPHA, _LARGEST_ALPHA = 5e-324, 1e307


def generator(key: jax.Array) -> np.random.Generator:
  """Makes a NumPy generator from a JAX PRNG key: equal keys give equal streams."""
  return np.random.default_rng(jax.device_get(jax.random.key_data(key)).ravel())


def concentrations(labels: np.ndarray, alpha: float) -> np.ndarray:
  """Computes alpha * C * prior, of the C classes that occur and their frequencies in `labels`.

  Args:
    labels: (n,) integer classes, from 0.
    alpha: mean of the result over the classes that occur, finite and > 0.

  Returns:
    (labels.max() + 1,) float64; exactly alpha for all classes of the mean frequency, 0 for a class
    without examples.
  """
  counts = np.bincount(checked_ids("labels", labels))
  check_alpha(alpha)
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
  check_at_least("num_clients", num_clients, 1)
  check_at_least("num_classes", num_classes, 1)
  alphas = np.broadcast_to(np.asarray(alpha, np.float64), (num_classes,))
  if not (np.isfinite(alphas).all() and (alphas >= 0).all() and alphas.any()):
    raise ValueError(f"alpha={alpha}: must be finite and greater than 0")
  return dirichlet_rows(generator(key), num_clients, alphas)


def dirichlet_rows(rng: np.random.Generator, rows: int, alphas: np.ndarray) -> np.ndarray:
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
