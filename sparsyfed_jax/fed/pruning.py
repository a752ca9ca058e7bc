"""Pruning a whole model at once."""

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.ops import topk_mask
from sparsyfed_jax.types import Params


def prune_globally(params: Params, density: jax.Array) -> Params:
  """Keeps the largest prunable parameters of the whole model and sets the others to 0.

  Args:
    params: pytree of parameters.
    density: () float32 share of the prunable parameters to keep, all leaves ranked together.

  Returns:
    Pytree like `params`; leaves that are not prunable are untouched.
  """
  kernels, rebuild = trees.split_prunable(params)
  masks = topk_mask(kernels, density)
  return rebuild([jnp.where(mask, leaf, 0) for mask, leaf in zip(masks, kernels, strict=True)])
