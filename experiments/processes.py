"""The processes of a run on several hosts: all compute, the first one writes.

Processes read the same flags and the same data, and take part in every round.
https://docs.jax.dev/en/latest/multi_process.html
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments.flags import AUTO, Config


def join(config: Config) -> None:
  """Connects this process to the others, if the flags name any; before anything uses a device."""
  if config.coordinator == AUTO:
    jax.distributed.initialize()  # from what SLURM, MPI, Kubernetes or a TPU pod say
  elif config.coordinator:
    jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)


def is_first() -> bool:
  """Tells whether this process writes the files."""
  return jax.process_index() == 0


def largest(number: int) -> int:
  """Finds the largest of what the processes say; all of them have to ask."""
  if jax.process_count() == 1:
    return number
  return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def smallest(number: int) -> int:
  """Finds the smallest of what the processes say; all of them have to ask."""
  return -largest(-number)


def from_first(tree: Any) -> Any:
  """Gives all processes the arrays of the first one, as NumPy arrays or keys.

  Args:
    tree: pytree of arrays, of the same shapes in every process.
  """
  if jax.process_count() == 1:
    return tree

  def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

  bare = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)
  received = multihost_utils.broadcast_one_to_all(bare)
  return jax.tree.map(
    lambda leaf, like: jax.random.wrap_key_data(leaf) if is_key(like) else np.asarray(leaf),
    received,
    tree,
  )
