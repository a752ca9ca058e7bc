"""Jittable primitives that work without the rest of the library."""

from sparsyfed_jax.ops.conv import conv_general_dilated, conv_patches
from sparsyfed_jax.ops.count import count_nonzero, count_one, count_true
from sparsyfed_jax.ops.layers import PLAIN, LayerOps, pruned_layers
from sparsyfed_jax.ops.pool import max_pool
from sparsyfed_jax.ops.pruned import activation_threshold, prune_residual
from sparsyfed_jax.ops.reparam import powerprop, powerprop_inverse
from sparsyfed_jax.ops.select import is_at_least, kth_magnitude, layerwise_mask, topk_mask

__all__ = [
  "PLAIN",
  "LayerOps",
  "activation_threshold",
  "conv_general_dilated",
  "conv_patches",
  "count_nonzero",
  "count_one",
  "count_true",
  "is_at_least",
  "kth_magnitude",
  "layerwise_mask",
  "max_pool",
  "powerprop",
  "powerprop_inverse",
  "prune_residual",
  "pruned_layers",
  "topk_mask",
]
