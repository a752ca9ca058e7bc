"""summary.json: what a whole run comes to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.run.chance import describe_chance
from experiments.run.clients import client_scores, owners_at
from experiments.run.config import Config
from experiments.run.layer_shares import dense_flops, shares_of
from experiments.run.layout import memory_bytes
from experiments.run.learning import judgement_of, target_of, task_of
from experiments.run.measures import (
  bytes_to_accuracy,
  recovery,
  rounds_to_accuracy,
  seconds_to_accuracy,
)
from experiments.run.member import Member
from sparsyfed_jax.metrics.flops import flops_table
from sparsyfed_jax.types import Mean


def summarise(
  member: Member, rows: Sequence[Mapping[str, Any]], state: Any, hits: Mean | None
) -> dict[str, Any]:
  config, experiment, last = member.config, member.experiment, rows[-1]
  judgement = judgement_of(config)
  main = f"test_{judgement.main.name}"
  # Where clients have models of their own, that of the server need not have learnt anything.
  if experiment.algorithm.client_model is None:
    meaning = describe_chance(last[main], experiment.y_test, judgement.main)
  else:
    meaning = {"has_client_models": True}
  summary = {
    "algorithm": config.algorithm,
    "dataset": config.dataset,
    "model": config.model,
    "rounds": config.rounds,
    "seed": config.seed,
    **({} if task_of(config) == "classification" else {"task": task_of(config)}),
    **{name: last[name] for name in (f"test_{metric.name}" for metric in judgement.metrics)},
    "test_loss": last["test_loss"],
    **meaning,
    "output_dir": str(member.directory),
    "empty_clients": experiment.facts["empty_clients"],
    **dict.fromkeys(("global_sparsity", "prunable_sparsity")),
    **dict.fromkeys(("uplink_bytes_per_client_round", "downlink_bytes_per_client_round")),
  }
  if config.metrics:
    summary |= _summarise_measures(member, rows)
  if kept := memory_bytes(state):
    summary["client_memory_bytes"] = kept
  if hits is not None:
    owners = owners_at(experiment.test_owners, config.shift_round, last["round"])
    num_clients = experiment.facts["num_clients"]
    is_accuracy = judgement.compared.name == "accuracy"
    scores = client_scores(hits, owners, num_clients)
    summary["client_accuracies" if is_accuracy else "client_scores"] = scores
  if config.shift_round is not None:
    found = recovery(rows, config.shift_round)
    summary |= {
      "shift_round": config.shift_round,
      "accuracy_before_shift": found.accuracy_before,
      "lowest_accuracy_after_shift": found.lowest_after,
      "rounds_to_regain": found.rounds_to_regain,
    }
  return summary


def _summarise_measures(member: Member, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  config, experiment, last = member.config, member.experiment, rows[-1]
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
    "dense_bytes": experiment.dense_bytes,
    **_to_target(config, rows),
    **_virtual(rows),
    **_encoded(rows),
    "client_flops_per_round": mean_over_clients("client_flops"),
    "dense_client_flops_per_round": dense_flops(experiment.costs, examples),
    # Of a client that receives the final model.
    "flops_by_layer": flops_table(experiment.costs, shares, examples),
    "layers": experiment.layers,
    "layer_densities": dict(zip(experiment.layers, densities, strict=True)),
  }


def _to_target(config: Config, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Finds what it took to reach the target, which of some tasks is only there if asked for."""
  target, metric = target_of(config), judgement_of(config).main
  if target is None:
    return {}
  name = "target_accuracy" if metric.name == "accuracy" else "target"
  return {
    name: target,
    "bytes_to_target": bytes_to_accuracy(rows, target, metric),
    "rounds_to_target": rounds_to_accuracy(rows, target, metric),
    **(
      {"virtual_seconds_to_target": seconds_to_accuracy(rows, target, metric)}
      if "virtual_seconds" in rows[-1]
      else {}
    ),
  }


def _encoded(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Divides bytes with a second stage by those without, over the rounds that were sampled."""
  sampled = [row for row in rows if row.get("measured_uplink_bytes") is not None]

  def share(way: str) -> float:
    whole, left = (
      sum(row[f"{kind}_{way}_bytes"] for row in sampled) for kind in ("plain", "measured")
    )
    return left / whole

  return {f"measured_{way}_share": share(way) for way in ("uplink", "downlink") if sampled}


def _virtual(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Reads the clock at the end, and sums energy up; nothing where rounds are not timed."""
  if "virtual_seconds" not in rows[-1]:
    return {}
  found = {"virtual_seconds": rows[-1]["virtual_seconds"]}
  found |= {"energy": sum(row["energy"] for row in rows)} if "energy" in rows[-1] else {}
  late = round(sum(row["late_clients"] for row in rows))
  return found | {
    "late_clients": late,
    "rounds_without_clients": sum(row["clients"] == 0 for row in rows),
  }
