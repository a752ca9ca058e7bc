"""Rounds whose examples come from the host, sent ahead while the device computes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sparsyfed_jax.fed.cohort import Federation
from sparsyfed_jax.fed.devices import put_sizes, shard_examples
from sparsyfed_jax.fed.sampling import Cohort


class Staged(NamedTuple):
  """What the devices hold of a round: the cohort and its examples alone."""

  federation: Federation
  cohort: Cohort


def stage(host: Federation, mesh: Mesh, cohorts: Cohort) -> Iterator[Staged]:
  """Sends the examples of one round after the other to the devices of a mesh.

  Every round has the same shapes, enough for the largest clients there are.

  Args:
    host: all clients' data as NumPy arrays.
    mesh: of one axis.
    cohorts: of the rounds, (num_rounds, clients_per_round) arrays in every process.
  """
  num_rounds, num_clients = cohorts.numbers.shape
  per_device = -(-num_clients // mesh.size)
  num_rows = max(int(np.sort(host.sizes)[-per_device:].sum()), 1)
  placed = put_sizes(host, mesh)
  for i in range(num_rounds):
    cohort = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), cohorts)
    shares = [cohort.numbers[rank :: mesh.size] for rank in range(mesh.size)]
    yield Staged(shard_examples(placed, host, mesh, shares, num_rows), cohort)


def run_staged(
  run: Callable[[Any, Staged], tuple[Any, Any]], state: Any, rounds: Iterator[Staged]
) -> tuple[Any, list[Any]]:
  """Runs rounds, preparing each while the one before is computed.

  Args:
    run: starts one round and returns at once: (state, staged) -> (state, row).
    state: of the server.
    rounds: as `stage` sends them.

  Returns:
    The state after the rounds, and their rows.
  """
  rows: list[Any] = []
  for staged in rounds:
    state, row = run(state, staged)
    rows.append(row)
    if len(rows) > 1:
      jax.block_until_ready(rows[-2])  # no more than two rounds' examples on the devices
  return state, rows
