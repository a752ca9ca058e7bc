"""A virtual clock: how long a round would take on the clients' devices, and who is there for it.

A client's time is that of its download, its training and its upload:

  download bytes / downlink + FLOPs / (FLOP/s) + upload bytes / uplink

with the bytes and FLOPs that the method counts. The clock belongs to the state of a run, so that a
run that is resumed looks the availability of clients up at the same second.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_MOST = 2**31 - 1


class Clock(NamedTuple):
  """Seconds since the start, in two parts, as float32 would not tell seconds from each other."""

  whole: jax.Array  # () int32
  part: jax.Array  # () float32 in [0, 1)


class Kinds(NamedTuple):
  """What each kind of device does; (num_kinds,) float32 each, or one entry a client."""

  flops: Any  # a second, in training
  down: Any  # bytes a second
  up: Any  # bytes a second
  compute_watts: Any  # while it trains
  radio_watts: Any  # while it receives or sends


class Hours(NamedTuple):
  """When clients are available: one client's intervals after the other's, in their order."""

  starts: Any  # (num_clients + 1,) int32, where a client's intervals begin
  opens: Any  # (num_intervals,) float32 seconds within the period
  closes: Any  # (num_intervals,) float32, at most the period
  period: Any  # () int32 seconds, after which all repeats


class Fleet(NamedTuple):
  """The devices of all clients."""

  kind: Any  # (num_clients,) int32, of each client a row of `kinds`
  kinds: Kinds
  hours: Any  # `Hours`, or () where all are always available


class Devices(NamedTuple):
  """The devices of a cohort; (clients_per_round,) each."""

  kinds: Kinds
  wait: jax.Array  # seconds until the client is available; 0 where it is
  stays: jax.Array  # seconds that it stays available


class Costs(NamedTuple):
  """What the round takes of each client of a cohort; (clients_per_round,) float32 each."""

  seconds: jax.Array  # whatever it trains and sends: of the download
  seconds_per_example: jax.Array
  seconds_per_byte: jax.Array  # that it sends
  joules: jax.Array
  joules_per_example: jax.Array
  joules_per_byte: jax.Array
  limit: jax.Array  # seconds after which its report counts no more
  place: jax.Array  # int32 in the cohort, which decides between reports of the same time


def start_clock() -> Clock:
  """Makes the clock before round 1."""
  return Clock(jnp.int32(0), jnp.float32(0))


def advance(clock: Clock, seconds: jax.Array) -> Clock:
  """Moves a clock on; it stops at 2^31 - 1 seconds, 68 years.

  Example:
    >>> import jax.numpy as jnp
    >>> [float(part) for part in advance(Clock(jnp.int32(86400), jnp.float32(0.5)), 2.75)]
    [86403.0, 0.25]
  """
  ahead = clock.part + jnp.minimum(jnp.asarray(seconds, jnp.float32), 2.0**30)
  steps = jnp.floor(ahead)
  whole = clock.whole + jnp.minimum(steps.astype(jnp.int32), _MOST - clock.whole)
  return Clock(whole, ahead - steps)


def look_up(hours: Hours, clock: Clock, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Looks up when clients are available, in a time that grows with the log of their intervals.

  Args:
    hours: of all clients.
    clock: what time it is.
    numbers: (n,) int32 of the clients.

  Returns:
    Seconds until each is available, 0 for those that are and inf for those that never are, and
    seconds that it stays so; (n,) float32 both. What ends with the period and begins again with it
    is one.

  Example:
    >>> import jax.numpy as jnp
    >>> hours = hours_of([[(0, 10), (20, 30)], []], period=30)
    >>> at = Clock(jnp.int32(35), jnp.float32(0))
    >>> [each.tolist() for each in look_up(hours, at, jnp.arange(2))]
    [[0.0, inf], [5.0, 0.0]]
  """
  hours = jax.tree.map(jnp.asarray, hours)
  period = hours.period.astype(jnp.float32)
  now = (clock.whole % hours.period).astype(jnp.float32) + clock.part
  now = jnp.where(now >= period, 0, now)  # rounded up
  first, end = hours.starts[numbers], hours.starts[numbers + 1]

  def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low, high = bounds
    middle = (low + high) // 2
    is_open, is_left = hours.opens[middle] <= now, low < high
    return (
      jnp.where(is_left & is_open, middle + 1, low),
      jnp.where(is_left & ~is_open, middle, high),
    )

  after, _ = lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, (first, end))
  last = jnp.maximum(after - 1, 0)
  is_here = (after > first) & (now < hours.closes[last])
  again = jnp.where(after < end, hours.opens[after] - now, hours.opens[first] + period - now)
  wait = jnp.where(is_here, 0, jnp.where(first < end, again, jnp.inf))
  is_joined = (hours.closes[last] == period) & (hours.opens[first] == 0)
  more = jnp.where(first == last, jnp.inf, hours.closes[first])
  stays = hours.closes[last] - now + jnp.where(is_joined, more, 0)
  return wait, jnp.where(is_here, stays, 0)


def hours_of(intervals: Sequence[Sequence[tuple[float, float]]], period: int) -> Hours:
  """Makes the hours of all clients on the host.

  Args:
    intervals: of each client the seconds (from, to) within the period in which it is available, in
      their order; those that touch are one.
    period: seconds after which all repeats.

  Example:
    >>> hours_of([[(0, 10), (10, 12)], [(5, 6)]], period=20).closes.tolist()
    [12.0, 6.0, 0.0]
  """
  starts, opens, closes = [0], list[float](), list[float]()
  for own in intervals:
    first = len(opens)
    for begin, end in own:
      if len(opens) > first and closes[-1] == begin:
        closes[-1] = end
      else:
        opens.append(begin)
        closes.append(end)
    starts.append(len(opens))
  # One more, which is read of clients without any.
  return Hours(
    np.array(starts, np.int32),
    np.array([*opens, 0], np.float32),
    np.array([*closes, 0], np.float32),
    np.int32(period),
  )


def devices_of(fleet: Fleet, clock: Clock, numbers: jax.Array) -> Devices:
  """Picks the devices of clients."""
  kinds = jax.tree.map(lambda leaf: leaf[fleet.kind[numbers]], fleet.kinds)
  if not fleet.hours:
    return Devices(kinds, jnp.zeros(numbers.shape), jnp.full(numbers.shape, jnp.inf))
  return Devices(kinds, *look_up(fleet.hours, clock, numbers))
