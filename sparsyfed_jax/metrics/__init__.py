"""Metrics besides accuracy: sparsity, masks, communication, computation."""

from sparsyfed_jax.metrics.cost import dense_bytes
from sparsyfed_jax.metrics.flops import (
  LayerCost,
  LayerShares,
  client_flops,
  flops_table,
  product_costs,
  work_shares,
)
from sparsyfed_jax.metrics.masks import mask_iou, regrowth
from sparsyfed_jax.metrics.sparsity import global_sparsity, layer_densities, prunable_sparsity

__all__ = [
  "LayerCost",
  "LayerShares",
  "client_flops",
  "dense_bytes",
  "flops_table",
  "global_sparsity",
  "product_costs",
  "layer_densities",
  "mask_iou",
  "prunable_sparsity",
  "regrowth",
  "work_shares",
]
