"""What one client of a round receives and sends, for those who encode it on the host.

Bytes are counted on the device as they are without a second stage, from zeros alone. What such a
stage makes of the values can only be measured. So a client of the coming round is trained once more
for it, outside of the compiled rounds, which stay as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax.fed.algorithm import Algorithm
from sparsyfed_jax.fed.cohort import Federation, data_of, memory_of
from sparsyfed_jax.fed.measures import NO_MEASURES, Measures
from sparsyfed_jax.fed.simulation import Simulation, State, keys_of_round
from sparsyfed_jax.types import Key, Metrics, Variables
from sparsyfed_jax.wire.rounding import LEVEL_BITS, round_to_levels


class Exchange(NamedTuple):
  """Models on the wire; a parameter that is not 0 is in the mask."""

  download: Variables
  upload: Variables


def sample_exchange(
  make: Callable[[Measures], Algorithm],
  simulation: Simulation,
  wire_dtype: Any,
  state: State,
  federation: Federation,
  key: Key,
) -> Exchange:
  """Trains the first client of the coming round that has examples, and changes nothing.

  What methods send beside models in some rounds, such as scores of weights, is not in it.

  Args:
    make: makes the method of measures.
    simulation: of the run.
    wire_dtype: of uploads.
    state: before the round.
    federation: all clients' data, on one device or on every one.
    key: of all rounds.
  """
  cohorts = simulation.draw(state, federation.sizes, key, federation.fleet)
  cohort = jax.tree.map(lambda leaf: leaf[0], cohorts)
  can_train = cohort.is_present & (federation.sizes[cohort.numbers] > 0)
  member = jax.tree.map(lambda leaf: leaf[jnp.argmax(can_train)], cohort)
  found: list[Exchange] = []

  def record(download: Variables, upload: Variables, size: jax.Array) -> Metrics:
    found.append(Exchange(download, upload))
    return {}

  algorithm = make(NO_MEASURES._replace(exchange=record, needs_values=True))
  own_key = jax.random.fold_in(keys_of_round(key, state.server.round + 1).training, member.numbers)
  memory = memory_of(state.memories, member)
  algorithm.client(algorithm.broadcast(state.server), memory, data_of(federation, member), own_key)
  # A method that measures a part apart has measured the whole, too.
  whole = max(found, key=lambda one: len(jax.tree.leaves(one)))
  bits = LEVEL_BITS.get(jnp.dtype(wire_dtype).name)
  return (
    whole if bits is None else whole._replace(upload=round_to_levels(whole.upload, bits, own_key))
  )
