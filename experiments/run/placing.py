"""Where the arrays of a run lie: on devices, or nowhere, where it is only planned."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.run.config import Config, ConfigError
from sparsyfed_jax.data.dataset import Dataset
from sparsyfed_jax.fed.cohort import Federation
from sparsyfed_jax.fed.devices import AXIS, place, put


class Machine(NamedTuple):
  """The devices of a run, and how arrays come onto them."""

  devices: Callable[[], Sequence[jax.Device]]
  put: Callable[..., Any]  # (tree, sharding) -> the tree with arrays that lie so
  # (federation on the host, mesh, placement, least_rows) -> federation, as `devices.place`
  place: Callable[..., Federation]


HERE = Machine(jax.devices, put, place)


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


def phases(
  dataset: Dataset, indices: np.ndarray, sizes: np.ndarray, scales: np.ndarray
) -> tuple[Federation, Federation]:
  """Makes the clients' data before and after a shift, the same where there is none.

  Args:
    dataset: of all clients.
    indices: (phases * num_clients, max_size) int32, those of the second phase behind the others.
    sizes: (phases * num_clients,) int32.
    scales: (num_clients,) float32 of densities.
  """
  count = len(scales)
  before = Federation(dataset.x_train, dataset.y_train, indices[:count], sizes[:count], scales)
  if len(sizes) == count:
    return before, before
  return before, before._replace(indices=indices[count:], sizes=sizes[count:])


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
  indices, sizes = machine.put((after.indices, after.sizes), everywhere(mesh))
  return placed, placed._replace(indices=indices, sizes=sizes)
