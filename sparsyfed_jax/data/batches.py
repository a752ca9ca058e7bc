"""Batches of one client, gathered by index inside a compiled step.

A partial last batch stays partial, and nothing depends on how far a client's index list is padded.
"""

import jax
import jax.numpy as jnp

from sparsyfed_jax.types import Batch, ClientData


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
  positions = step * batch_size + jnp.arange(batch_size)
  valid = positions < data.size
  rows = data.indices[jnp.where(valid, positions, 0)]
  x, y = data.x[rows], data.y[rows]
  return Batch(
    x=jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype)),
    y=jnp.where(valid, y, 0),
    valid=valid,
  )
