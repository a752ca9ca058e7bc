"""The outline of a run on a target: its programs, lowered from shapes, and what they depend on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from experiments.plan.hlo import CLIENTS, LOCAL_STEPS
from experiments.plan.targets import Target, devices_of, usable_bytes
from experiments.run.build import Experiment
from experiments.run.layout import layout_of, with_sharding, without_memories
from experiments.run.placing import Machine, everywhere
from sparsyfed_jax.fed import memory
from sparsyfed_jax.fed.cohort import Federation
from sparsyfed_jax.fed.devices import deal_sharding, rows_of_shares
from sparsyfed_jax.fed.streaming import Staged, rows_of_rounds
from sparsyfed_jax.types import Memory

_DRAWS = 256  # cohorts, for the mean number of steps


class Lowering(NamedTuple):
  """What is compiled for a run, and the arrays that its programs are given."""

  run: Callable[[], jax.stages.Lowered]  # of rounds
  evaluate: Callable[[], jax.stages.Lowered]
  data: Any  # shapes of the clients' examples that `run` is given
  state: Any  # of what the server has
  memories: Memory  # of what clients keep
  test: Any  # of the test set, on the devices all the time


def machine_of(target: Target) -> Machine:
  """Makes the machine of a plan, on which arrays are shapes."""
  made_for = memory.Target(target.chip.platform, usable_bytes(target)[0])
  return Machine(lambda: devices_of(target), shapes_of, placed_shapes, lambda mesh: made_for)


def shapes_of(tree: Any, sharding: Sharding) -> Any:
  """Does as `devices.put`, for shapes."""
  return with_sharding(jax.tree.map(_as_on_device, tree), sharding)


def _as_on_device(leaf: Any) -> Any:
  return jax.eval_shape(lambda: jnp.asarray(leaf)) if isinstance(leaf, float | int) else leaf


def placed_shapes(host: Federation, mesh: Mesh, placement: str, least_rows: int = 0) -> Federation:
  """Does as `devices.place`, for shapes."""
  if placement == "replicated":
    return shapes_of(host, everywhere(mesh))
  num_lists = -(-len(host.sizes) // mesh.size)
  num_rows = max(least_rows, rows_of_shares(np.asarray(host.sizes), mesh.size))
  return _dealt(host, mesh, num_rows, num_lists)


def staged_shapes(host: Federation, mesh: Mesh, cohorts: Any, least_rows: int = 0) -> Staged:
  """Makes the shapes of one round's examples, as `streaming.stage` sends them.

  Args:
    host: all clients' data.
    mesh: of one axis.
    cohorts: shapes (num_rounds, clients_per_round) of cohorts.
    least_rows: as in `stage`.
  """
  num_clients = cohorts.numbers.shape[1]
  num_rows = max(least_rows, rows_of_rounds(np.asarray(host.sizes), num_clients, mesh.size))
  cohort = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=everywhere(mesh)),
    cohorts,
  )
  return Staged(_dealt(host, mesh, num_rows, -(-num_clients // mesh.size)), cohort)


def _dealt(host: Federation, mesh: Mesh, num_rows: int, num_lists: int) -> Federation:
  dealt = deal_sharding(mesh)

  def of(num: int, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((num * mesh.size, *shape), dtype, sharding=dealt)

  indices = jax.ShapeDtypeStruct((num_rows + len(host.slots),), jnp.int32)
  common = indices, host.sizes, host.slots, host.density_scales, host.fleet
  indices, sizes, slots, scales, fleet = shapes_of(common, everywhere(mesh))
  return Federation(
    x=of(num_rows, host.x.shape[1:], host.x.dtype),
    y=of(num_rows, host.y.shape[1:], host.y.dtype),
    indices=indices,
    starts=of(num_lists, (), jnp.int32),
    sizes=sizes,
    slots=slots,
    density_scales=scales,
    fleet=fleet,
  )


def lowering_of(experiment: Experiment) -> Lowering:
  """Makes what is compiled of a run, of `build.outline` on `machine_of` a target."""
  simulation, mesh = experiment.simulation, experiment.mesh
  layout = layout_of(experiment)
  made = jax.eval_shape(simulation.init, experiment.hyper, experiment.keys.init)
  key = experiment.keys.rounds
  server = without_memories(layout.placed(made, 0))
  data: Any = experiment.federation
  num_rows = layout.num_clients
  if layout.placement == "streamed":
    host = experiment.federation
    cohorts = jax.eval_shape(simulation.draw, server, host.sizes, key, host.fleet)
    # Cohorts have what they need of the fleet.
    data = staged_shapes(host._replace(fleet=()), mesh, cohorts, experiment.num_rows)
    num_rows = data.cohort.numbers.shape[0]
  state = layout.placed(made, num_rows)
  count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere(mesh))

  def run() -> jax.stages.Lowered:
    if layout.placement == "streamed":
      return simulation.run_staged.lower(state, data, key)
    return simulation.run.lower(state, data, key, count)

  test = experiment.x_test, experiment.y_test
  return Lowering(
    run,
    lambda: simulation.evaluate.lower(server, *test),
    data,
    state.server,
    state.memories,
    test,
  )


def bytes_on_chip(tree: Any) -> int:
  """Counts the bytes of arrays that one chip holds, of shapes that say where they lie."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    shape = leaf.sharding.shard_shape(leaf.shape)
    total += int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize
  return total


def trips_of(
  sizes: np.ndarray,
  batch_size: int,
  clients_per_round: int,
  clients_per_chunk: int,
  num_chips: int,
  placement: str,
) -> Mapping[str, float]:
  """Estimates how often loops run whose length the data decides, by drawing cohorts.

  Args:
    sizes: examples of each client.
    batch_size: of local steps.
    clients_per_round: of a cohort, which is sorted by size and dealt to the chips.
    clients_per_chunk: side by side on a chip.
    num_chips: that share a cohort.
    placement: one of `devices.PLACEMENTS`.

  Returns:
    By scope of `hlo`: the steps of an epoch, mean of all chunks, and the chunks of the chip that
    has most.
  """
  steps = -(-np.asarray(sizes, np.int64) // batch_size)
  random = np.random.default_rng(0)
  longest, most = [], []
  for _ in range(_DRAWS):
    drawn = random.choice(len(steps), clients_per_round, replace=False)
    cohort = drawn[np.argsort(steps[drawn], kind="stable")]
    place = cohort if placement == "sharded" else np.arange(clients_per_round)
    shares = [steps[cohort[place % num_chips == rank]] for rank in range(num_chips)]
    chunks = [
      share[i : i + clients_per_chunk]
      for share in shares
      for i in range(0, len(share), clients_per_chunk)
    ]
    longest += [int(chunk.max()) for chunk in chunks]
    most.append(max(-(-len(share) // clients_per_chunk) for share in shares))
  return {LOCAL_STEPS: float(np.mean(longest)), CLIENTS: float(np.mean(most))}
