"""The files that a run has left, checked as they are read: what is damaged is one line."""

import json
import pathlib
import stat
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any

from experiments.run.clients import spread_columns
from experiments.run.directory import CONFIG_NAME
from experiments.run.learning import recorded_judgement
from experiments.run.mask_files import SIMILARITY_NAME
from experiments.run.settings import flags_of
from sparsyfed_jax.fed.tasks import TASKS
from sparsyfed_jax.io.writers import JSONL_NAME, SUMS_NAME, find_changed, read_metrics

SUMMARY_NAME = "summary.json"
# Columns of metrics.jsonl and entries of summary.json that are numbers, null where not measured.
_SHARES = (
  *("global_sparsity", "prunable_sparsity", "target_sparsity"),
  *("client_global_sparsity", "client_prunable_sparsity"),
  *("client_regrowth", "server_regrowth", "mask_iou", "client_mask_iou"),
  *("accuracy_before_shift", "lowest_accuracy_after_shift", "target_accuracy"),
)
_AMOUNTS = (
  *("clients", "examples", "uplink_bytes", "downlink_bytes", "cumulative_bytes", "client_flops"),
  *("uplink_bytes_per_client_round", "downlink_bytes_per_client_round", "total_bytes"),
  *("dense_bytes", "bytes_to_target", "rounds_to_target", "rounds_to_regain", "shift_round"),
  *("client_flops_per_round", "dense_client_flops_per_round"),
  *("seconds_per_round", "compile_seconds", "process_peak_device_bytes"),
  *("virtual_seconds", "round_virtual_seconds", "virtual_seconds_to_target", "energy"),
  *("late_clients", "unavailable_clients"),
)
_NUMBERS = ("train_loss", "test_loss", "target")
_HUGE = 1e100  # beyond what is measured, and far enough from what no float holds
_METRICS = tuple(
  ((f"train_{m.name}", f"test_{m.name}"), max(m.low, -_HUGE), min(m.high, _HUGE))
  for judgement in TASKS.values()
  for m in judgement.metrics
)
# Those of clients; a deviation from the mean may be 0 where the metric may not.
_OF_CLIENTS = tuple(
  (spread_columns(metric), min(metric.low, 0), min(metric.high, _HUGE))
  for metric in dict.fromkeys(judgement.compared for judgement in TASKS.values())
)
_LIMITS = (
  *((_SHARES, 0, 1), (_AMOUNTS, 0, _HUGE), (_NUMBERS, -_HUGE, _HUGE)),
  *(*_METRICS, *_OF_CLIENTS),
)
_FLOPS = ("forward", "input_gradient", "weight_gradient", "dense_total")
# What config.json holds of a flag of a type; null where the method does not read it.
_KINDS: Mapping[Any, type | UnionType] = {
  float: int | float,
  float | None: int | float,
  int: int,
  int | None: int,
  bool: bool,
  tuple[float, ...]: list,
  tuple[str, ...]: list,
  tuple[int, ...]: list,
}


class DamagedError(ValueError):
  """A file that is not what the program writes; the message names file, place and what is right."""


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file.

  Raises:
    DamagedError: it is not JSON, or not a regular file, so that opening it might never return.
    OSError: it cannot be read.
  """
  check_regular(path)
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise DamagedError(f"{path}: must be JSON ({error})") from error


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    DamagedError: as `read_json`, or it is another kind of value.
    OSError: it cannot be read.
  """
  content = read_json(path)
  if not isinstance(content, dict):
    raise DamagedError(f"{path}: must be a JSON object, is {_short(content)}")
  return content


def check_regular(path: pathlib.Path) -> None:
  """Raises DamagedError for what is there and no file: a FIFO, say, for which reading waits."""
  if path.exists() and not stat.S_ISREG(path.stat().st_mode):
    raise DamagedError(f"{path}: must be a file, and is a folder, FIFO or device")


def read_config(directory: pathlib.Path) -> dict[str, Any]:
  """Reads config.json; raises as `read_object`."""
  path = directory / CONFIG_NAME
  config = read_object(path)
  _require("algorithm" in config, path, "algorithm", "is missing")
  for name, flag in flags_of().items():
    value = config.get(name)
    kind = _KINDS.get(flag.type, str)
    is_correct = value is None or (
      isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
    )
    if isinstance(value, int | float):
      is_correct = is_correct and abs(value) <= _HUGE
    _require(is_correct, path, name, f"is {_short(value)}, not a value of this flag")
  for name in ("data", "versions"):
    is_correct = isinstance(config.get(name) or {}, dict)
    _require(is_correct, path, name, f"must be an object, is {_short(config.get(name))}")
  return config


