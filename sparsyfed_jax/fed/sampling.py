"""Client sampling, dropout and stragglers."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.types import Key

_MAX_PACKED = 2**14  # clients whose numbers leave 18 bits to chance

# Probabilities of the clients, of their sizes; need not add up to 1.
Availability: TypeAlias = Callable[[jax.Array], jax.Array]


class Cohort(NamedTuple):
  """The clients of a round, those with least to do first."""

  numbers: jax.Array  # (clients_per_round,) int32
  is_present: jax.Array  # (clients_per_round,) bool, False for one that vanished
  work: jax.Array  # (clients_per_round,) float32, share of each local epoch that is done
  rows: jax.Array  # (clients_per_round,) int32, where in `Federation.indices` their lists are


def uniformly(sizes: jax.Array) -> jax.Array:
  """Makes all clients equally likely."""
  return jnp.ones(sizes.shape)


def by_size(sizes: jax.Array) -> jax.Array:
  """Makes clients likely in proportion to their examples."""
  return sizes.astype(jnp.float32)


AVAILABILITIES: dict[str, Availability] = {"uniform": uniformly, "size": by_size}


def sample(
  key: Key,
  fate_key: Key,
  sizes: jax.Array,
  clients_per_round: int,
  availability: Availability,
  hyper: Hyper,
) -> Cohort:
  """Draws the clients of a round without replacement.

  They come ordered by the examples they train on, so that a chunk of clients side by side, which
  runs as long as its largest, wastes little. What happens to a client belongs to its number and
  the key.

  Args:
    key: of the round's sampling.
    fate_key: decides who vanishes and who straggles.
    sizes: (num_clients,) int32 numbers of examples.
    clients_per_round: how many are drawn.
    availability: how likely each one is.
    hyper: whose `client_dropout` and `straggler_fraction` are probabilities. A straggler does a
      share of its work between 0 and 1, drawn uniformly.
  """
  chex.assert_rank([key, fate_key, sizes], [0, 0, 1])
  if availability is uniformly:
    drawn = _permutation(key, sizes.shape[0])[:clients_per_round]
  else:
    likely = availability(sizes)
    drawn = jax.random.choice(
      key, sizes.shape[0], (clients_per_round,), replace=False, p=likely / jnp.sum(likely)
    ).astype(jnp.int32)

  # For all clients at once: drawing with a key for each takes longer to compile.
  fates = jax.random.uniform(fate_key, (sizes.shape[0], 3))[drawn]
  present, straggler, share = fates[:, 0], fates[:, 1], fates[:, 2]
  is_present = present >= hyper.client_dropout
  work = jnp.where(straggler < hyper.straggler_fraction, share, 1.0)
  order = jnp.argsort(jnp.where(is_present, work * sizes[drawn].astype(jnp.float32), 0))
  numbers = drawn[order]
  return Cohort(numbers, is_present[order], work[order], rows=numbers)


def _permutation(key: Key, num_clients: int) -> jax.Array:
  """Puts the numbers of all clients in a random order.

  Sorting one number for each client takes a CPU a fifth of the time of `jax.random.permutation`.
  Its upper bits are random; its lower ones, which decide among equals, count from a random client
  on, so that no client comes first more often than another.
  """
  if num_clients > _MAX_PACKED:
    return jax.random.permutation(key, num_clients).astype(jnp.int32)
  bits = jax.random.bits(key, (num_clients + 1,))
  # As good as even, since clients are few beside 2^32.
  start = (bits[-1] % num_clients).astype(jnp.int32)
  places = (jnp.arange(num_clients) + start) % num_clients
  rank = bits[:-1] & ~np.uint32(_MAX_PACKED - 1)
  ordered = jnp.sort(rank | places.astype(jnp.uint32)) & np.uint32(_MAX_PACKED - 1)
  return (ordered.astype(jnp.int32) - start) % num_clients
