"""Jittable primitives that work without the rest of the library."""

from sparsyfed_jax.ops.backend.choice import untuned
from sparsyfed_jax.ops.backend.conv import (
  LOWERINGS,
  conv_general_dilated,
  conv_patches,
  conv_shifted,
  conv_winograd,
)
from sparsyfed_jax.ops.backend.count import count_each, count_nonzero, count_one, count_true
from sparsyfed_jax.ops.backend.pool import max_pool, max_pool_of_relu, max_pool_overlapping
from sparsyfed_jax.ops.backend.relu import relu
from sparsyfed_jax.ops.densities import erk_densities
from sparsyfed_jax.ops.layers import (
  NATIVE,
  PLAIN,
  LayerOps,
  Layers,
  RowsOp,
  Threshold,
  cast_layers,
  first_found,
  pruned_layers,
  residual_layers,
)
from sparsyfed_jax.ops.pruned import activation_threshold, prune_residual, share_threshold
from sparsyfed_jax.ops.reparam import (
  powerprop,
  powerprop_inverse,
  spectral_exponent,
  spectral_exponent_of_weights,
)
from sparsyfed_jax.ops.rewrite import find_layers, rewrite_layers
from sparsyfed_jax.ops.rewrite.adapter import LayerError, layer_rule
from sparsyfed_jax.ops.rewrite.following import Product
from sparsyfed_jax.ops.rewrite.running import Rule
from sparsyfed_jax.ops.rows import FIRST_AXIS, Rows, Unknown, Where
from sparsyfed_jax.ops.select import (
  is_at_least,
  kth_magnitude,
  largest_mask,
  layerwise_mask,
  topk_mask,
)
from sparsyfed_jax.ops.share import ceil_of_share, floor_of_share, num_kept

__all__ = [
  "FIRST_AXIS",
  "LOWERINGS",
  "NATIVE",
  "PLAIN",
  "LayerError",
  "LayerOps",
  "Layers",
  "Product",
  "Rows",
  "RowsOp",
  "Rule",
  "Threshold",
  "Unknown",
  "Where",
  "activation_threshold",
  "cast_layers",
  "ceil_of_share",
  "conv_general_dilated",
  "conv_patches",
  "conv_shifted",
  "conv_winograd",
  "count_each",
  "count_nonzero",
  "count_one",
  "count_true",
  "erk_densities",
  "find_layers",
  "first_found",
  "floor_of_share",
  "is_at_least",
  "kth_magnitude",
  "largest_mask",
  "layer_rule",
  "layerwise_mask",
  "max_pool",
  "max_pool_of_relu",
  "max_pool_overlapping",
  "num_kept",
  "powerprop",
  "powerprop_inverse",
  "prune_residual",
  "pruned_layers",
  "relu",
  "residual_layers",
  "rewrite_layers",
  "share_threshold",
  "spectral_exponent",
  "spectral_exponent_of_weights",
  "topk_mask",
  "untuned",
]