def read_rows(directory: pathlib.Path) -> list[dict[str, Any]]:
  """Reads metrics.jsonl; raises as `read_object`."""
  path = directory / JSONL_NAME
  check_regular(path)
  try:
    rows = read_metrics(path)
  except (ValueError, RecursionError) as error:
    raise DamagedError(str(error)) from error
  columns: dict[str, None] = {}
  check_regular(directory / SUMS_NAME)
  changed = find_changed(directory, rows)
  if changed is not None:
    raise DamagedError(f"{path}: line {changed + 1} does not fit its checksum in {SUMS_NAME}")
  for number, row in enumerate(rows, start=1):
    place = f"line {number}: "
    found = row.get("round", number)
    is_correct = type(found) is int and found == number
    _require(is_correct, path, f"{place}round", f"must be {number}, is {_short(found)}")
    _check_numbers(row, path, place)
    densities = row.get("layer_density")
    _check_list(densities, path, f"{place}layer_density")
    for name in columns:
      _require(name in row, path, f"{place}{name}", "is missing, and in the lines before")
    columns |= dict.fromkeys(row)
  return rows


def read_summary(directory: pathlib.Path) -> dict[str, Any]:
  """Reads summary.json; raises as `read_object`."""
  path = directory / SUMMARY_NAME
  summary = read_object(path)
  _require(bool(summary), path, "it", "must not be empty")
  if "diverged" in summary:
    text = summary["diverged"]
    _require(isinstance(text, str), path, "diverged", f"must be a text, is {_short(text)}")
    return summary
  _check_numbers(summary, path, "")
  _check_list(summary.get("client_accuracies"), path, "client_accuracies")
  _check_list(summary.get("client_scores"), path, "client_scores", _HUGE)
  layers = summary.get("layers")
  is_correct = layers is None or _is_list_of(layers, str)
  _require(is_correct, path, "layers", f"must be a list of names, is {_short(layers)}")
  costs = summary.get("flops_by_layer")
  is_correct = costs is None or _is_list_of(costs, dict)
  _require(is_correct, path, "flops_by_layer", f"must be a list of objects, is {_short(costs)}")
  for number, cost in enumerate(costs or [], start=1):
    _require("layer" in cost, path, f"flops_by_layer, entry {number}", "lacks the layer's name")
    for name in _FLOPS:
      _check_number(cost.get(name), path, f"flops_by_layer, entry {number}: {name}", 0, _HUGE)
  return summary


def check_agreement(
  summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], directory: pathlib.Path
) -> None:
  """Raises DamagedError where a summary is not that of the rows."""
  last = rows[-1] if rows else {}
  tests = [f"test_{metric.name}" for metric in recorded_judgement(summary).metrics]
  for name in (*tests, "test_loss", "global_sparsity", "prunable_sparsity"):
    if name in summary and name in last:
      _require(
        summary[name] == last[name],
        directory / SUMMARY_NAME,
        name,
        f"is {_short(summary[name])}, but {_short(last[name])} in the last row of {JSONL_NAME}",
      )


def read_similarity(directory: pathlib.Path) -> dict[str, Any]:
  """Reads mask_similarity.json, {} where there is none; raises as `read_object`."""
  path = directory / SIMILARITY_NAME
  if not path.exists():
    return {}
  table = read_object(path)
  rounds: Any = table.get("rounds")
  iou: Any = table.get("iou")
  _require(_is_list_of(rounds, int), path, "rounds", f"must be a list, is {_short(rounds)}")
  is_square = _is_list_of(iou, list) and [len(row) for row in iou] == [len(rounds)] * len(rounds)
  _require(is_square, path, "iou", "must be a table of each round by each")
  for number in rounds:
    _check_number(number, path, "rounds", 0, _HUGE)
  for row in iou:
    _check_list(row, path, "iou")
    _require(None not in row, path, "iou", "must have no holes")
  return table


def _check_numbers(values: Mapping[str, Any], path: pathlib.Path, place: str) -> None:
  for names, low, high in _LIMITS:
    for name in names:
      _check_number(values.get(name), path, f"{place}{name}", low, high)


def _check_number(value: Any, path: pathlib.Path, place: str, low: float, high: float) -> None:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  is_correct = value is None or (is_number and low <= value <= high)
  limits = "" if high == _HUGE else f" from {low} to {high}"
  _require(is_correct, path, place, f"must be a number{limits} or null, is {_short(value)}")


def _check_list(values: Any, path: pathlib.Path, place: str, high: float = 1) -> None:
  is_list = values is None or isinstance(values, list)
  _require(is_list, path, place, f"must be a list of numbers, is {_short(values)}")
  for value in values or []:
    _check_number(value, path, place, 0, high)


def _is_list_of(values: Any, kind: type) -> bool:
  return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _require(is_correct: bool, path: pathlib.Path, place: str, what: str) -> None:
  if not is_correct:
    raise DamagedError(f"{path}: {place} {what}")


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
