"""Slow references in plain NumPy: float64, full sorts, no tricks."""

from fractions import Fraction
from math import ceil

import numpy as np


def kth_magnitude(x, k):
  """The k-th largest |x|; infinity for k < 1, 0 for k > x.size."""
  magnitudes = np.sort(np.abs(np.asarray(x).astype(np.float64)), axis=None)[::-1]
  return np.inf if k < 1 else magnitudes[k - 1] if k <= magnitudes.size else 0.0


def topk_mask(leaves, k):
  """What reaches the k-th magnitude over all leaves and is not 0: a list of masks."""
  threshold = kth_magnitude(np.concatenate([np.ravel(leaf) for leaf in leaves]), k)
  magnitudes = [np.abs(np.asarray(leaf).astype(np.float64)) for leaf in leaves]
  return [(leaf >= threshold) & (leaf > 0) for leaf in magnitudes]


def keep_largest(x, k):
  """x with 0 for everything below its k-th magnitude."""
  x = np.asarray(x)
  return np.where(np.abs(x.astype(np.float64)) >= kth_magnitude(x, k), x, np.zeros((), x.dtype))


def pruned_activations(x, w, valid, floor=0):
  """SparsyFed's residual of a layer; rows that are not valid are 0 in it."""
  x, w, valid = np.asarray(x), np.asarray(w), np.asarray(valid)
  density = max(Fraction(np.count_nonzero(w), w.size), Fraction(floor))
  kept = np.zeros_like(x)
  kept[valid] = keep_largest(x[valid], ceil(density * x[valid].size))
  return kept


def powerprop(theta, beta):
  theta = np.asarray(theta, np.float64)
  return np.sign(theta) * np.abs(theta) ** beta


def powerprop_gradient(theta, beta):
  """The derivative with respect to theta; 0^0 is 1."""
  return beta * np.abs(np.asarray(theta, np.float64)) ** (beta - 1)


def powerprop_gradient_beta(theta, beta):
  theta = np.asarray(theta, np.float64)
  return powerprop(theta, beta) * np.log(np.abs(np.where(theta == 0, 1, theta)))


def cotangent(y):
  """Values of no pattern, like y; free to compile where jax.random is not."""
  return np.sin(np.arange(1, y.size + 1)).reshape(y.shape).astype(y.dtype)
