"""Client sampling, dropout and stragglers."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.types import Key

# Probabilities of the clients, of their sizes; need not add up to 1.
Availability: TypeAlias = Callable[[jax.Array], jax.Array]
# (n,) int32 numbers of clients -> seconds until each is available, 0 for those that are.
Waits: TypeAlias = Callable[[jax.Array], jax.Array]

_ASKED = 32, 1024  # clients for each that is wanted, and at least
# Of a logarithm: less likely than any other, and so near 0 that less than a second is left of it.
_UNAVAILABLE = -1e3
_TRIES = 32  # of draws by size, after which the clients that are missing are found among all


class Cohort(NamedTuple):
  """The clients of a round, those with least to do first."""

  numbers: jax.Array  # (clients_per_round,) int32
  is_present: jax.Array  # (clients_per_round,) bool, False for one that vanished
  work: jax.Array  # (clients_per_round,) float32, share of each local epoch that is done
  rows: jax.Array  # (clients_per_round,) int32, where in `Federation.starts` they are
  device: Any = ()  # (clients_per_round,) arrays of their devices, where rounds are timed


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
  waits: Waits | None = None,
  ends: jax.Array | None = None,
) -> Cohort:
  """Draws the clients of a round without replacement.

  They come ordered by the examples they train on, so that a chunk of clients side by side, which
  runs as long as its largest, wastes little. What happens to a client belongs to its number and
  the key. Where all are equally likely, or as likely as they have examples, the time is that of the
  clients drawn, not of all; else it grows with all of them.

  Args:
    key: of the round's sampling.
    fate_key: decides who vanishes and who straggles.
    sizes: (num_clients,) int32 numbers of examples.
    clients_per_round: how many are drawn.
    availability: how likely each one is.
    hyper: whose `client_dropout` and `straggler_fraction` are probabilities. A straggler does a
      share of its work between 0 and 1, drawn uniformly.
    waits: of clients, who are drawn among those that are available now; where these are too few,
      others that are not present fill the cohort up, those first that are available next. None
      where all are always available.
    ends: as `ends_of` makes them of the sizes, where that is done once for many rounds.
  """
  chex.assert_rank([key, fate_key, sizes], [0, 0, 1])
  num_clients = sizes.shape[0]
  if availability is uniformly:
    if waits is None:
      drawn = distinct(key, num_clients, clients_per_round)
    else:
      drawn = _among_available(key, num_clients, clients_per_round, waits)
  elif availability is by_size:
    ends = jnp.cumsum(sizes, dtype=jnp.int32) if ends is None else ends
    drawn = _in_proportion(key, sizes, ends, clients_per_round, waits)
  else:
    nobody = jnp.full(clients_per_round, num_clients)
    drawn = _among_all(key, availability(sizes), nobody, waits)

  keys = jax.vmap(jax.random.fold_in, (None, 0))(fate_key, drawn)
  fates = jax.vmap(lambda own: jax.random.uniform(own, (4,)))(keys)
  present, straggler, share, turn = fates.T
  is_present = present >= hyper.client_dropout
  if waits is not None:
    is_present &= waits(drawn) == 0
  work = jnp.where(straggler < hyper.straggler_fraction, share, 1.0)
  amount = jnp.where(is_present, work * sizes[drawn].astype(jnp.float32), 0)
  order = jnp.lexsort((turn, amount))  # those of equal work by chance, not by number
  numbers = drawn[order]
  return Cohort(numbers, is_present[order], work[order], rows=numbers)


def ends_of(availability: Availability, sizes: jax.Array) -> jax.Array | None:
  """Adds up the sizes of clients, by which draws in proportion to them find who has an example.

  Args:
    availability: how likely each one is; None is needed of others than `by_size`.
    sizes: (num_clients,) int32, together below 2^31.

  Returns:
    (num_clients,) int32, the examples of a client and of all before it.
  """
  return jnp.cumsum(sizes, dtype=jnp.int32) if availability is by_size else None


def distinct(key: Key, num_clients: int, count: int) -> jax.Array:
  """Draws different clients, every set of them equally likely, in time that `count` alone decides.

  Numbers that come up twice are drawn again. Of more than half of all clients those are drawn that
  are left out, so that at least every second number is a new one.

  Args:
    key: decides who.
    num_clients: of whom they are drawn.
    count: how many, at most `num_clients`.

  Returns:
    (count,) int32, ascending.
  """
  if 2 * count > num_clients:
    left_out = _draw_again(key, num_clients, num_clients - count)
    is_drawn = jnp.ones(num_clients, bool).at[left_out].set(False)
    return jnp.flatnonzero(is_drawn, size=count).astype(jnp.int32)
  return _draw_again(key, num_clients, count)


def _among_available(key: Key, num_clients: int, count: int, waits: Waits) -> jax.Array:
  """Draws clients among those that are available, all of which are equally likely.

  Asks some clients, more than are wanted, all where they are few: the time does not grow with
  their number. Where too few of those asked are available, the next to be so follow.

  Returns:
    (count,) int32 of different clients.
  """
  per_client, least = _ASKED
  asked_key, order_key = jax.random.split(key)
  asked = distinct(asked_key, num_clients, min(max(per_client * count, least), num_clients))
  turns = jax.random.uniform(order_key, asked.shape)
  return asked[jnp.lexsort((turns, waits(asked)))[:count]]


def _in_proportion(
  key: Key, sizes: jax.Array, ends: jax.Array, count: int, waits: Waits | None
) -> jax.Array:
  """Draws clients one by one in proportion to their sizes, without replacement.

  Draws examples with replacement, and passes over those of clients that are drawn already or not
  available: as many at a time as are missing, so that none is drawn in vain. Where that takes long,
  as beside a client that has nearly all examples, those that are missing are drawn among all. What
  is drawn next does not depend on what was passed over, so the distribution is the same.

  Returns:
    (count,) int32 of different clients.
  """
  num_clients = sizes.shape[0]
  key, last_key = jax.random.split(key)

  def draw(carry: tuple[Any, ...]) -> tuple[Any, ...]:
    tries, key, numbers, is_missing = carry
    key, own = jax.random.split(key)
    examples = jax.random.randint(own, (count,), 0, jnp.maximum(ends[-1], 1))
    new = jnp.searchsorted(ends, examples, side="right").astype(jnp.int32)
    if waits is not None:
      new = jnp.where(waits(new) > 0, num_clients, new)
    numbers = jnp.sort(jnp.where(is_missing, new, numbers))
    is_again = jnp.zeros(count, bool).at[1:].set(numbers[1:] == numbers[:-1])
    return tries + 1, key, numbers, is_again | (numbers == num_clients)

  nobody = jnp.zeros(count, jnp.int32), jnp.ones(count, bool)
  _, _, numbers, is_missing = lax.while_loop(
    lambda carry: jnp.any(carry[3]) & (carry[0] < _TRIES), draw, (0, key, *nobody)
  )
  kept = jnp.where(is_missing, num_clients, numbers)
  return lax.cond(
    jnp.any(is_missing),
    lambda: _among_all(last_key, by_size(sizes), kept, waits),
    lambda: numbers,
  )


def _among_all(key: Key, weights: jax.Array, kept: jax.Array, waits: Waits | None) -> jax.Array:
  """Draws clients one by one in proportion to weights, in a time that grows with all of them.

  Args:
    key: decides who.
    weights: (num_clients,) floats.
    kept: (count,) int32 numbers of clients that are drawn already, num_clients for others.
    waits: of clients, or None.

  Returns:
    (count,) int32 of different clients, those of `kept` among them.
  """
  num_clients = weights.shape[0]
  # The largest of log(p) + Gumbel noise are drawn one by one from p, without replacement.
  chances = jnp.log(weights) + jax.random.gumbel(key, (num_clients,))
  if waits is not None:
    left = waits(jnp.arange(num_clients, dtype=jnp.int32))
    chances = jnp.where(left > 0, _UNAVAILABLE - left, chances)
  chances = chances.at[kept].set(jnp.inf, mode="drop")
  return lax.top_k(chances, kept.shape[0])[1].astype(jnp.int32)


def _draw_again(key: Key, num_clients: int, count: int) -> jax.Array:
  """Draws numbers until all are different; ascending."""
  if not count:
    return jnp.zeros(0, jnp.int32)

  def draw(carry: tuple[Key, jax.Array, jax.Array]) -> tuple[Key, jax.Array, jax.Array]:
    key, numbers, is_missing = carry
    key, own = jax.random.split(key)
    new = jax.random.randint(own, (count,), 0, num_clients)
    numbers = jnp.sort(jnp.where(is_missing, new, numbers))
    return key, numbers, jnp.zeros(count, bool).at[1:].set(numbers[1:] == numbers[:-1])

  nobody = key, jnp.zeros(count, jnp.int32), jnp.ones(count, bool)
  return lax.while_loop(lambda carry: jnp.any(carry[2]), draw, nobody)[1]
