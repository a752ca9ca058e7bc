"""The words that every room shares."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Key: TypeAlias = jax.Array  # a typed PRNG key, jax.random.key(seed)
Params: TypeAlias = Any  # pytree of float arrays that are trained
Variables: TypeAlias = Mapping[str, Any]  # flax collections: "params", and "batch_stats" if any


class Batch(NamedTuple):
  """Examples of one step; a partial batch is filled up with rows that count for nothing."""

  x: jax.Array  # (batch, *shape), as stored
  y: jax.Array  # (batch,) int32 classes
  valid: jax.Array  # (batch,) bool, False where a row is padding


class ClientData(NamedTuple):
  """What one client trains on: rows of arrays that the clients of a process share."""

  x: jax.Array  # (num_examples, *shape), of all clients
  y: jax.Array  # (num_examples,) int32
  indices: jax.Array  # (max_size,) int32 rows of x and y; those from `size` on are padding
  size: jax.Array  # () int32, the client's number of examples
  density_scale: jax.Array  # () float32, what the client can hold, relative to the run's density
  work: jax.Array  # () float32 in [0, 1], share of each local epoch that the client gets done


class Mean(NamedTuple):
  """A weighted mean under way: both fields add up over steps, clients and devices."""

  total: jax.Array  # () float32
  weight: jax.Array  # () float32

  @property
  def value(self) -> jax.Array:
    """The mean; NaN where nothing was counted."""
    return self.total / self.weight


Metrics: TypeAlias = dict[str, Mean]


def weighted(value: jax.Array, weight: jax.Array) -> Mean:
  """Makes a Mean of one observation; a weight of 0 leaves even a NaN out."""
  weight = jnp.asarray(weight, jnp.float32)
  total = jnp.where(weight > 0, jnp.asarray(value, jnp.float32) * weight, 0.0)
  return Mean(total, weight)
