"""The rows of metrics.jsonl, made of what the programs return."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.run.clients import spread_columns
from experiments.run.layer_shares import shares_of
from experiments.run.member import Member
from sparsyfed_jax.fed.tasks import TASKS, Judgement
from sparsyfed_jax.metrics.flops import client_flops
from sparsyfed_jax.types import total

# Columns that are null without --metrics.
_MEASURED = (
  "global_sparsity",
  "prunable_sparsity",
  "client_regrowth",
  "server_regrowth",
  "uplink_bytes",
  "downlink_bytes",
)
# Columns that --metrics adds.
_ADDED = (
  "layer_density",
  "round_uplink_bytes",
  "round_downlink_bytes",
  "cumulative_bytes",
  "client_flops",
)
_COUNTS = ("clients", "dropped_clients", "examples", "excluded_clients", "target_sparsity")


def columns_of(
  has_metrics: bool, judgement: Judgement = TASKS["classification"]
) -> tuple[str, ...]:
  """Lists columns that all rows of a run have, with --metrics or without."""
  always = (*_first(judgement), *_COUNTS, *_MEASURED, *_now_and_then(judgement))
  return always + (_ADDED if has_metrics else ())


def _first(judgement: Judgement) -> tuple[str, ...]:
  return ("round", "train_loss", *(f"train_{metric.name}" for metric in judgement.metrics))


def _now_and_then(judgement: Judgement) -> tuple[str, ...]:
  """Lists columns that are null in rounds in which they are not measured."""
  tests = (f"test_{metric.name}" for metric in judgement.metrics)
  return *tests, "test_loss", "client_mask_iou", *spread_columns(judgement.compared)


def new_rows(
  columns: Mapping[str, np.ndarray],
  scores: Mapping[str, np.ndarray],
  count: int,
  judgement: Judgement,
) -> list[dict[str, Any]]:
  columns = _on_host(columns)
  first = _first(judgement)
  names = [*first, *(name for name in columns if name not in first)]
  empty = [*(name for name in _MEASURED if name not in columns), *_now_and_then(judgement)]
  rows: list[dict[str, Any]] = [
    {name: columns[name][i].tolist() for name in names} | dict.fromkeys(empty) for i in range(count)
  ]
  for row in rows:
    if not row["clients"]:  # nobody counted, so means over clients are of nothing
      row |= {name: None for name, value in row.items() if value != value}
  rows[-1] |= {name: score.item() for name, score in scores.items()}
  return rows


def _on_host(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Makes numbers of the sums that came in parts, and the mean of bytes over clients."""
  values = {
    name: column.astype(np.float64) if column.dtype == np.uint32 else column
    for name, column in columns.items()
  }
  values["examples"] = total(columns["examples"]).astype(np.float64)
  if "virtual_part_seconds" in columns:
    whole, part = (values.pop(f"virtual_{name}_seconds") for name in ("whole", "part"))
    values["virtual_seconds"] = whole.astype(np.float64) + part
    values["late_uplink_bytes"] = total(columns["late_uplink_bytes"])
  if "round_uplink_bytes" in columns:
    values["round_uplink_bytes"] = total(columns["round_uplink_bytes"])
    clients = columns["clients"].astype(np.float64)
    mean = np.full(len(clients), np.nan)
    np.divide(values["round_uplink_bytes"], clients, out=mean, where=clients > 0)
    values["uplink_bytes"] = mean
  return values


def complete(
  member: Member, earlier: Sequence[Mapping[str, Any]], new: Sequence[dict[str, Any]]
) -> None:
  """Adds to new rows what follows from them and from earlier ones."""
  if not member.config.metrics:
    return
  total = earlier[-1]["cumulative_bytes"] if earlier else 0
  for row in new:
    received = row.pop("received_density")
    # Whoever vanished, or sent what is not finite, has received the model too.
    num_receivers = row["clients"] + row["dropped_clients"] + row["excluded_clients"]
    up = row.pop("round_uplink_bytes")
    if "virtual_seconds" in row:  # those that were late have received it, and sent theirs
      num_receivers += row["late_clients"]
      up += row.pop("late_uplink_bytes")
    down = round(num_receivers * row["downlink_bytes"])
    total += up + down
    row |= {
      "round_uplink_bytes": up,
      "round_downlink_bytes": down,
      "cumulative_bytes": total,
      "client_flops": _client_work(member, row, received),
    }


def _client_work(member: Member, row: Mapping[str, Any], received: Sequence[float]) -> float:
  config, experiment = member.config, member.experiment
  per_client = row["examples"] / row["clients"] if row["clients"] else 0.0
  shares = shares_of(config, experiment.costs, experiment.layers, received, row["target_sparsity"])
  return client_flops(experiment.costs, shares, per_client)
