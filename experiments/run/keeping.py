"""What a run keeps of its models, which evaluation is the best, and when it may stop early."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.run.config import Config
from experiments.run.ending import IS_LOSS, NOTHING
from experiments.run.learning import judgement_of, target_of, task_of
from experiments.run.measures import rounds_to_accuracy
from experiments.run.member import Member
from experiments.run.models import is_strange
from sparsyfed_jax import loaded
from sparsyfed_jax.io import model_file, model_places
from sparsyfed_jax.io.writers import sync_directory
from sparsyfed_jax.types import Variables

Rows = Sequence[Mapping[str, Any]]


def save_model(member: Member, variables: Variables, row: Mapping[str, Any]) -> None:
  """Writes the model file of a run, in place of the one before."""
  model_file.write(member.directory / model_places.LAST_NAME, _describe(member, row), variables)


def save_best(
  member: Member, variables: Variables, row: Mapping[str, Any], checkpoints: Sequence[int]
) -> None:
  """Keeps the model of the best evaluation so far.

  Args:
    member: the run.
    variables: with which it predicts.
    row: of the evaluation.
    checkpoints: rounds at which the run may go on. The best ones before these are kept too: gone on
      with by another version, say, what was better since may not come again.
  """
  done = int(row["round"])
  place = model_places.best_path(member.directory, done)
  place.parent.mkdir(exist_ok=True)
  model_file.write(place, _describe(member, row), variables)
  known = [number for number in model_places.best_rounds(member.directory) if number <= done]
  needed = {max((n for n in known if n <= one), default=done) for one in (*checkpoints, done)}
  for number in set(known) - needed:
    model_places.best_path(member.directory, number).unlink(missing_ok=True)


def drop_stale(member: Member, done: int) -> None:
  """Removes the model of a round that is not the best now, and was before the run was stopped."""
  place = model_places.best_path(member.directory, done)
  if place.exists():
    place.unlink()
    sync_directory(place.parent)


def is_best(config: Config, rows: Rows) -> bool:
  """Tells whether the last row is the best evaluation so far; of equal ones the first is."""
  best = best_row(rows, config.keep_best) if config.keep_best != NOTHING else None
  return best is not None and best is rows[-1]


def best_row(rows: Rows, measure: str) -> Mapping[str, Any] | None:
  """Finds the best evaluation, the first of equal ones; None where there is none."""
  evaluated = [row for row in rows if _is_finite(row.get(measure))]
  sign = 1 if IS_LOSS[measure] else -1
  return min(evaluated, key=lambda row: sign * row[measure], default=None)


def reason_to_stop(config: Config, rows: Rows) -> str:
  """Says why a run need not go on; "" where it has to."""
  main, target = judgement_of(config).main, target_of(config)
  if config.stop_at_target and target is not None:
    if rounds_to_accuracy(rows, target, main) is not None:
      flag = "target_accuracy" if task_of(config) == "classification" else "target"
      return f"test_{main.name} reached --{flag}={target}"
  patience = config.early_stop_patience
  if patience:
    measure = f"test_{main.name}" if config.keep_best == NOTHING else config.keep_best
    best = best_row(rows, measure)
    since = 0 if best is None else int(best["round"])
    # An evaluation that is not finite counts as one without gain.
    count = sum(row["round"] > since and _is_evaluated(row) for row in rows)
    if count >= patience:
      return f"{measure} was best after round {since}, {count} evaluations before"
  return ""


def may_stop(config: Config) -> bool:
  """Tells whether flags let a run end before its last round."""
  return config.stop_at_target or config.early_stop_patience > 0


def _describe(member: Member, row: Mapping[str, Any]) -> dict[str, Any]:
  config, experiment = member.config, member.experiment
  names = ("input_range", "seen_range", "classes")
  scores = {name: value for name, value in row.items() if name.startswith("test_")}
  told = loaded.describe(
    experiment.model,
    experiment.signature,
    config.prunable,
    **{name: experiment.facts[name] for name in names},
    algorithm=config.algorithm,
    round=int(row["round"]),
    prunable_sparsity=row.get("prunable_sparsity"),
    **scores,
  )
  return told | ({"model": {"class": config.model}} if is_strange(config) else {})


def _is_evaluated(row: Mapping[str, Any]) -> bool:
  return any(name.startswith("test_") and value is not None for name, value in row.items())


def _is_finite(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)
