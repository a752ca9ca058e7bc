"""The sum of a cohort's uploads in bounded memory: a scan over chunks of a vmap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.types import ClientData, Key, Mean, Metrics

EXCLUDED = "excluded_clients"
AXIS = "clients"


class Federation(NamedTuple):
  """All clients' training data: one copy of the examples, and whose they are."""

  x: jax.Array  # (num_examples, *shape), as stored
  y: jax.Array  # (num_examples,) int32
  indices: jax.Array  # (num_clients, max_size) int32 rows of x and y, padded
  sizes: jax.Array  # (num_clients,) int32
  density_scales: jax.Array  # (num_clients,) float32, relative to the run's density


def sum_over_clients(
  client: Callable[[Any, ClientData, Key], tuple[Any, Metrics]],
  download: Any,
  federation: Federation,
  cohort: Cohort,
  key: Key,
  clients_per_chunk: int,
) -> tuple[Any, Metrics]:
  """Runs the clients of a round and adds up what they send.

  A client's randomness comes from its number and the round's key, so neither the order of the
  cohort nor the size of a chunk changes what a client does. Memory holds one chunk of clients and
  one sum. An upload that is not finite counts as none, and is counted.

  Args:
    client: one client's round.
    download: what every client receives.
    federation: all clients' data.
    cohort: the clients that take part.
    key: of the round.
    clients_per_chunk: how many clients are vmapped; 1 runs them one after the other.

  Returns:
    The summed upload, and the summed metrics with `excluded_clients`, whose total is a count.
  """

  def run(member: Cohort) -> tuple[Any, Metrics]:
    number = member.numbers
    data = ClientData(
      federation.x,
      federation.y,
      federation.indices[number],
      jnp.where(member.is_present, federation.sizes[number], 0),
      federation.density_scales[number],
      member.work,
    )
    results = client(download, data, jax.random.fold_in(key, number))
    return _unless_broken(*results)

  def run_chunk(sums: Any, chunk: Cohort) -> tuple[Any, None]:
    if clients_per_chunk == 1:
      results = run(jax.tree.map(lambda leaf: leaf[0], chunk))
    else:
      results = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.vmap(run)(chunk))
    return jax.tree.map(jnp.add, sums, results), None

  chunks = _cut(cohort, clients_per_chunk)
  shapes = jax.eval_shape(run, jax.tree.map(lambda leaf: leaf[0, 0], chunks))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  sums, _ = lax.scan(run_chunk, zeros, chunks)
  return sums


def sum_over_devices(
  mesh: Mesh,
  client: Callable[[Any, ClientData, Key], tuple[Any, Metrics]],
  download: Any,
  federation: Federation,
  cohort: Cohort,
  key: Key,
  clients_per_chunk: int,
) -> tuple[Any, Metrics]:
  """Shares a cohort out to the devices of a mesh, and adds their sums up.

  Every device holds all data and the whole model. Clients are dealt in turn, so that each device
  gets large ones and small ones. Result and further arguments are those of `sum_over_clients`.

  Args:
    mesh: of one axis, called `AXIS`.
    client: one client's round.
    download: what every client receives.
    federation: all clients' data.
    cohort: the clients that take part.
    key: of the round.
    clients_per_chunk: how many clients a device vmaps.
  """

  def on_one_device(download: Any, federation: Federation, cohort: Cohort, key: Key) -> Any:
    sums = sum_over_clients(client, download, federation, cohort, key, clients_per_chunk)
    return lax.psum(sums, AXIS)

  everywhere, dealt = PartitionSpec(), PartitionSpec(AXIS)
  run = jax.shard_map(
    on_one_device,
    mesh=mesh,
    in_specs=(everywhere, everywhere, dealt, everywhere),
    out_specs=everywhere,
    check_vma=False,  # the loop's carry starts out the same on all devices
  )
  rows = _cut(cohort, mesh.size)
  return run(download, federation, jax.tree.map(lambda leaf: leaf.T.reshape(-1), rows), key)


def _cut(cohort: Cohort, clients_per_chunk: int) -> Cohort:
  """Reshapes to (num_chunks, clients_per_chunk); who fills the last chunk up is not present."""
  num_clients = cohort.numbers.shape[0]
  num_chunks = -(-num_clients // clients_per_chunk)
  missing = num_chunks * clients_per_chunk - num_clients

  def reshape(leaf: jax.Array) -> jax.Array:
    return jnp.pad(leaf, (0, missing)).reshape(num_chunks, clients_per_chunk)

  return jax.tree.map(reshape, cohort)


def _unless_broken(upload: Any, metrics: Metrics) -> tuple[Any, Metrics]:
  """Takes a client out whose upload is not finite; it would take the whole model with it."""
  is_fine = jnp.bool_(True)
  for leaf in jax.tree.leaves(upload):
    is_fine &= jnp.all(jnp.isfinite(leaf))
  kept = jax.tree.map(lambda leaf: jnp.where(is_fine, leaf, 0), (upload, metrics))
  excluded = Mean((~is_fine).astype(jnp.float32), jnp.float32(0))
  return kept[0], {**kept[1], EXCLUDED: excluded}
