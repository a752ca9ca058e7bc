"""Distribution of a cohort and of the examples over the devices of a mesh.

With D devices, also of several processes:

- replicated: every device holds all examples; the clients of a round are dealt to them in turn.
- sharded: client c lies on device c % D, which trains it whenever it is sampled. A device holds
  1/D of the examples; how many clients it gets in a round is left to chance.
- streamed: the host keeps the examples and sends each round's ahead; the p-th client of the cohort
  goes to device p % D.

What clients keep between rounds lies where their examples do. Each way every client is trained once
with the randomness of its number, so that all give the same sums, up to the order of adding.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from sparsyfed_jax.data.lists import rows_of_clients
from sparsyfed_jax.data.mapped import take, zeros
from sparsyfed_jax.data.rows import Examples
from sparsyfed_jax.fed.algorithm import Client
from sparsyfed_jax.fed.cohort import Federation, sum_over_first
from sparsyfed_jax.fed.race import Race
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.types import Key, Memory, Metrics

AXIS = "clients"
PLACEMENTS = ("replicated", "sharded", "streamed")

_LARGEST_SMALL_LEAF = 2**16  # entries; copying more takes longer than a sum of its own

_WHOLE = (jnp.uint32, jnp.int32)
_SHIFTS = (0, 11, 22)  # of the parts of a whole number

_EVERYWHERE, _DEALT = PartitionSpec(), PartitionSpec(AXIS)


def sum_over_devices(
  mesh: Mesh,
  placement: str,
  client: Client,
  download: Any,
  memories: Memory,
  federation: Federation,
  cohort: Cohort,
  key: Key,
  clients_per_chunk: int,
  race: Race | None = None,
) -> tuple[Any, Memory, Metrics]:
  """Shares a cohort out to the devices of a mesh, and adds their sums up.

  Result and further arguments are those of `sum_over_clients`.

  Args:
    mesh: of one axis, called `AXIS`.
    placement: one of PLACEMENTS.
    client: one client's round.
    download: what every client receives.
    memories: of the clients, as `place_memories` or `send_memories` lays them out.
    federation: all clients' data, as `place` or `stage` lays it out.
    cohort: the clients that take part.
    key: of the round.
    clients_per_chunk: how many clients a device vmaps.
    race: who counts.
  """
  together = None if race is None else race._replace(axis=AXIS)
  data = _EVERYWHERE if placement == "replicated" else _DEALT
  specs: dict[str, Any] = dict.fromkeys(Federation._fields, _EVERYWHERE)
  specs |= dict.fromkeys(("x", "y", "starts"), data)

  def on_one_device(
    download: Any, memories: Memory, federation: Federation, cohort: Cohort, key: Key
  ) -> Any:
    mine, count = _SHARES[placement](cohort, lax.axis_index(AXIS), mesh.size)
    upload, memories, metrics = sum_over_first(
      client, download, memories, federation, mine, key, clients_per_chunk, count, together
    )
    if placement == "replicated":
      memories = _exchange_memories(memories, mine)
    with jax.named_scope("aggregation"):
      upload, metrics = _add_up((upload, metrics))
    return upload, memories, metrics

  run = jax.shard_map(
    on_one_device,
    mesh=mesh,
    in_specs=(
      _EVERYWHERE,
      data,
      Federation(**specs),
      _EVERYWHERE,
      _EVERYWHERE,
    ),
    out_specs=(_EVERYWHERE, data, _EVERYWHERE),
    check_vma=False,  # the loop's carry starts out the same on all devices
  )
  return run(download, memories, federation, cohort, key)


def platform_of(mesh: Mesh) -> str:
  """Tells what programs for a mesh are compiled for: "cpu", "gpu" or "tpu"."""
  device: jax.Device = mesh.devices.flat[0]
  return device.platform


def put(tree: Any, sharding: Sharding) -> Any:
  """Puts arrays on devices, which may belong to several processes.

  Args:
    tree: pytree of arrays, typed keys included, the same in every process.
    sharding: of all leaves.
  """
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def put_leaf(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(put_leaf(jax.random.key_data(leaf)))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

  return jax.tree.map(put_leaf, tree)


def rows_of_shares(sizes: np.ndarray, num_devices: int) -> int:
  """Counts the examples of the device with most of them, where each has its share of clients."""
  return max(1, *(int(sizes[rank::num_devices].sum()) for rank in range(num_devices)))


def place(host: Federation, mesh: Mesh, placement: str, least_rows: int = 0) -> Federation:
  """Lays all clients' data out on the devices of a mesh, each process filling its own.

  Args:
    host: of NumPy arrays, the same in every process.
    mesh: of one axis, called `AXIS`.
    placement: "replicated" or "sharded".
    least_rows: for how many examples a device has room at least where they are sharded, so that
      data after a shift has the shapes of those before.
  """
  if placement == "replicated":
    return put(host._replace(x=np.asarray(host.x)), NamedSharding(mesh, _EVERYWHERE))
  everybody = np.arange(len(host.sizes))
  shares = [everybody[rank :: mesh.size] for rank in range(mesh.size)]
  num_rows = max(least_rows, rows_of_shares(host.sizes, mesh.size))
  return shard_examples(put_common(host, mesh, num_rows), host, mesh, shares, num_rows)


def place_memories(host: Memory, mesh: Mesh, placement: str, axis: int = 0) -> Memory:
  """Lays the memories of all clients out as `place` does their data.

  Args:
    host: arrays of all clients, in their order.
    mesh: of one axis, called `AXIS`.
    placement: one of PLACEMENTS; "streamed" makes NumPy arrays, which may be written to.
    axis: of the arrays, along which clients are.
  """
  if placement == "replicated":
    return put(host, NamedSharding(mesh, _EVERYWHERE))
  if placement == "streamed":
    return jax.tree.map(np.array, host)

  def deal(leaf: Any) -> Any:
    return send_memories(leaf, deal_numbers(np.arange(leaf.shape[axis]), mesh.size), mesh, axis)

  return jax.tree.map(deal, host)


def collect_memories(placed: Memory, mesh: Mesh, num_clients: int, axis: int = 0) -> Memory:
  """Takes memories that `place_memories` has dealt to devices back in the order of the clients."""
  clients = deal_numbers(np.arange(num_clients), mesh.size)
  places = np.argsort(clients)[len(clients) - num_clients :]  # after those of fillers
  return jax.tree.map(lambda leaf: np.asarray(leaf).take(places, axis), placed)


def send_memories(host: Memory, clients: np.ndarray, mesh: Mesh, axis: int = 0) -> Memory:
  """Sends the memories of clients to the devices of a mesh, each an equal share of the rows.

  Args:
    host: as in `place_memories`.
    clients: their numbers, as `deal_numbers` makes them.
    mesh: of one axis, called `AXIS`.
    axis: as in `place_memories`.
  """
  rows = jax.tree.map(lambda leaf: np.asarray(leaf).take(clients, axis), host)
  return put(rows, deal_sharding(mesh, axis))


def deal_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Makes the sharding of arrays of which each device of a mesh has its share along an axis."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def deal_numbers(numbers: np.ndarray, num_devices: int) -> np.ndarray:
  """Orders numbers device by device, dealt in turn, and fills the shares up with -1."""
  padded = np.pad(numbers, (0, -len(numbers) % num_devices), constant_values=-1)
  return padded.reshape(-1, num_devices).T.reshape(-1)


def put_common(host: Federation, mesh: Mesh, num_rows: int) -> Federation:
  """Puts on every device of a mesh what is known of all clients besides their examples.

  Where a device has the examples of some clients alone, they lie there in the clients' order.

  Args:
    host: of NumPy arrays.
    mesh: of one axis, called `AXIS`.
    num_rows: of examples on each device.
  """
  indices = np.arange(num_rows + len(host.slots), dtype=np.int32)
  common = indices, host.sizes, host.slots, host.density_scales, host.fleet
  indices, sizes, slots, scales, fleet = put(common, NamedSharding(mesh, _EVERYWHERE))
  return host._replace(
    indices=indices, sizes=sizes, slots=slots, density_scales=scales, fleet=fleet
  )


def shard_examples(
  placed: Federation,
  host: Federation,
  mesh: Mesh,
  shares: Sequence[np.ndarray],
  num_rows: int,
) -> Federation:
  """Gives each device of a mesh the examples of some clients.

  Args:
    placed: `host` as `put_common` leaves it.
    host: of NumPy arrays, of which the examples may lie in files.
    mesh: of one axis, called `AXIS`.
    shares: the numbers of each device's clients; the i-th start on a device is that of the i-th of
      them, and counts that device's examples from 0.
    num_rows: of examples on each device, the last of them zeros; enough for every share.
  """
  num_lists = max(map(len, shares))
  dealt = deal_sharding(mesh)

  @cache
  def rows_of(rank: int) -> np.ndarray:
    return rows_of_clients(host, shares[rank])

  def fill(length: int, shape: tuple[int, ...], dtype: Any, write: Callable[..., Any]) -> jax.Array:
    def block(index: Any) -> np.ndarray:
      values = zeros((length, *shape), dtype)
      write((index[0].start or 0) // length, values)
      return values

    whole = (length * mesh.size, *shape)
    return jax.make_array_from_callback(whole, dealt, block)

  def examples_of(array: Examples) -> jax.Array:
    def write(rank: int, values: np.ndarray) -> None:
      rows = rows_of(rank)
      take(array, rows, values[: len(rows)])

    return fill(num_rows, array.shape[1:], array.dtype, write)

  def write_starts(rank: int, values: np.ndarray) -> None:
    sizes = host.sizes[shares[rank]]
    values[: len(sizes)] = np.cumsum(sizes) - sizes

  return placed._replace(
    x=examples_of(host.x),
    y=examples_of(host.y),
    starts=fill(num_lists, (), np.int32, write_starts),
  )


def _add_up(sums: Any) -> Any:
  """Adds up what all devices have, small leaves of a dtype together: a sum makes all wait.

  Whole numbers go with floats, in parts that add up exactly on up to 2^13 devices.
  """
  leaves, treedef = jax.tree.flatten(sums)
  groups: dict[Any, list[int]] = {}  # in an order that is the same in every process
  for i, leaf in enumerate(leaves):
    groups.setdefault(leaf.dtype if leaf.size <= _LARGEST_SMALL_LEAF else i, []).append(i)
  flats, unravels = [], []
  for key, group in groups.items():
    flat, unravel = ravel_pytree([leaves[i] for i in group])
    flats.append(_cut(flat) if key in _WHOLE else flat)
    unravels.append(unravel)
  together = [i for i, key in enumerate(groups) if key == jnp.float32 or key in _WHOLE]
  joined, split = ravel_pytree([flats[i] for i in together])
  apart = {i: lax.psum(flat, AXIS) for i, flat in enumerate(flats) if i not in together}
  found = apart | dict(zip(together, split(lax.psum(joined, AXIS)), strict=True))
  for place, (key, group) in enumerate(groups.items()):
    flat = _whole(found[place], key) if key in _WHOLE else found[place]
    for i, leaf in zip(group, unravels[place](flat), strict=True):
      leaves[i] = leaf
  return jax.tree.unflatten(treedef, leaves)


def _cut(numbers: jax.Array) -> jax.Array:
  bits = lax.bitcast_convert_type(numbers, jnp.uint32)
  return jnp.stack([bits >> shift & 2047 for shift in _SHIFTS]).astype(jnp.float32)


def _whole(parts: jax.Array, dtype: Any) -> jax.Array:
  bits = sum(part << shift for part, shift in zip(parts.astype(jnp.uint32), _SHIFTS, strict=True))
  return lax.bitcast_convert_type(bits, dtype)


def _exchange_memories(memories: Memory, mine: Cohort) -> Memory:
  """Tells every device what the others' clients keep."""
  if not jax.tree.leaves(memories):
    return memories
  everyone = jax.tree.map(lambda leaf: lax.all_gather(leaf, AXIS, tiled=True), mine)

  def exchange(leaf: jax.Array) -> jax.Array:
    rows = jnp.where(everyone.is_present, everyone.rows, leaf.shape[0])
    changed = lax.all_gather(leaf[mine.rows], AXIS, tiled=True)
    return leaf.at[rows].set(changed, mode="drop")

  return jax.tree.map(exchange, memories)


