"""Pruning of a whole model: globally, layer by layer, at random."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.ops import count_one, largest_mask, layerwise_mask, num_kept, topk_mask
from sparsyfed_jax.types import Key, Params

# One bool array for each prunable leaf, in the order of `trees.split_prunable`.
Masks = list[jax.Array]


def prune_globally(params: Params, density: jax.Array) -> Params:
  """Keeps the largest prunable parameters of the whole model and sets the others to 0.

  Args:
    params: pytree of parameters.
    density: () float32 share of the prunable parameters to keep, all leaves ranked together.

  Returns:
    Pytree like `params`; leaves that are not prunable are untouched.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"Dense_0": {"kernel": jnp.array([[3.0, -1.0], [0.0, 2.0]]), "bias": jnp.ones(2)}}
    >>> prune_globally(params, jnp.float32(0.5))["Dense_0"]["kernel"]
    Array([[3., 0.],
           [0., 2.]], dtype=float32)
  """
  return apply_masks(params, global_masks(params, density))


def global_masks(params: Params, density: jax.Array) -> Masks:
  """Marks what `prune_globally` keeps; leaves of several dtypes are ranked in float32.

  Example:
    >>> import jax.numpy as jnp
    >>> a, b = {"kernel": jnp.array([[3.0, -1.0]])}, {"kernel": jnp.array([[0.5, 2.0]])}
    >>> global_masks({"a": a, "b": b}, jnp.float32(0.5))
    [Array([[ True, False]], dtype=bool), Array([[False,  True]], dtype=bool)]
  """
  return topk_mask(trees.widened(trees.split_prunable(params)[0]), density)


def apply_masks(params: Params, masks: Masks) -> Params:
  """Sets the prunable parameters outside the masks to 0.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"Dense_0": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}}
    >>> apply_masks(params, [jnp.array([[True, False]])])["Dense_0"]["kernel"]
    Array([[1., 0.]], dtype=float32)
  """
  kernels, rebuild = trees.split_prunable(params)
  return rebuild([jnp.where(mask, leaf, 0) for mask, leaf in zip(masks, kernels, strict=True)])


def largest_masks(params: Params, densities: Sequence[jax.Array] | jax.Array) -> Masks:
  """Marks the largest prunable parameters of each layer.

  Args:
    params: pytree of parameters.
    densities: () float32 share to keep of each prunable leaf.

  Example:
    >>> import jax.numpy as jnp
    >>> largest_masks({"kernel": jnp.array([[3.0, -1.0, 0.5, -2.0]])}, [jnp.float32(0.5)])
    [Array([[ True, False, False,  True]], dtype=bool)]
  """
  return layerwise_mask(trees.split_prunable(params)[0], list(densities))


def random_masks(params: Params, densities: Sequence[jax.Array] | jax.Array, key: Key) -> Masks:
  """Marks a random share of each layer's prunable parameters; arguments as in `largest_masks`.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> masks = random_masks({"kernel": jnp.ones((4, 5))}, [jnp.float32(0.25)], jax.random.key(0))
    >>> int(masks[0].sum())
    5
  """
  kernels, _ = trees.split_prunable(params)
  keys = jax.random.split(key, max(len(kernels), 1))
  return [
    largest_mask(positive_noise(one_key, leaf.shape), num_kept(leaf.size, share))
    for one_key, leaf, share in zip(keys, kernels, densities, strict=False)
  ]


def first_masks(
  params: Params, densities: Sequence[jax.Array] | jax.Array, key: Key, is_given: bool
) -> Masks:
  """Marks what a method with random masks trains at first.

  Args:
    params: pytree of parameters.
    densities: as in `largest_masks`.
    key: of the draw.
    is_given: whether the parameters were learned elsewhere: then the largest are marked, and zeros
      at random where there are not enough others.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, -1.0, 0.5, -2.0]])}
    >>> first_masks(params, [jnp.float32(0.5)], jax.random.key(0), is_given=True)
    [Array([[ True, False, False,  True]], dtype=bool)]
  """
  if not is_given:
    return random_masks(params, densities, key)
  votes = [jnp.ones(leaf.shape) for leaf in trees.split_prunable(params)[0]]
  return largest_kept(params, votes, densities, key)


def positive_noise(key: Key, shape: tuple[int, ...]) -> jax.Array:
  """Draws float32 numbers in (0, 1] to rank entries by."""
  return 1 - jax.random.uniform(key, shape)


def mask_densities(masks: Masks) -> jax.Array:
  """Computes the share of True in each mask; (num_layers,) float32."""
  return jnp.stack([count_one(mask).astype(jnp.float32) / mask.size for mask in masks])


def overall_density(
  densities: jax.Array, params: Params, is_counted: Sequence[bool] | None = None
) -> jax.Array:
  """Computes the density of layers together from that of each; () float32.

  Args:
    densities: (num_layers,) float32.
    params: pytree of parameters.
    is_counted: of each layer; all by default.
  """
  sizes = jnp.array([leaf.size for leaf in trees.split_prunable(params)[0]], jnp.float32)
  if is_counted is not None:
    sizes = jnp.where(jnp.array(is_counted), sizes, 0)
  return jnp.sum(densities * sizes) / jnp.sum(sizes)


def largest_kept(
  params: Params,
  votes: Sequence[jax.Array],
  densities: Sequence[jax.Array] | jax.Array,
  key: Key,
) -> Masks:
  """Marks each layer's largest parameters among those that some client kept.

  Parameters that have just grown are all 0. They fill what the others leave of the budget, those of
  most votes first, and at random among equals.

  Args:
    params: pytree of parameters.
    votes: for each prunable leaf, how many kept an entry; float32, 0 where nobody did.
    densities: () float32 share to keep of each prunable leaf.
    key: of the draw among equals.
  """
  kernels, _ = trees.split_prunable(params)
  keys = jax.random.split(key, max(len(kernels), 1))
  masks = []
  for w, vote, density, one_key in zip(kernels, votes, densities, keys, strict=False):
    budget = num_kept(w.size, density)
    kept = largest_mask(jnp.where(vote > 0, w, 0), budget)
    is_new = (vote > 0) & ~kept & (w == 0)
    ranking = vote + positive_noise(one_key, w.shape) / 2
    filled = largest_mask(jnp.where(is_new, ranking, 0), budget - count_one(kept))
    masks.append(kept | filled)
  return masks
