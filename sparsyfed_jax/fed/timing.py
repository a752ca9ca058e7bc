"""The seconds of a round: from what a method sends and computes to the clock after it."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from sparsyfed_jax.fed.algorithm import Algorithm
from sparsyfed_jax.fed.clock import Clock, Costs, Devices, advance
from sparsyfed_jax.fed.cohort import CLIENTS, EXCLUDED
from sparsyfed_jax.fed.measures import Measures
from sparsyfed_jax.fed.race import ENERGY, LAST_REPORT, LATE, LATE_BYTES, Race
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.types import Metrics

# (densities of the layers as received, (num_layers,), target sparsity, ()) -> FLOPs of an example
Flops: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


class Timing(NamedTuple):
  """How rounds are timed, and when the server stops waiting."""

  reports: int  # with which a round ends
  deadline: float  # seconds after which it ends at the latest; inf for none
  flops: Flops
  has_energy: bool = True  # whether it is known what devices consume


def race_of(timing: Timing, cohort: Cohort) -> Race:
  """Says who counts of a cohort."""
  return Race(timing.reports, max(cohort.numbers.shape[0] - timing.reports, 0))


def costs_of_round(
  timing: Timing,
  algorithm: Algorithm,
  measures: Measures,
  state: Any,
  upload: Any,
  devices: Devices,
) -> Costs:
  """Computes what a round takes of its clients.

  Args:
    timing: how rounds are timed.
    algorithm: the method.
    measures: of models.
    state: of the server before the round.
    upload: shapes of what a client sends.
    devices: of the cohort.
  """
  # What the server reports of the round that does not depend on uploads; the rest is not computed.
  nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), upload)
  sent = algorithm.broadcast(state).variables
  row = measures.step(sent, sent) | algorithm.server(state, nothing)[1]
  receiving = row["downlink_bytes"].astype(jnp.float32) / devices.kinds.down
  training = timing.flops(row["received_density"], row["target_sparsity"]) / devices.kinds.flops
  sending = 1 / devices.kinds.up
  return Costs(
    receiving,
    training,
    sending,
    receiving * devices.kinds.radio_watts,
    training * devices.kinds.compute_watts,
    sending * devices.kinds.radio_watts,
    jnp.minimum(devices.stays, timing.deadline),
    jnp.arange(len(receiving), dtype=jnp.int32),
  )


def end_round(
  timing: Timing, clock: Clock, devices: Devices, has_work: jax.Array, sums: Metrics
) -> tuple[Clock, dict[str, jax.Array]]:
  """Moves the clock to the end of a round.

  The round ends with the last report that the server waits for, or with the deadline; without one,
  with the last report there is. If no client was available, it ends when the first of those asked
  is, rounded up to whole seconds.

  Args:
    timing: how rounds are timed.
    clock: at its start.
    devices: of the cohort.
    has_work: (clients_per_round,) bool, who was available and has examples.
    sums: of the round; what the clock needs alone is taken out.

  Returns:
    The clock, and columns of the round's row.
  """
  late, late_bytes, last, energy = (
    sums.pop(name) for name in (LATE, LATE_BYTES, LAST_REPORT, ENERGY)
  )
  num_reports = sums[CLIENTS].total + sums[EXCLUDED].total
  awaited = jnp.minimum(jnp.sum(has_work, dtype=jnp.float32), timing.reports)
  seconds = last.total
  if timing.deadline < jnp.inf:
    seconds = jnp.where(num_reports >= awaited, seconds, timing.deadline)
  wait = jnp.ceil(jnp.min(devices.wait))
  seconds = jnp.where(wait > 0, jnp.where(wait < jnp.inf, wait, 0), seconds)
  after = advance(clock, seconds)
  return after, {
    "round_virtual_seconds": seconds,
    "virtual_whole_seconds": after.whole,
    "virtual_part_seconds": after.part,
    **({"energy": energy.total} if timing.has_energy else {}),
    LATE: late.total,
    LATE_BYTES: late_bytes.value,
    "unavailable_clients": jnp.sum(devices.wait > 0, dtype=jnp.float32),
  }
