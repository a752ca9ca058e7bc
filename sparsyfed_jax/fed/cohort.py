"""The sum of a cohort's uploads in bounded memory: a scan over chunks of a vmap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.types import ClientData, Key, Metrics


class Federation(NamedTuple):
  """All clients' training data: one copy of the examples, and whose they are."""

  x: jax.Array  # (num_examples, *shape), as stored
  y: jax.Array  # (num_examples,) int32
  indices: jax.Array  # (num_clients, max_size) int32 rows of x and y, padded
  sizes: jax.Array  # (num_clients,) int32
  density_scales: jax.Array  # (num_clients,) float32, relative to the run's density


def sum_over_clients(
  client: Callable[[Any, ClientData, Key], tuple[Any, Metrics]],
  download: Any,
  federation: Federation,
  cohort: jax.Array,
  key: Key,
  clients_per_chunk: int,
) -> tuple[Any, Metrics]:
  """Runs the clients of a round and adds up what they send.

  A client's randomness comes from its number and the round's key, so neither the order of the
  cohort nor the size of a chunk changes what a client does. Memory holds one chunk of clients and
  one sum.

  Args:
    client: one client's round.
    download: what every client receives.
    federation: all clients' data.
    cohort: (clients_per_round,) int32 numbers of the clients that take part.
    key: of the round.
    clients_per_chunk: how many clients are vmapped; 1 runs them one after the other.

  Returns:
    The summed upload and summed metrics.
  """

  def run(number: jax.Array, is_present: jax.Array) -> tuple[Any, Metrics]:
    data = ClientData(
      federation.x,
      federation.y,
      federation.indices[number],
      jnp.where(is_present, federation.sizes[number], 0),
      federation.density_scales[number],
    )
    return client(download, data, jax.random.fold_in(key, number))

  def run_chunk(sums: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
    if clients_per_chunk == 1:
      results = run(*jax.tree.map(lambda leaf: leaf[0], chunk))
    else:
      results = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.vmap(run)(*chunk))
    return jax.tree.map(jnp.add, sums, results), None

  num_chunks = -(-cohort.shape[0] // clients_per_chunk)
  num_absent = num_chunks * clients_per_chunk - cohort.shape[0]
  numbers = jnp.pad(cohort, (0, num_absent)).reshape(num_chunks, clients_per_chunk)
  is_present = jnp.arange(numbers.size).reshape(numbers.shape) < cohort.shape[0]
  shapes = jax.eval_shape(run, numbers[0, 0], is_present[0, 0])
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  sums, _ = lax.scan(run_chunk, zeros, (numbers, is_present))
  return sums
