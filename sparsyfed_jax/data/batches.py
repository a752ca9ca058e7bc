"""Batches of one client, gathered by index inside a compiled step.

Nothing depends on how far a client's index list is padded: rows are shuffled by random numbers that
belong to their position, and a partial last batch stays partial.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax.types import Batch, ClientData, Key

_POSITION_BITS = 11
_MAX_PACKED = 2**_POSITION_BITS
_RANK = np.uint32(2**32 - _MAX_PACKED)  # the bits that decide; positions decide among equals


def num_batches(data: ClientData, batch_size: int) -> jax.Array:
  """Counts the batches of one epoch, the last one possibly partial; () int32."""
  return (data.size + batch_size - 1) // batch_size


def shuffle(key: Key, data: ClientData) -> ClientData:
  """Puts the client's rows in a random order, padding last."""
  length = data.indices.shape[0]
  positions = jnp.arange(length, dtype=jnp.uint32)
  # Counter-based bits: the i-th number is the same however many follow it.
  bits = jax.random.bits(key, positions.shape)
  rank = jnp.where(positions < data.size.astype(jnp.uint32), bits & _RANK, _RANK)
  if length <= _MAX_PACKED:
    # Rank and position in one number: sorting pairs takes eight times as long on a CPU.
    order = jnp.sort(rank | positions) & ~_RANK
  else:
    order = jnp.argsort(rank, stable=True)  # the same order
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
