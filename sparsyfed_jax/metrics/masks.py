"""Changes of masks: regrowth of pruned weights, and overlap."""

import chex
import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.ops import count_each
from sparsyfed_jax.types import Params


def regrowth(before: Params, after: Params) -> jax.Array:
  """Computes the share of prunable parameters that are 0 before and not 0 after.

  SparsyFed (arXiv 2504.05153) reports regrowth per round without defining it; its analysis code
  counts these parameters. Methods that send masks are counted by those: a weight that has just
  grown is still 0. *Client regrowth* compares a client's download with its upload, *server
  regrowth* the global models of two rounds.

  Args:
    before: pytree of parameters.
    after: pytree like `before`.

  Returns:
    () float32 in [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> before, after = {"kernel": jnp.eye(2)}, {"kernel": jnp.ones((2, 2))}
    >>> regrowth(before, after)
    Array(0.5, dtype=float32)
  """
  old, _ = trees.split_prunable(before)
  new, _ = trees.split_prunable(after)
  chex.assert_trees_all_equal_shapes(old, new)
  (regrown,) = count_each(lambda a, b: [(a == 0) & (b != 0)], old, new)
  return jnp.sum(regrown, dtype=jnp.int32).astype(jnp.float32) / max(trees.size(old), 1)


def mask_iou(before: Params, after: Params) -> jax.Array:
  """Computes the intersection over union of the masks of two models: 1 where they are the same.

  Args:
    before: pytree of parameters, whose prunable entries that are not 0 are its mask.
    after: pytree like `before`.

  Returns:
    () float32 in [0, 1]; 1 for two empty masks.

  Example:
    >>> import jax.numpy as jnp
    >>> mask_iou({"kernel": jnp.eye(2)}, {"kernel": jnp.ones((2, 2))})
    Array(0.5, dtype=float32)
  """
  old, _ = trees.split_prunable(before)
  new, _ = trees.split_prunable(after)
  chex.assert_trees_all_equal_shapes(old, new)
  counts = count_each(lambda a, b: [(a != 0) & (b != 0), (a != 0) | (b != 0)], old, new)
  both, either = (jnp.sum(count, dtype=jnp.int32) for count in counts)
  ratio = both.astype(jnp.float32) / jnp.maximum(either, 1).astype(jnp.float32)
  return jnp.where(either == 0, 1.0, ratio)
