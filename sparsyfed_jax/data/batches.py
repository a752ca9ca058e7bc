"""Batches of one client, gathered by index inside a compiled step.

A partial last batch stays partial, and nothing depends on how far a client's index list is padded.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax.types import Batch, ClientData

_VECTOR = 16  # rows, which a CPU computes together


def num_batches(data: ClientData, batch_size: int) -> jax.Array:
  """Counts the batches of one epoch, the last one possibly partial; () int32."""
  return (data.size + batch_size - 1) // batch_size


def take_batch(data: ClientData, step: jax.Array, batch_size: int) -> Batch:
  """Gathers batch number `step` of an epoch.

  Args:
    data: a client, as `shuffle.shuffle` leaves it.
    step: () int32, from 0 to num_batches - 1.
    batch_size: rows of the batch.

  Returns:
    The batch; rows past the client's last example are zeros and not valid.
  """
  chex.assert_rank([data.indices, data.size, step], [1, 0, 0])
  positions = step * batch_size + jnp.arange(batch_size)
  valid = positions < data.size
  rows = _pick(data.indices, jnp.where(valid, positions, 0))

  def of_valid(leaf: jax.Array) -> jax.Array:
    is_valid = valid.reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.where(is_valid, _pick(leaf, rows), jnp.zeros((), leaf.dtype))

  return Batch(of_valid(data.x), of_valid(data.y), valid)


def _pick(leaf: jax.Array, rows: jax.Array) -> jax.Array:
  # A list holds no other rows: to look for some would be an operation of its own on accelerators.
  return jnp.asarray(leaf).at[rows].get(mode="promise_in_bounds", wrap_negative_indices=False)


def batch_rows(batch_size: int, sizes: np.ndarray) -> int:
  """Chooses how many rows a batch has, some of them padding.

  No client fills more rows than it has examples, and every row costs time. What a step computes
  does not depend on padding.

  Args:
    batch_size: examples of a step at most.
    sizes: (num_clients,) numbers of examples.

  Returns:
    At most `batch_size`: the largest client, rounded up to whole vectors of 16 rows.
  """
  return min(batch_size, -(-max(int(np.max(sizes)), 1) // _VECTOR) * _VECTOR)
