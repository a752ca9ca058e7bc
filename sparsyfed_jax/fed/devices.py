"""A cohort shared out to the devices of a mesh, and on which of them the examples lie.

With D devices, also of several processes:

- replicated: every device holds all examples; the clients of a round are dealt to them in turn.
- sharded: client c lies on device c % D, which trains it whenever it is sampled. A device holds
  1/D of the examples; how many clients it gets in a round is left to chance.
- streamed: the host keeps the examples and sends each round's ahead; the p-th client of the cohort
  goes to device p % D.

Each way every client is trained once with the randomness of its number, so that all give the same
sums, up to the order of adding.
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

from sparsyfed_jax.fed.cohort import Federation, sum_over_first
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.types import ClientData, Key, Metrics

AXIS = "clients"
PLACEMENTS = ("replicated", "sharded", "streamed")

_LARGEST_SMALL_LEAF = 2**16  # entries; copying more takes longer than a sum of its own

_EVERYWHERE, _DEALT = PartitionSpec(), PartitionSpec(AXIS)


def sum_over_devices(
  mesh: Mesh,
  placement: str,
  client: Callable[[Any, ClientData, Key], tuple[Any, Metrics]],
  download: Any,
  federation: Federation,
  cohort: Cohort,
  key: Key,
  clients_per_chunk: int,
) -> tuple[Any, Metrics]:
  """Shares a cohort out to the devices of a mesh, and adds their sums up.

  Result and further arguments are those of `sum_over_clients`.

  Args:
    mesh: of one axis, called `AXIS`.
    placement: one of PLACEMENTS.
    client: one client's round.
    download: what every client receives.
    federation: all clients' data, as `place` or `stage` lays it out.
    cohort: the clients that take part.
    key: of the round.
    clients_per_chunk: how many clients a device vmaps.
  """
  data = _EVERYWHERE if placement == "replicated" else _DEALT
  specs: dict[str, Any] = dict.fromkeys(Federation._fields, _EVERYWHERE)
  specs |= dict.fromkeys(("x", "y", "indices"), data)

  def on_one_device(download: Any, federation: Federation, cohort: Cohort, key: Key) -> Any:
    mine, count = _SHARES[placement](cohort, lax.axis_index(AXIS), mesh.size)
    sums = sum_over_first(client, download, federation, mine, key, clients_per_chunk, count)
    return _add_up(sums)

  run = jax.shard_map(
    on_one_device,
    mesh=mesh,
    in_specs=(
      _EVERYWHERE,
      Federation(**specs),
      _EVERYWHERE,
      _EVERYWHERE,
    ),
    out_specs=_EVERYWHERE,
    check_vma=False,  # the loop's carry starts out the same on all devices
  )
  return run(download, federation, cohort, key)


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


def place(host: Federation, mesh: Mesh, placement: str) -> Federation:
  """Lays all clients' data out on the devices of a mesh, each process filling its own.

  Args:
    host: of NumPy arrays, the same in every process.
    mesh: of one axis, called `AXIS`.
    placement: "replicated" or "sharded".
  """
  if placement == "replicated":
    return put(host, NamedSharding(mesh, _EVERYWHERE))
  everybody = np.arange(len(host.sizes))
  shares = [everybody[rank :: mesh.size] for rank in range(mesh.size)]
  num_rows = max(1, *(int(host.sizes[share].sum()) for share in shares))
  return shard_examples(put_sizes(host, mesh), host, mesh, shares, num_rows)


def put_sizes(host: Federation, mesh: Mesh) -> Federation:
  """Puts what is known of all clients besides their examples on every device of a mesh."""
  sizes, scales = put((host.sizes, host.density_scales), NamedSharding(mesh, _EVERYWHERE))
  return host._replace(sizes=sizes, density_scales=scales)


def shard_examples(
  placed: Federation,
  host: Federation,
  mesh: Mesh,
  shares: Sequence[np.ndarray],
  num_rows: int,
) -> Federation:
  """Gives each device of a mesh the examples of some clients.

  Args:
    placed: `host` as `put_sizes` leaves it.
    host: of NumPy arrays.
    mesh: of one axis, called `AXIS`.
    shares: the numbers of each device's clients; the i-th list of indices on a device is that of
      the i-th of them, and indices count that device's examples from 0.
    num_rows: of examples on each device, the last of them zeros; enough for every share.
  """
  num_lists = max(map(len, shares))
  max_size = host.indices.shape[1]
  dealt = NamedSharding(mesh, _DEALT)

  @cache
  def rows_of(rank: int) -> np.ndarray:
    lists = [host.indices[number, : host.sizes[number]] for number in shares[rank]]
    return np.concatenate([np.zeros(0, np.int32), *lists])

  def fill(length: int, shape: tuple[int, ...], dtype: Any, share: Callable[..., Any]) -> jax.Array:
    def block(index: Any) -> np.ndarray:
      values = np.zeros((length, *shape), dtype)
      content = share((index[0].start or 0) // length)
      values[: len(content)] = content
      return values

    whole = (length * mesh.size, *shape)
    return jax.make_array_from_callback(whole, dealt, block)

  def indices_of(rank: int) -> np.ndarray:
    sizes = host.sizes[shares[rank]]
    starts = np.cumsum(sizes) - sizes
    return starts[:, None] + np.minimum(np.arange(max_size), sizes[:, None] - 1).clip(0)

  return placed._replace(
    x=fill(num_rows, host.x.shape[1:], host.x.dtype, lambda rank: host.x[rows_of(rank)]),
    y=fill(num_rows, (), host.y.dtype, lambda rank: host.y[rows_of(rank)]),
    indices=fill(num_lists, (max_size,), np.int32, indices_of),
  )


def _add_up(sums: Any) -> Any:
  """Adds up what all devices have, small leaves of a dtype together: a sum makes all wait."""
  leaves, treedef = jax.tree.flatten(sums)
  groups: dict[Any, list[int]] = {}  # in an order that is the same in every process
  for i, leaf in enumerate(leaves):
    groups.setdefault(leaf.dtype if leaf.size <= _LARGEST_SMALL_LEAF else i, []).append(i)
  for group in groups.values():
    flat, unravel = ravel_pytree([leaves[i] for i in group])
    for i, leaf in zip(group, unravel(lax.psum(flat, AXIS)), strict=True):
      leaves[i] = leaf
  return jax.tree.unflatten(treedef, leaves)


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
