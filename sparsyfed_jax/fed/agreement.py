"""Agreement between the masks of the clients of a round.

SparsyFed (arXiv 2504.05153) argues that its clients come to one mask by themselves; methods of this
kind are judged by the intersection over union of the masks that two clients upload. All masks of a
cohort are needed at once, so the clients are trained once more for it, eight entries a byte kept.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.fed.algorithm import Algorithm, masks_of_model
from sparsyfed_jax.fed.cohort import Federation, data_of, memory_of
from sparsyfed_jax.fed.pruning import Masks
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.types import Key, Memory


def mask_agreement(
  algorithm: Algorithm,
  most_clients: int,
  state: Any,
  memories: Memory,
  federation: Federation,
  cohort: Cohort,
  key: Key,
) -> jax.Array:
  """Computes the mean intersection over union of the masks that two clients of a round upload.

  Where clients have models of their own, of the masks of those.

  Trains the clients as the round does, one after the other, and changes nothing.

  Args:
    algorithm: the method.
    most_clients: how many of the cohort are compared at most, taken evenly from its order.
    state: of the server before the round.
    memories: of all clients before the round.
    federation: all clients' data, on one device or on every one.
    cohort: of the round.
    key: of the round's training.

  Returns:
    () float32 in [0, 1]; NaN with fewer than two clients that have examples.
  """
  num_clients = cohort.numbers.shape[0]
  count = min(most_clients, num_clients)
  places = jnp.linspace(0, num_clients - 1, count).round().astype(jnp.int32)
  compared = jax.tree.map(lambda leaf: leaf[places], cohort)
  download = algorithm.broadcast(state)

  def train(member: Cohort) -> tuple[jax.Array, jax.Array]:
    data = data_of(federation, member)
    memory, own_key = memory_of(memories, member), jax.random.fold_in(key, member.numbers)
    upload, memory, _ = algorithm.client(download, memory, data, own_key)
    if algorithm.client_model is None:
      return pack_masks(algorithm.masks(upload)), data.size > 0
    own = algorithm.client_model(download, memory)
    return pack_masks(masks_of_model(own)), data.size > 0

  masks, counts = lax.map(train, compared)
  return mean_pairwise_iou(masks, counts)


def mean_pairwise_iou(masks: jax.Array, is_counted: jax.Array) -> jax.Array:
  """Computes the mean intersection over union of all pairs of masks.

  Args:
    masks: (num_masks, num_bytes) uint8, eight entries a byte.
    is_counted: (num_masks,) bool, whose pairs count.

  Returns:
    () float32; NaN where no pair counts. Two empty masks are the same: 1.
  """
  numbers = jnp.arange(masks.shape[0])

  def with_all(i: jax.Array) -> jax.Array:
    both = _count_bits(masks & masks[i][None])
    either = _count_bits(masks | masks[i][None])
    iou = jnp.where(either == 0, 1.0, both / jnp.maximum(either, 1))
    return jnp.where(is_counted & is_counted[i] & (numbers > i), iou, 0).sum()

  total = jnp.sum(lax.map(with_all, numbers))
  count = jnp.sum(is_counted, dtype=jnp.int32)
  num_pairs = (count * (count - 1) // 2).astype(jnp.float32)
  return jnp.where(num_pairs > 0, total / jnp.maximum(num_pairs, 1), jnp.nan)


def _count_bits(packed: jax.Array) -> jax.Array:
  return jnp.sum(lax.population_count(packed), axis=-1, dtype=jnp.int32).astype(jnp.float32)


def pack_masks(masks: Masks) -> jax.Array:
  """Packs masks into bits, (ceil(num_prunable / 8),) uint8."""
  flat = [mask.reshape(-1) for mask in masks]
  return jnp.packbits(jnp.concatenate([jnp.zeros(0, bool), *flat]))
