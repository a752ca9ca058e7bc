"""The sum of a cohort's uploads in bounded memory: a loop over chunks of a vmap."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.data.lists import join_clients
from sparsyfed_jax.fed.algorithm import Client
from sparsyfed_jax.fed.race import Race, Results, report, sum_of_race
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.ops import count_each
from sparsyfed_jax.types import ClientData, Key, Mean, Memory, Metrics

# Counts, as totals of metrics: of clients whose upload is not finite, and of those summed up.
EXCLUDED = "excluded_clients"
CLIENTS = "clients"


class Federation(NamedTuple):
  """All clients' training data: one copy of the examples, and whose they are.

  On the host its leaves are NumPy arrays.

  Example:
    >>> import numpy as np
    >>> x, y = np.zeros((3, 5), np.float32), np.zeros(3, np.int32)
    >>> federation = federation_of(x, y, [np.array([0, 2]), np.array([1])])
    >>> federation.indices[federation.starts[1]], federation.sizes
    (np.int32(1), array([2, 1], dtype=int32))
  """

  x: Any  # (num_examples, *shape), as stored
  y: Any  # (num_examples,) int32, or what else is predicted
  # (num_indices + max_size,) int32 rows of x and y, one client's after the other's; the last
  # max_size only let the list of every client be read at one length
  indices: Any
  starts: Any  # (num_clients,) int32, where in `indices` a client's list begins
  sizes: Any  # (num_clients,) int32, how long it is
  slots: Any  # (max_size,) int8 whose length is that of the longest list, and at least 1
  density_scales: Any  # (num_clients,) float32, relative to the run's density
  fleet: Any = ()  # `clock.Fleet`, the clients' devices, where rounds are timed


def federation_of(
  x: Any,
  y: Any,
  parts: Sequence[np.ndarray],
  density_scales: np.ndarray | None = None,
  max_size: int = 1,
) -> Federation:
  """Makes the data of all clients, on the host.

  Args:
    x: `(num_examples, *shape)`.
    y: (num_examples, ...).
    parts: of each client, the indices of its examples.
    density_scales: (num_clients,) float32; 1 by default.
    max_size: the length of the longest list at least, where another split takes the same place.

  Example:
    >>> import sparsyfed_jax as sf
    >>> clients = sf.data.power_law(sf.data.digits(), num_clients=3)
    >>> federation = federation_of(clients.data.x_train, clients.data.y_train, clients.parts)
    >>> federation.indices.shape, federation.slots.shape
    ((2222,), (784,))
  """
  joined = join_clients(parts)
  if density_scales is None:
    density_scales = np.ones(len(joined), np.float32)
  slots = np.zeros(max(max_size, int(joined.sizes.max())), np.int8)
  indices = np.concatenate([joined.indices, np.zeros(len(slots), np.int32)])
  return Federation(x, y, indices, joined.starts, joined.sizes, slots, density_scales)


def sum_over_clients(
  client: Client,
  download: Any,
  memories: Memory,
  federation: Federation,
  cohort: Cohort,
  key: Key,
  clients_per_chunk: int,
  race: Race | None = None,
) -> tuple[Any, Memory, Metrics]:
  """Runs the clients of a round and adds up what they send.

  A client's randomness comes from its number and the round's key, so neither the order of the
  cohort nor the size of a chunk changes what a client does. Memory holds one chunk of clients and
  one sum. An upload that is not finite counts as none, and is counted; so does one whose client
  would keep what is not finite.

  Args:
    client: one client's round.
    download: what every client receives.
    memories: of the clients, (num_rows, ...) arrays, a row where `starts` have that of the client.
    federation: all clients' data.
    cohort: the clients that take part.
    key: of the round.
    clients_per_chunk: how many clients are vmapped; 1 runs them one after the other.
    race: who counts by the time of the report, where the cohort's `device` has `clock.Costs`; None
      where all do.

  Returns:
    The summed upload, the memories after the round, and the summed metrics with `excluded_clients`
    and `clients`, whose totals are counts. Who vanished, has no examples or is excluded keeps the
    memory it has.
  """
  everybody = cohort.numbers.shape[0]
  return sum_over_first(
    client, download, memories, federation, cohort, key, clients_per_chunk, everybody, race
  )


def sum_over_first(
  client: Client,
  download: Any,
  memories: Memory,
  federation: Federation,
  cohort: Cohort,
  key: Key,
  clients_per_chunk: int,
  num_clients: int | jax.Array,
  race: Race | None = None,
) -> tuple[Any, Memory, Metrics]:
  """Does as `sum_over_clients` for the first clients of a cohort.

  Args:
    client: one client's round.
    download: what every client receives.
    memories: of the clients, (num_rows, ...) arrays, a row where `starts` have that of the client.
    federation: all clients' data.
    cohort: the clients of which some take part; the others are not present.
    key: of the round.
    clients_per_chunk: how many clients are vmapped.
    num_clients: how many take part; may be traced, and chunks without any take no time.
    race: who counts.
  """

  @jax.jit  # traced once, for the shapes and for the loop
  def run(
    download: Any, federation: Federation, key: Key, member: Cohort, memory: Memory
  ) -> tuple[Any, Memory, jax.Array]:
    data = data_of(federation, member)
    results = client(download, memory, data, jax.random.fold_in(key, member.numbers))
    return _unless_broken(*results, data.size)

  def run_chunk(i: jax.Array, carry: Any) -> Any:
    memories, sums = carry
    members = jax.tree.map(lambda leaf: leaf[i], chunks)
    if clients_per_chunk == 1:
      members = first_of(members)
      results, kept, is_counted = run(*common, members, memory_of(memories, members))
    else:
      each = jax.vmap(run, (None, None, None, 0, 0))
      results, kept, is_counted = each(*common, members, memory_of(memories, members))
      with jax.named_scope("aggregation"):
        results = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), results)

    def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
      rows = jnp.where(is_counted, members.rows, leaf.shape[0])  # beyond the last: not written
      return leaf.at[rows].set(new, mode="drop")

    with jax.named_scope("aggregation"):
      memories = jax.tree.map(put, memories, kept)
      return memories, jax.tree.map(jnp.add, sums, results)

  def first_of(members: Cohort) -> Cohort:
    return jax.tree.map(lambda leaf: leaf[0], members)

  def run_racing(members: Cohort, memories: Memory) -> Results:
    def of_member(member: Cohort, memory: Memory) -> Any:
      data = data_of(federation, member)
      own_key = jax.random.fold_in(key, member.numbers)
      upload, memory, metrics = client(download, memory, data, own_key)
      sent = report(member.device, metrics, data.size)
      return *_unless_broken(upload, memory, metrics, data.size), sent

    if clients_per_chunk == 1:
      alone = of_member(first_of(members), memory_of(memories, first_of(members)))
      results, kept, is_counted, sent = jax.tree.map(lambda leaf: leaf[None], alone)
    else:
      results, kept, is_counted, sent = jax.vmap(of_member)(members, memory_of(memories, members))
    return Results(results, kept, members.rows, is_counted, sent)

  *_, indices, starts, sizes, slots, scales, _ = federation
  chex.assert_rank([indices, starts, sizes, slots, scales], 1)
  common = download, federation, key
  chunks = _cut(cohort, clients_per_chunk)
  num_chunks = -(-num_clients // clients_per_chunk)
  if race is not None:
    return sum_of_race(race, run_racing, chunks, memories, num_chunks)
  first = first_of(cohort)
  shapes, *_ = jax.eval_shape(run, *common, first, memory_of(memories, first))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  memories, (upload, metrics) = lax.fori_loop(0, num_chunks, run_chunk, (memories, zeros))
  return upload, memories, metrics


def upload_shapes(
  client: Client,
  download: Any,
  memories: Memory,
  federation: Federation,
  cohort: Cohort,
  key: Key,
) -> Any:
  """Finds the shapes of what a client of a cohort sends, which nothing is computed for."""
  first = jax.tree.map(lambda leaf: leaf[0], cohort)
  data, memory = data_of(federation, first), memory_of(memories, first)
  return jax.eval_shape(client, download, memory, data, key)[0]


def memory_of(memories: Memory, members: Cohort) -> Memory:
  """Picks the memories of members of a cohort.

  Args:
    memories: (num_rows, ...) arrays.
    members: entries of a `Cohort`, one or several.
  """
  return jax.tree.map(lambda leaf: leaf[members.rows], memories)


def data_of(federation: Federation, member: Cohort) -> ClientData:
  """Picks what a member of a cohort trains on: nothing if it vanished.

  Args:
    federation: all clients' data.
    member: () entries of a `Cohort`.
  """
  start, max_size = federation.starts[member.rows], federation.slots.shape[0]
  return ClientData(
    federation.x,
    federation.y,
    lax.dynamic_slice_in_dim(federation.indices, start, max_size),
    jnp.where(member.is_present, federation.sizes[member.numbers], 0),
    federation.density_scales[member.numbers],
    member.work,
  )


def _cut(cohort: Cohort, clients_per_chunk: int) -> Cohort:
  """Reshapes to (num_chunks, clients_per_chunk); who fills the last chunk up is not present."""
  num_clients = cohort.numbers.shape[0]
  num_chunks = -(-num_clients // clients_per_chunk)
  missing = num_chunks * clients_per_chunk - num_clients

  def reshape(leaf: jax.Array) -> jax.Array:
    return jnp.pad(leaf, (0, missing)).reshape(num_chunks, clients_per_chunk)

  return jax.tree.map(reshape, cohort)


def _unless_broken(
  upload: Any, memory: Memory, metrics: Metrics, size: jax.Array
) -> tuple[tuple[Any, Metrics], Memory, jax.Array]:
  """Takes a client out whose upload is not finite; it would take the whole model with it."""
  (num_broken,) = count_each(lambda leaf: [~jnp.isfinite(leaf)], jax.tree.leaves((upload, memory)))
  # One reduction, which is not computed anew for everything that depends on it.
  is_fine = jnp.all(num_broken == 0)
  kept = jax.tree.map(lambda leaf: jnp.where(is_fine, leaf, 0), (upload, metrics))

  def count(is_counted: jax.Array) -> Mean:
    return Mean(is_counted.astype(jnp.float32), jnp.float32(0))

  is_counted = is_fine & (size > 0)
  counts = {EXCLUDED: count(~is_fine), CLIENTS: count(is_counted)}
  return (kept[0], {**kept[1], **counts}), memory, is_counted
