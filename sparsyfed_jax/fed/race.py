"""The sum over the clients of a round that report first.

Who reports when is known only when all have trained. So that not all uploads have to be kept until
then, the loop over chunks keeps those of the slowest clients so far, as many as can be late, and
adds up the others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.fed.clock import Costs
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.types import Mean, Memory, Metrics, Tally, tally

# Metrics that a race adds: totals over all clients that took part, those that were late included.
LATE, LATE_BYTES, LAST_REPORT, ENERGY = "late_clients", "late_uplink_bytes", "last_report", "energy"


class Race(NamedTuple):
  """Who counts."""

  reports: int  # how many at most
  held: int  # how many of the cohort may be too slow
  axis: str | None = None  # of the devices that share the cohort


class Report(NamedTuple):
  """What is known of a client that has trained; of several, with a leading axis."""

  is_racing: jax.Array  # bool, whether it had something to do
  seconds: jax.Array  # float32
  place: jax.Array  # int32
  is_in_time: jax.Array  # bool
  num_bytes: jax.Array  # uint32 that it sends
  joules: jax.Array  # float32


class Results(NamedTuple):
  """What a chunk of clients gives; all with a leading axis."""

  sums: Any  # upload and metrics
  kept: Memory  # what it would keep
  rows: jax.Array  # int32, where
  is_counted: jax.Array  # bool
  report: Report


def report(costs: Costs, metrics: Metrics, size: jax.Array) -> Report:
  """Makes the report of a client.

  Args:
    costs: of the client.
    metrics: with `examples` and `round_uplink_bytes`.
    size: () int32 number of its examples.
  """
  examples, num_bytes = (_whole(metrics[name]) for name in ("examples", "round_uplink_bytes"))
  work, sent = examples.astype(jnp.float32), num_bytes.astype(jnp.float32)
  seconds = costs.seconds + costs.seconds_per_example * work + costs.seconds_per_byte * sent
  joules = costs.joules + costs.joules_per_example * work + costs.joules_per_byte * sent
  is_racing = size > 0
  is_in_time = is_racing & (seconds <= costs.limit)
  return Report(is_racing, seconds, costs.place, is_in_time, num_bytes, joules)


def sum_of_race(
  race: Race,
  run_chunk: Callable[[Any, Memory], Results],
  chunks: Cohort,
  memories: Memory,
  num_chunks: int | jax.Array,
) -> tuple[Any, Memory, Metrics]:
  """Adds up what those send that report first; the others keep the memory they have.

  Args:
    race: who counts.
    run_chunk: (clients, memories) -> what these clients give.
    chunks: the cohort, (most_chunks, clients_per_chunk) arrays.
    memories: of the clients.
    num_chunks: how many chunks take part; may be traced.

  Returns:
    As `cohort.sum_over_clients`, with the metrics above.
  """
  first = jax.tree.map(lambda leaf: leaf[0], chunks)
  shapes = jax.eval_shape(run_chunk, first, memories)
  most_chunks, per_chunk = chunks.numbers.shape
  num_held = min(race.held, most_chunks * per_chunk)

  def zeros(shape: tuple[int, ...], leaf: Any) -> jax.Array:
    return jnp.zeros((*shape, *leaf.shape[1:]), leaf.dtype)

  def body(i: jax.Array, carry: Any) -> Any:
    memories, sums, reports, held = carry
    new = run_chunk(jax.tree.map(lambda leaf: leaf[i], chunks), memories)
    reports = jax.tree.map(lambda all_, own: all_.at[i].set(own), reports, new.report)
    if num_held:
      pool = jax.tree.map(lambda *parts: jnp.concatenate(parts), held, new)
      order = _order(pool.report)
      new, held = _take(pool, order[:per_chunk]), _take(pool, order[per_chunk:])
    memories, sums = _add(memories, sums, new)
    return memories, sums, reports, held

  carry = (
    memories,
    jax.tree.map(lambda leaf: zeros((), leaf), shapes.sums),
    jax.tree.map(lambda leaf: zeros((most_chunks, per_chunk), leaf), shapes.report),
    jax.tree.map(lambda leaf: zeros((num_held,), leaf), shapes),
  )
  memories, sums, reports, held = lax.fori_loop(0, num_chunks, body, carry)
  reports = jax.tree.map(lambda leaf: leaf.reshape(-1), reports)
  everyone = reports
  if race.axis:
    everyone = jax.tree.map(lambda leaf: lax.all_gather(leaf, race.axis, tiled=True), reports)
  last = _take(everyone, _last(race, everyone))
  if num_held:
    memories, sums = _add(memories, sums, held, ~_is_after(held.report, last))
  upload, metrics = sums
  return upload, memories, metrics | _totals(reports, last)


def _order(reports: Report) -> jax.Array:
  """Orders by time, those that are out of the race first."""
  seconds = jnp.where(reports.is_in_time, reports.seconds, -jnp.inf)
  return jnp.lexsort((reports.place, seconds))


def _last(race: Race, reports: Report) -> jax.Array:
  """Finds the last that counts; any one if there is none."""
  number = jnp.minimum(jnp.sum(reports.is_in_time, dtype=jnp.int32), race.reports)
  seconds = jnp.where(reports.is_in_time, reports.seconds, jnp.inf)
  return jnp.lexsort((reports.place, seconds))[jnp.maximum(number - 1, 0)]


def _is_after(reports: Report, last: Report) -> jax.Array:
  is_tie = reports.seconds == last.seconds
  return (reports.seconds > last.seconds) | (is_tie & (reports.place > last.place))


def _add(
  memories: Memory, sums: Any, results: Results, is_first: jax.Array | bool = True
) -> tuple[Memory, Any]:
  """Adds the results of those among clients that are in time and first."""
  counts = results.report.is_in_time & is_first

  def total(leaf: jax.Array) -> jax.Array:
    chosen = counts.reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.sum(jnp.where(chosen, leaf, 0), axis=0, dtype=leaf.dtype)

  def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
    rows = jnp.where(counts & results.is_counted, results.rows, leaf.shape[0])
    return leaf.at[rows].set(new, mode="drop")

  sums = jax.tree.map(lambda sum_, leaf: sum_ + total(leaf), sums, results.sums)
  return jax.tree.map(put, memories, results.kept), sums


def _totals(reports: Report, last: Report) -> Metrics:
  is_kept = reports.is_in_time & ~_is_after(reports, last)
  is_late = reports.is_racing & ~is_kept
  is_last = is_kept & (reports.place == last.place)
  late_bytes = jax.tree.map(jnp.sum, jax.vmap(tally)(reports.num_bytes, is_late))

  def total(values: jax.Array, mask: jax.Array) -> Mean:
    return Mean(jnp.sum(jnp.where(mask, values, 0), dtype=jnp.float32), jnp.float32(0))

  return {
    LATE: total(jnp.ones(is_late.shape), is_late),
    LATE_BYTES: late_bytes,
    LAST_REPORT: total(reports.seconds, is_last),
    ENERGY: total(reports.joules, reports.is_racing),
  }


def _take(tree: Any, places: jax.Array) -> Any:
  return jax.tree.map(lambda leaf: leaf[places], tree)


def _whole(parts: Tally) -> jax.Array:
  """Puts the Tally of one number together; () uint32."""
  return parts.low + (parts.middle << jnp.uint32(11)) + (parts.high << jnp.uint32(22))
