"""FLOPs of a run's clients, from the densities of the layers that they received."""

from collections.abc import Callable, Sequence
from typing import Any

from experiments.flags import Config
from sparsyfed_jax import trees
from sparsyfed_jax.metrics.flops import (
  DENSE,
  LayerCost,
  LayerShares,
  client_flops,
  flops_table,
  work_shares,
)


def round_flops(
  config: Config,
  costs: Sequence[LayerCost],
  layers: Sequence[str],
  densities: Sequence[float],
  target_sparsity: float,
  num_examples: float,
) -> float:
  """Counts the FLOPs of a client in a round.

  Args:
    config: of the run.
    costs: of the model's layers.
    layers: names of the prunable leaves' layers.
    densities: of each of them, in what the client received.
    target_sparsity: of the round.
    num_examples: that the client processed, each as often as it did.
  """
  shares = _shares(config, costs, layers, densities, target_sparsity)
  return client_flops(costs, shares, num_examples)


def round_table(
  config: Config,
  costs: Sequence[LayerCost],
  layers: Sequence[str],
  densities: Sequence[float],
  target_sparsity: float,
  num_examples: float,
) -> list[dict[str, Any]]:
  """Counts as `round_flops` does, by layer."""
  shares = _shares(config, costs, layers, densities, target_sparsity)
  return flops_table(costs, shares, num_examples)


def dense_flops(costs: Sequence[LayerCost], num_examples: float) -> float:
  """Counts the FLOPs of a client that trains a dense model."""
  return client_flops(costs, dict.fromkeys((cost.name for cost in costs), DENSE), num_examples)


def _shares(
  config: Config,
  costs: Sequence[LayerCost],
  layers: Sequence[str],
  densities: Sequence[float],
  target_sparsity: float,
) -> dict[str, LayerShares]:
  return work_shares(
    config.algorithm,
    layers,
    densities,
    share=1 - target_sparsity,
    activation_floor=config.activation_floor,
    is_plain=_plain_finder(config, costs[0].name),
  )


def _plain_finder(config: Config, first_layer: str) -> Callable[[str], bool]:
  if config.algorithm == "zerofl":
    is_excluded = trees.name_finder(config.zerofl_exclude)
    return lambda name: name == first_layer or is_excluded(name)
  if config.algorithm == "sparsyfed":
    is_off = config.reparameterisation == "powerprop" and config.beta == 1
    is_found = trees.name_finder(config.reparam_exclude)
    return lambda name: is_off or is_found(name)
  return lambda name: False
