"""The order in which a client takes its rows in an epoch.

Nothing depends on how far a client's index list is padded: rows are shuffled by random numbers that
belong to their position.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from sparsyfed_jax.ops.backend.choice import by_platform
from sparsyfed_jax.types import ClientData, Key

_POSITION_BITS = 11
_MAX_PACKED = 2**_POSITION_BITS
_RANK = np.uint32(2**32 - _MAX_PACKED)  # the bits that decide; positions decide among equals

# Lists of uneven clients are shuffled at the least of a few lengths that holds them all.
_SHRINKAGE = 4  # from one length to the next
_LEAST_LENGTH = 16
_MAX_LENGTHS = 4


def shuffle(key: Key, data: ClientData, is_ragged: bool = False) -> ClientData:
  """Puts the client's rows in a random order, padding last.

  Args:
    key: decides the order.
    data: a client.
    is_ragged: whether clients differ much in size. Then little time goes to the padding of small
      ones that are vmapped, or run alone; the order is the same.
  """
  chex.assert_rank([key, data.size, data.indices], [0, 0, 1])
  operands = key, data.size, data.indices
  # An accelerator would have to ask the host for the length.
  indices = by_platform(*operands, cpu=_by_size, default=_whole) if is_ragged else _whole(*operands)
  return data._replace(indices=indices)


def _whole(key: Key, size: jax.Array, indices: jax.Array) -> jax.Array:
  return _first(indices.shape[0], key, size, indices)


def _first(length: int, key: Key, size: jax.Array, indices: jax.Array) -> jax.Array:
  """Shuffles a list of which no more than the first `length` rows are the client's."""
  positions = jnp.arange(length, dtype=jnp.uint32)
  # Counter-based bits: the i-th number is the same however many follow it.
  bits = jax.random.bits(key, positions.shape)
  rank = jnp.where(positions < size.astype(jnp.uint32), bits & _RANK, _RANK)
  if length <= _MAX_PACKED:
    # Rank and position in one number: sorting pairs takes eight times as long on a CPU.
    order = jnp.sort(rank | positions) & ~_RANK
  else:
    order = jnp.argsort(rank, stable=True)  # the same order
  return jnp.concatenate([indices[:length][order], indices[length:]])


@custom_vmap
def _by_size(key: Key, size: jax.Array, indices: jax.Array) -> jax.Array:
  lengths = _lengths(indices.shape[0])
  shuffles = [partial(_first, length) for length in lengths]
  return lax.switch(_place(lengths, size), shuffles, key, size, indices)


@_by_size.def_vmap
def _by_largest_size(
  num_clients: int, is_batched: Any, key: Key, size: jax.Array, indices: jax.Array
) -> tuple[jax.Array, bool]:
  axes = tuple(0 if has_axis else None for has_axis in is_batched)
  lengths = _lengths(indices.shape[-1])
  shuffles = [jax.vmap(partial(_first, n), axes, axis_size=num_clients) for n in lengths]
  return lax.switch(_place(lengths, jnp.max(size)), shuffles, key, size, indices), True


def _lengths(length: int) -> list[int]:
  lengths = [length]
  while len(lengths) < _MAX_LENGTHS and lengths[0] >= _SHRINKAGE * _LEAST_LENGTH:
    lengths.insert(0, lengths[0] // _SHRINKAGE)
  return lengths


def _place(lengths: list[int], size: jax.Array) -> jax.Array:
  return jnp.sum(size > jnp.array(lengths[:-1], jnp.int32), dtype=jnp.int32)
