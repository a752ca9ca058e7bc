"""Where the state of a run lies while it is trained, and how it is saved."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding

from experiments.run.build import Experiment
from experiments.run.placing import everywhere
from sparsyfed_jax.fed.devices import collect_memories, deal_sharding, place_memories, put
from sparsyfed_jax.fed.simulation import State
from sparsyfed_jax.types import Memory


class Layout(NamedTuple):
  """The server's state is on every device; what clients keep is where their examples are."""

  mesh: Mesh
  placement: str
  num_clients: int
  axis: int  # of what clients keep along which they are: 1 of several runs, 0 of one

  def place(self, state: State) -> State:
    """Lays out a state that the simulation's `init` has made, or that was saved."""
    memories = state.memories
    if self.placement != "replicated":  # `init` makes those of one client
      memories = jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, self._shape(leaf, self.num_clients)), memories
      )
    server, clock = put((state.server, state.clock), everywhere(self.mesh))
    return State(server, place_memories(memories, self.mesh, self.placement, self.axis), clock)

  def collect(self, state: State) -> State:
    """Makes what is saved of a state: the same on any number of devices."""
    if self.placement != "sharded":
      return state
    memories = collect_memories(state.memories, self.mesh, self.num_clients, self.axis)
    return state._replace(memories=memories)

  def saved(self, made: State) -> State:
    """Makes the shapes of what is saved of those of what `init` makes."""
    memories = self._with_rows(made.memories, self.num_clients, None)
    return made._replace(memories=memories)

  def placed(self, made: State, num_clients: int) -> State:
    """Makes the shapes of what is laid out, with what so many clients keep."""
    sharding: NamedSharding = everywhere(self.mesh)
    server, clock = with_sharding((made.server, made.clock), sharding)
    num_rows = num_clients
    if self.placement != "replicated":
      num_rows = -(-num_clients // self.mesh.size) * self.mesh.size
      sharding = deal_sharding(self.mesh, self.axis)
    return State(server, self._with_rows(made.memories, num_rows, sharding), clock)

  def _with_rows(self, memories: Memory, num_rows: int, sharding: Sharding | None) -> Memory:
    def of(leaf: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(self._shape(leaf, num_rows), leaf.dtype, sharding=sharding)

    return jax.tree.map(of, memories)

  def _shape(self, leaf: Any, num_rows: int) -> tuple[int, ...]:
    return (*leaf.shape[: self.axis], num_rows, *leaf.shape[self.axis + 1 :])


def layout_of(experiment: Experiment, axis: int = 0) -> Layout:
  """Makes the layout of a run, or of several side by side."""
  num_clients = experiment.facts["num_clients"]
  return Layout(experiment.mesh, experiment.placement, num_clients, axis)


def saved_shapes(experiment: Experiment) -> State:
  """Makes the shapes of what is saved of a run."""
  made = jax.eval_shape(experiment.simulation.init, experiment.hyper, experiment.keys.init)
  return layout_of(experiment).saved(made)


def memory_bytes(state: State) -> int:
  """Counts what each client keeps between rounds, of the state of one run."""
  return sum(leaf.nbytes // leaf.shape[0] for leaf in jax.tree.leaves(state.memories))


def without_memories(state: State) -> State:
  """Leaves out what clients keep, which only rounds need."""
  return state._replace(memories=())


def with_sharding(shapes: Any, sharding: Sharding) -> Any:
  """Adds to shapes where their arrays lie."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
  )
