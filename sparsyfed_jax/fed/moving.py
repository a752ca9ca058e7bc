"""Local training whose mask moves between epochs, at random, as FLASH's clients do.

Of each layer a share of smallest weights is dropped, and as many grow anywhere, from 0, layers in
proportion to the mean magnitude of their weights. The share falls linearly to 0 over the epochs.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed.pruning import Masks, apply_masks, positive_noise
from sparsyfed_jax.fed.rule import Carry, LocalRule
from sparsyfed_jax.ops import ceil_of_share, count_one, largest_mask
from sparsyfed_jax.types import Key, Params


def _weights_in_memory(params: Params, carry: Carry) -> Params:
  return apply_masks(params, carry["masks"])


# Training inside the masks that the carry has as `masks`.
TRAINING = LocalRule(weights=_weights_in_memory)


def moving(
  epochs: int | jax.Array,
  is_moving: jax.Array,
  first_rate: jax.Array,
  is_pruned: tuple[bool, ...],
) -> LocalRule:
  """Makes the rule of training inside masks that change between epochs.

  A client with one epoch exchanges once, after it, at half the first rate; the release does it in
  the middle of that epoch, where the rate is the same.

  Args:
    epochs: of the client.
    is_moving: () bool, whether masks change in this round.
    first_rate: () float32, the share exchanged at first.
    is_pruned: of each prunable leaf, whether its mask moves.
  """

  def after_epoch(params: Params, carry: Carry, epoch: jax.Array, key: Key) -> tuple[Params, Carry]:
    share = jnp.float32(epoch + 1) / jnp.float32(epochs)
    is_only = jnp.int32(epochs) == 1
    rate = first_rate * jnp.where(is_only, 0.5, 1 - share)

    def move() -> tuple[Params, Carry]:
      params_after, masks = _exchange(params, carry["masks"], rate, key, is_pruned)
      return params_after, {"masks": masks}

    is_due = is_moving & (is_only | (epoch + 1 < epochs))
    return lax.cond(is_due, move, lambda: (params, carry))

  return TRAINING._replace(after_epoch=after_epoch)


def _exchange(
  params: Params, masks: Masks, rate: jax.Array, key: Key, is_pruned: tuple[bool, ...]
) -> tuple[Params, Masks]:
  """Drops each layer's smallest active weights, and grows as many at random.

  Layers grow in proportion to the mean magnitude of their active weights before the drop.
  """
  kernels, _ = trees.split_prunable(params)
  keys = jax.random.split(key, max(len(kernels), 1))
  places = [i for i, one in enumerate(is_pruned) if one]
  magnitudes, survivors, dropped = [], [], []
  for i in places:
    active = jnp.where(masks[i], kernels[i], 0)
    count = count_one(masks[i])
    total = jnp.sum(jnp.abs(active).astype(jnp.float32))
    magnitudes.append(total / jnp.maximum(count, 1).astype(jnp.float32))
    survivors.append(largest_mask(active, count - ceil_of_share(count, rate)))
    dropped.append(count - count_one(survivors[-1]))
  room = [mask.size - count_one(mask) for mask in survivors]
  budgets = _share_out(jnp.stack(magnitudes), jnp.stack(room), jnp.sum(jnp.stack(dropped)))
  stay, grown = list(masks), list(masks)
  for i, kept, budget in zip(places, survivors, budgets, strict=True):
    noise = jnp.where(kept, 0, positive_noise(keys[i], kept.shape))
    stay[i], grown[i] = kept, kept | largest_mask(noise, budget)
  return apply_masks(params, stay), grown


def _share_out(wishes: jax.Array, room: jax.Array, total: jax.Array) -> jax.Array:
  """Shares `total` out in proportion to wishes, to no layer more than it has room for; int32."""
  space = room.astype(jnp.float32)
  given = jnp.zeros_like(space)
  for _ in range(wishes.shape[0]):  # each turn fills a layer, or gives all away
    left = total.astype(jnp.float32) - jnp.sum(given)
    is_open = given < space
    wish = jnp.where(is_open, wishes, 0)
    # Layers that nobody wishes for still take what finds no other room.
    wish = jnp.where(jnp.sum(wish) > 0, wish, is_open.astype(jnp.float32))
    given = jnp.minimum(space, given + left * wish / jnp.maximum(jnp.sum(wish), 1e-30))
  ends = jnp.round(jnp.cumsum(given)).astype(jnp.int32)
  return jnp.diff(ends, prepend=jnp.zeros(1, jnp.int32))
