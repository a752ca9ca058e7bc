"""Where the arrays of a run lie: on devices, or nowhere, where it is only planned."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.run.config import Config, ConfigError
from sparsyfed_jax.data.dataset import Dataset, flat
from sparsyfed_jax.data.lists import Parts, join_phases
from sparsyfed_jax.fed.cohort import Federation, federation_of
from sparsyfed_jax.fed.devices import AXIS, place, put
from sparsyfed_jax.fed.memory import Target, target_of


class Machine(NamedTuple):
  """The devices of a run, and how arrays come onto them."""

  devices: Callable[[], Sequence[jax.Device]]
  put: Callable[..., Any]  # (tree, sharding) -> the tree with arrays that lie so
  # (federation on the host, mesh, placement, least_rows) -> federation, as `devices.place`
  place: Callable[..., Federation]
  target: Callable[[Mesh], Target]  # what clients side by side are chosen for


HERE = Machine(jax.devices, put, place, lambda mesh: target_of(mesh.local_devices[0]))


def everywhere(mesh: Mesh) -> NamedSharding:
  """Makes the sharding of what every device has."""
  return NamedSharding(mesh, PartitionSpec())


def make_mesh(config: Config, machine: Machine) -> Mesh:
  """Makes the mesh of the devices that take part; raises ConfigError of more than there are."""
  devices = machine.devices()
  if config.num_devices is not None and config.num_devices > len(devices):
    raise ConfigError(
      f"--num_devices={config.num_devices}: must be at most {len(devices)}, the devices of this"
      " machine"
    )
  return Mesh(np.array(devices[: config.num_devices]), (AXIS,))


def phases_of(
  dataset: Dataset,
  parts: Parts,
  parts_after: Parts | None,
  scales: np.ndarray,
  fleet: Any = (),
) -> tuple[Federation, Federation]:
  """Makes the data before and after a shift, the same where there is none."""
  phases = [parts] if parts_after is None else [*join_phases(parts, parts_after)]
  longest = max(int(phase.sizes.max()) for phase in phases)
  before = federation_of(flat(dataset.x_train), dataset.y_train, phases[0], scales, longest)
  before = before._replace(fleet=fleet)
  if parts_after is None:
    return before, before
  return before, before._replace(starts=phases[1].starts, sizes=phases[1].sizes)


def place_phases(
  machine: Machine,
  before: Federation,
  after: Federation,
  mesh: Mesh,
  placement: str,
  num_rows: int,
) -> tuple[Federation, Federation]:
  """Lays the data of both phases out; where each device holds all examples, they are held once."""
  if placement == "streamed":
    return before, after
  placed = machine.place(before, mesh, placement, num_rows)
  if after is before:
    return placed, placed
  if placement == "sharded":
    return placed, machine.place(after, mesh, placement, num_rows)
  starts, sizes = machine.put((after.starts, after.sizes), everywhere(mesh))
  return placed, placed._replace(starts=starts, sizes=sizes)
