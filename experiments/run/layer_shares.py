"""What share of each layer's products the clients of a run compute, by its flags."""

from collections.abc import Sequence

from experiments.run.config import Config
from experiments.run.settings import method_of, own_hyper, own_options
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
  method, options, hyper = method_of(config), own_options(config), own_hyper(config)

  def rule(name: str, density: float) -> LayerShares:
    is_first = name == costs[0].name
    return method.layer_shares(options, hyper, name, is_first, density, 1 - target_sparsity)

  others = {cost.name: DENSE for cost in costs}  # that have no prunable parameter
  return others | work_shares(rule, layers, densities)


def dense_flops(costs: Sequence[LayerCost], num_examples: float) -> float:
  """Counts the FLOPs of a client that trains a dense model."""
  return client_flops(costs, dict.fromkeys((cost.name for cost in costs), DENSE), num_examples)
