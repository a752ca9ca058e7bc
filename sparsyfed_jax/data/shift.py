"""Changes of the clients' data during a run.

The clients of a real federation change while they train. SparsyFed (arXiv 2504.05153) claims that
its masks adapt to unseen distributions; a run whose data changes half-way can tell.
"""

import jax
import numpy as np

from sparsyfed_jax.data.draws import generator

LEAST_SHARE = 0.1  # of the rarest class's examples that are there


def everything(key: jax.Array, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Leaves all examples in both phases, to be dealt anew.

  Args:
    key: a JAX PRNG key, not used here.
    labels: (n,) integer classes, from 0.

  Returns:
    Two sorted index arrays: of the examples before and after.
  """
  del key
  return np.arange(len(labels)), np.arange(len(labels))


def halves(key: jax.Array, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Gives each phase one half of the examples, at random: after, none that was seen before.

  Arguments and result are those of `everything`; where n is odd the first half has one more.
  """
  order = generator(key).permutation(len(labels))
  cut = -(-len(labels) // 2)
  return np.sort(order[:cut]), np.sort(order[cut:])


def opposite_frequencies(key: jax.Array, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Thins classes out in opposite orders: what was frequent becomes rare.

  In a random order of the classes the first keeps all of its examples before and `LEAST_SHARE` of
  them after, the last the other way round, those between linearly. Arguments and result are those
  of `everything`.
  """
  rng = generator(key)
  classes = rng.permutation(np.unique(labels))
  falling = np.linspace(1, LEAST_SHARE, len(classes))
  pools = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]

  def keep(shares: np.ndarray) -> np.ndarray:
    kept = [pool[: max(1, round(s * len(pool)))] for pool, s in zip(pools, shares, strict=True)]
    return np.sort(np.concatenate(kept))

  return keep(falling), keep(falling[::-1])


SHIFTS = {"resplit": everything, "clients": halves, "labels": opposite_frequencies}
