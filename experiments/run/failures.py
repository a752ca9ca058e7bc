"""When a run has failed: its numbers are not finite any more, or nobody was ever left."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.run.config import Config
from experiments.run.systems import num_selected, systems_of

_MOST_LOST = 10  # rounds in a row of which no upload is finite, until training has diverged


class DivergedError(RuntimeError):
  """Training left the finite numbers; the message names the round and what would help."""


def has_failed(rows: Sequence[Mapping[str, Any]]) -> bool:
  """Tells whether a run ended with its last row, before its time."""
  return failure(rows, 0) is not None


def failure(rows: Sequence[Mapping[str, Any]], lost: int) -> DivergedError | None:
  """Finds out whether training diverged.

  Args:
    rows: of some rounds.
    lost: how many rounds just before them had uploads, none of them finite.
  """
  for row in rows:
    lost = count_lost([row], lost)
    if lost == _MOST_LOST:
      return DivergedError(
        f"round {row['round']}: all that clients sent in the last {lost} rounds is not finite;"
        " training diverged, a smaller --client_lr may help (the rounds so far are in"
        " metrics.jsonl)"
      )
    loss = row["train_loss"]
    if row["examples"] > 0 and (loss is None or not math.isfinite(loss)):  # None where read back
      return DivergedError(
        f"round {row['round']}: train_loss is {loss}; training diverged, a smaller"
        " --client_lr may help (the rounds so far are in metrics.jsonl)"
      )
  return None


def count_lost(rows: Sequence[Mapping[str, Any]], before: int) -> int:
  """Counts rounds in a row of which no upload was finite; rounds without uploads do not count."""
  for row in rows:
    before = 0 if row["clients"] else before + bool(row["excluded_clients"])
  return before


def never_updated(config: Config, rows: Sequence[Mapping[str, Any]]) -> DivergedError | None:
  """Finds out whether nobody was left in any round of a run."""
  if any(row["clients"] for row in rows):
    return None
  sampled = num_selected(config) * len(rows)
  names = "dropped_clients", "excluded_clients", "late_clients", "unavailable_clients"
  lost, excluded, late, away = (sum(int(row.get(name) or 0) for row in rows) for name in names)
  deadline = systems_of(config).deadline
  timed = f"{late} were late (--deadline={deadline}), {away} were not available, "
  return DivergedError(
    f"no round had an update: of {sampled} clients sampled {lost} vanished"
    f" (--client_dropout={config.client_dropout}), {timed if late or away else ''}{excluded} sent"
    f" what is not finite (a smaller --client_lr than {config.client_lr} may help) and"
    f" {max(sampled - lost - excluded - late - away, 0)} have no examples (a smaller --num_clients"
    " may help); the rounds are in metrics.jsonl"
  )
