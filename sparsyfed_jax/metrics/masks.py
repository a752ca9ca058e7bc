"""How masks move: weights that were pruned and come back."""

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.ops import count_one
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
  """
  old, _ = trees.split_prunable(before)
  new, _ = trees.split_prunable(after)
  pairs = zip(old, new, strict=True)
  counts = [count_one((a == 0) & (b != 0)) for a, b in pairs]
  return sum(counts, jnp.int32(0)).astype(jnp.float32) / max(trees.size(old), 1)
