"""The words that every room shares."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

_SHIFTS = (0, 11, 22)  # of the parts of a `Tally`
_SPLIT, _PARTITION, _INIT, _ROUNDS = range(4)  # what uses of a run's one key are folded in with

Key: TypeAlias = jax.Array  # a typed PRNG key, jax.random.key(seed)
Params: TypeAlias = Any  # pytree of float arrays that are trained
Memory: TypeAlias = Any  # pytree of arrays that a client keeps between its rounds; () for none
Variables: TypeAlias = Mapping[str, Any]  # flax collections: "params", and "batch_stats" if any


class Keys(NamedTuple):
  """The streams of randomness of a run, all from one key."""

  split: Key  # train and test, where the data set has no split of its own
  partition: Key  # examples to clients
  init: Key  # the model
  rounds: Key  # folded in with the round's number: sampling, shuffling, dropout


def make_keys(key: Key) -> Keys:
  """Derives the streams of a run from its key."""
  return Keys(*(jax.random.fold_in(key, use) for use in (_SPLIT, _PARTITION, _INIT, _ROUNDS)))


class Batch(NamedTuple):
  """Examples of one step; a partial batch is filled up with rows that count for nothing."""

  x: jax.Array  # (batch, *shape), as stored
  y: jax.Array  # (batch,) int32 classes, or what else the task predicts: (batch, ...)
  valid: jax.Array  # (batch,) bool, False where a row is padding


class ClientData(NamedTuple):
  """What one client trains on: rows of arrays that the clients of a process share."""

  x: jax.Array  # (num_examples, *shape), of all clients
  y: jax.Array  # (num_examples,) int32, or what else is predicted
  indices: jax.Array  # (max_size,) int32 rows of x and y; from `size` on they are not the client's
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


class Tally(NamedTuple):
  """An exact sum of whole numbers under way: its fields add up over clients and devices.

  float32 is exact to 2^24 and integers have 32 bits, so a number is cut into parts of 11 bits, of
  which 2^21 numbers may be added. `total` puts the sum together on the host.
  """

  low: jax.Array  # () uint32, sum of the lowest 11 bits
  middle: jax.Array  # () uint32, of the next 11
  high: jax.Array  # () uint32, of the last 10

  @property
  def value(self) -> jax.Array:
    """The sum in its parts; (3,) uint32."""
    return jnp.stack(self)


Metrics: TypeAlias = dict[str, Any]  # each a Mean or a Tally


def tally(number: jax.Array, is_counted: jax.Array | bool = True) -> Tally:
  """Makes a Tally of one number.

  Args:
    number: () of a whole number below 2^32, of any dtype.
    is_counted: () bool, False for a number that counts as 0.
  """
  chex.assert_rank([number, is_counted], 0)
  whole = jnp.where(is_counted, number.astype(jnp.uint32), jnp.uint32(0))
  return Tally(*(whole >> jnp.uint32(shift) & jnp.uint32(2047) for shift in _SHIFTS))


def total(parts: Any) -> np.ndarray:
  """Puts sums together.

  Args:
    parts: (..., 3) uint32 on the host, values of a `Tally`.

  Returns:
    (...) int64.
  """
  return np.sum(np.asarray(parts).astype(np.int64) << np.array(_SHIFTS), axis=-1)


def weighted(value: jax.Array, weight: jax.Array) -> Mean:
  """Makes a Mean of one observation; a weight of 0 leaves even a NaN out."""
  chex.assert_rank([value, weight], 0)
  weight = jnp.asarray(weight, jnp.float32)
  total = jnp.where(weight > 0, jnp.asarray(value, jnp.float32) * weight, 0.0)
  return Mean(total, weight)
