"""Batches of one client, gathered by index inside a compiled step.

Nothing depends on how far a client's index list is padded: rows are shuffled by random numbers that
belong to their position, and a partial last batch stays partial.
"""

import jax
import jax.numpy as jnp

from sparsyfed_jax.types import Batch, ClientData, Key


def num_batches(data: ClientData, batch_size: int) -> jax.Array:
  """Counts the batches of one epoch, the last one possibly partial; () int32."""
  return (data.size + batch_size - 1) // batch_size


def shuffle(key: Key, data: ClientData) -> ClientData:
  """Puts the client's rows in a random order, padding last."""
  positions = jnp.arange(data.indices.shape[0])
  # Counter-based bits: the i-th number is the same however many follow it.
  rank = jax.random.uniform(key, positions.shape)
  order = jnp.argsort(jnp.where(positions < data.size, rank, jnp.inf))
  return data._replace(indices=data.indices[order])


def take_batch(data: ClientData, step: jax.Array, batch_size: int) -> Batch:
  """Gathers batch number `step` of an epoch.

  Args:
    data: a client, as `shuffle` leaves it.
    step: () int32, from 0 to num_batches - 1.
    batch_size: rows of the batch.

  Returns:
    The batch; rows past the client's last example are zeros and not valid.
  """
  positions = step * batch_size + jnp.arange(batch_size)
  valid = positions < data.size
  rows = data.indices[jnp.where(valid, positions, 0)]
  x, y = data.x[rows], data.y[rows]
  return Batch(
    x=jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype)),
    y=jnp.where(valid, y, 0),
    valid=valid,
  )
