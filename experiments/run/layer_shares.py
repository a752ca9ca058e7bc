"""What share of each layer's products the clients of a run compute, by its flags."""

from collections.abc import Callable, Sequence

from experiments.flags import Config
from sparsyfed_jax import trees
from sparsyfed_jax.metrics.flops import DENSE, LayerCost, LayerShares, client_flops, work_shares


def shares_of(
  config: Config,
  costs: Sequence[LayerCost],
  layers: Sequence[str],
  densities: Sequence[float],
  target_sparsity: float,
) -> dict[str, LayerShares]:
  """Finds the shares of a round.

  Args:
    config: of the run.
    costs: of the model's layers, in the order of computing.
    layers: names of the prunable leaves' layers.
    densities: of each of them, in what the clients received.
    target_sparsity: of the round.
  """
  return work_shares(
    config.algorithm,
    layers,
    densities,
    share=1 - target_sparsity,
    activation_floor=config.activation_floor,
    is_plain=_plain_finder(config, costs[0].name),
  )


def dense_flops(costs: Sequence[LayerCost], num_examples: float) -> float:
  """Counts the FLOPs of a client that trains a dense model."""
  return client_flops(costs, dict.fromkeys((cost.name for cost in costs), DENSE), num_examples)


def _plain_finder(config: Config, first_layer: str) -> Callable[[str], bool]:
  if config.algorithm == "zerofl":
    is_excluded = trees.name_finder(config.zerofl_exclude)
    return lambda name: name == first_layer or is_excluded(name)
  if config.algorithm == "sparsyfed":
    is_off = config.reparameterisation == "powerprop" and config.beta == 1
    is_found = trees.name_finder(config.reparam_exclude)
    return lambda name: is_off or is_found(name)
  return lambda name: False
