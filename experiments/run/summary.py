"""summary.json: what a whole run comes to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.run.chance import describe_chance
from experiments.run.clients import client_accuracies, owners_at
from experiments.run.layer_shares import dense_flops, shares_of
from experiments.run.layout import memory_bytes
from experiments.run.measures import bytes_to_accuracy, recovery, rounds_to_accuracy
from experiments.run.member import Member
from sparsyfed_jax.metrics.cost import dense_bytes
from sparsyfed_jax.metrics.flops import flops_table


def summarise(
  member: Member, rows: Sequence[Mapping[str, Any]], state: Any, hits: np.ndarray | None
) -> dict[str, Any]:
  config, experiment, last = member.config, member.experiment, rows[-1]
  summary = {
    "algorithm": config.algorithm,
    "dataset": config.dataset,
    "model": config.model,
    "rounds": config.rounds,
    "seed": config.seed,
    **{name: last[name] for name in ("test_accuracy", "test_loss")},
    **describe_chance(last["test_accuracy"], experiment.y_test),
    "output_dir": str(member.directory),
    "empty_clients": experiment.facts["empty_clients"],
    **dict.fromkeys(("global_sparsity", "prunable_sparsity")),
    **dict.fromkeys(("uplink_bytes_per_client_round", "downlink_bytes_per_client_round")),
  }
  if config.metrics:
    summary |= _summarise_measures(member, rows, state)
  if kept := memory_bytes(state):
    summary["client_memory_bytes"] = kept
  if hits is not None:
    owners = owners_at(experiment.test_owners, config.shift_round, last["round"])
    num_clients = experiment.facts["num_clients"]
    summary["client_accuracies"] = client_accuracies(hits, owners, num_clients)
  if config.shift_round is not None:
    found = recovery(rows, config.shift_round)
    summary |= {
      "shift_round": config.shift_round,
      "accuracy_before_shift": found.accuracy_before,
      "lowest_accuracy_after_shift": found.lowest_after,
      "rounds_to_regain": found.rounds_to_regain,
    }
  return summary


def _summarise_measures(
  member: Member, rows: Sequence[Mapping[str, Any]], state: Any
) -> dict[str, Any]:
  config, experiment, last = member.config, member.experiment, rows[-1]
  model = experiment.algorithm.broadcast(state.server).variables
  # Over all rounds: what is sent on the way to the target sparsity counts too. A round whose
  # clients are all empty sends nothing.
  sent = [row for row in rows if row["clients"] > 0]

  def mean_over_clients(column: str) -> float | None:
    clients = [row["clients"] for row in sent]
    return float(np.average([row[column] for row in sent], weights=clients)) if sent else None

  examples = sum(row["examples"] for row in sent) / max(sum(row["clients"] for row in sent), 1)
  densities, sparsity = last["layer_density"], last["target_sparsity"]
  shares = shares_of(config, experiment.costs, experiment.layers, densities, sparsity)
  return {
    **{name: last[name] for name in ("global_sparsity", "prunable_sparsity")},
    "uplink_bytes_per_client_round": mean_over_clients("uplink_bytes"),
    "downlink_bytes_per_client_round": mean_over_clients("downlink_bytes"),
    "total_bytes": last["cumulative_bytes"],
    "dense_bytes": dense_bytes(model),
    "target_accuracy": config.target_accuracy,
    "bytes_to_target": bytes_to_accuracy(rows, config.target_accuracy),
    "rounds_to_target": rounds_to_accuracy(rows, config.target_accuracy),
    "client_flops_per_round": mean_over_clients("client_flops"),
    "dense_client_flops_per_round": dense_flops(experiment.costs, examples),
    # Of a client that receives the final model.
    "flops_by_layer": flops_table(experiment.costs, shares, examples),
    "layers": experiment.layers,
    "layer_densities": dict(zip(experiment.layers, densities, strict=True)),
  }
