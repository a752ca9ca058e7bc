"""Rounds whose examples come from the host, sent ahead while the device computes.

What clients keep between rounds stays on the host too. A round may have clients of the one before,
so memories are sent once that has ended, and only the examples are ahead.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sparsyfed_jax.fed.cohort import Federation
from sparsyfed_jax.fed.devices import (
  deal_numbers,
  put_common,
  rows_of_shares,
  send_memories,
  shard_examples,
)
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.types import Memory


class Staged(NamedTuple):
  """The data of one round on the devices: the cohort and its examples."""

  federation: Federation
  cohort: Cohort


def rows_needed(
  placement: str, phases: Sequence[np.ndarray], clients_per_round: int, num_devices: int
) -> int:
  """Counts the examples that a device needs room for, in any phase, of the sizes of clients."""
  match placement:
    case "streamed":
      return max(rows_of_rounds(sizes, clients_per_round, num_devices) for sizes in phases)
    case "sharded":
      return max(rows_of_shares(sizes, num_devices) for sizes in phases)
  return 0


def rows_of_rounds(sizes: np.ndarray, clients_per_round: int, num_devices: int) -> int:
  """Counts the examples that a device may get in a round, of the largest clients there are."""
  per_device = -(-clients_per_round // num_devices)
  return max(int(np.sort(sizes)[-per_device:].sum()), 1)


def stage(host: Federation, mesh: Mesh, cohorts: Cohort, least_rows: int = 0) -> Iterator[Staged]:
  """Sends the examples of one round after the other to the devices of a mesh.

  Every round has the same shapes, enough for the largest clients there are.

  Args:
    host: all clients' data as NumPy arrays.
    mesh: of one axis.
    cohorts: of the rounds, (num_rounds, clients_per_round) arrays in every process.
    least_rows: for how many examples a device has room at least, as in `place`.
  """
  num_rounds, num_clients = cohorts.numbers.shape
  num_rows = max(least_rows, rows_of_rounds(host.sizes, num_clients, mesh.size))
  placed = put_common(host, mesh, num_rows)
  for i in range(num_rounds):
    cohort = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), cohorts)
    shares = [cohort.numbers[rank :: mesh.size] for rank in range(mesh.size)]
    yield Staged(shard_examples(placed, host, mesh, shares, num_rows), cohort)


def run_staged(
  run: Callable[[Any, Memory, Staged], tuple[Any, Memory, Any]],
  state: Any,
  memories: Memory,
  rounds: Iterator[Staged],
  mesh: Mesh,
) -> tuple[Any, list[Any]]:
  """Runs rounds, preparing each while the one before is computed.

  Args:
    run: starts one round and returns at once: (state, memories of its clients, staged) ->
      (state, memories of its clients, row).
    state: of the server.
    memories: of all clients, NumPy arrays, to which those after the rounds are written.
    rounds: as `stage` sends them.
    mesh: of one axis.

  Returns:
    The state after the rounds, and their rows.
  """
  rows: list[Any] = []
  clients, kept = np.zeros(0, int), jax.tree.map(lambda leaf: leaf[:0], memories)
  for staged in rounds:
    write_memories(memories, clients, kept)
    clients = deal_numbers(np.asarray(staged.cohort.numbers), mesh.size)
    state, kept, row = run(state, send_memories(memories, clients, mesh), staged)
    rows.append(row)
    if len(rows) > 1:
      jax.block_until_ready(rows[-2])  # no more than two rounds' examples on the devices
  write_memories(memories, clients, kept)
  return state, rows


def write_memories(memories: Memory, clients: np.ndarray, kept: Memory) -> None:
  """Writes what clients keep after a round, as soon as it has ended; fillers are not written."""
  is_client = clients >= 0

  def write(leaf: np.ndarray, new: Any) -> None:
    leaf[clients[is_client]] = np.asarray(new)[is_client]

  jax.tree.map(write, memories, kept)