def _share_in_turn(
  cohort: Cohort, rank: jax.Array, num_devices: int, is_staged: bool
) -> tuple[Cohort, int]:
  """Takes every D-th client: those with least to do come first, so each device gets all kinds."""
  num_clients = cohort.numbers.shape[0]
  count = -(-num_clients // num_devices)
  places = jnp.arange(count) * num_devices + rank
  mine = jax.tree.map(lambda leaf: leaf[jnp.minimum(places, num_clients - 1)], cohort)
  mine = mine._replace(is_present=mine.is_present & (places < num_clients))
  return mine._replace(rows=jnp.arange(count)) if is_staged else mine, count


def _share_by_number(cohort: Cohort, rank: jax.Array, num_devices: int) -> tuple[Cohort, jax.Array]:
  """Puts the clients that lie on this device first."""
  is_mine = cohort.numbers % num_devices == rank
  order = jnp.argsort(~is_mine, stable=True)
  mine = cohort._replace(is_present=cohort.is_present & is_mine, rows=cohort.numbers // num_devices)
  return jax.tree.map(lambda leaf: leaf[order], mine), jnp.sum(is_mine, dtype=jnp.int32)


_SHARES: dict[str, Callable[..., tuple[Cohort, Any]]] = {
  "replicated": partial(_share_in_turn, is_staged=False),
  "sharded": _share_by_number,
  "streamed": partial(_share_in_turn, is_staged=True),
}
