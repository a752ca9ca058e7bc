"""What a sweep makes of its runs: sweep.csv, table.md and sweep.png."""

import csv
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from experiments.pictures.panels import label_of
from experiments.pictures.plots import Curve, plot_sweep
from experiments.run import files as run_files
from experiments.run.learning import judgement_of
from experiments.sweeps.grid import Run, place_of
from sparsyfed_jax.algorithms import find
from sparsyfed_jax.fed.metric import Metric

# Entries of an outcome without numbers, which say why, and what is said of such runs in a table.
LACKING = ("refused", "damaged", "diverged")


def decimals(factor: float, digits: int) -> Callable[[float], str]:
  """Makes what writes a number times `factor` with `digits` behind the point."""
  return lambda value: f"{factor * value:.{digits}f}"


# Columns of the table: of summary.json, heading, how a value is written.
_MEASURES = (
  ("prunable_sparsity", "sparsity of the model, %", decimals(100, 2)),
  ("uplink_bytes_per_client_round", "uplink, kB a client and round", decimals(1e-3, 1)),
  ("downlink_bytes_per_client_round", "downlink, kB", decimals(1e-3, 1)),
)


Measure: TypeAlias = tuple[str, str, Callable[[float], str]]


def _measures_of(runs: Sequence[Run]) -> tuple[Measure, ...]:
  """Lists the columns of runs, whose tasks may differ: the main metric of each comes first."""
  mains = dict.fromkeys(judgement_of(run.config).main for run in runs)
  scores = ((f"test_{m.name}", _heading(m), decimals(m.factor, m.decimals)) for m in mains)
  return *scores, *_MEASURES


def _heading(metric: Metric) -> str:
  return ", ".join(filter(None, (f"test {metric.title}", metric.unit)))


class Outcome(NamedTuple):
  """What is left of a run."""

  summary: dict[str, Any]  # summary.json, or one of LACKING and the reason
  rows: list[dict[str, Any]]  # metrics.jsonl


def read_outcome(run: Run, directory: pathlib.Path) -> Outcome:
  """Reads what a run has left; where a file is damaged, the summary says so in its place."""
  if run.refusal:
    return Outcome({"refused": run.refusal}, [])
  place = place_of(run, directory)
  try:
    run_files.read_similarity(place)
    summary, rows = run_files.read_summary(place), run_files.read_rows(place)
    run_files.check_agreement(summary, rows, place)
    return Outcome(summary, rows)
  except (run_files.DamagedError, OSError) as error:
    return Outcome({"damaged": " ".join(str(error).split())}, [])


def write_results(runs: Sequence[Run], directory: pathlib.Path) -> str:
  """Writes sweep.csv, table.md and sweep.png of runs that have ended; returns the table."""
  outcomes = [read_outcome(run, directory) for run in runs]
  measures = _measures_of(runs)
  _write_csv(runs, outcomes, measures, directory / "sweep.csv")
  groups: dict[tuple[str, ...], list[int]] = {}
  for i, run in enumerate(runs):
    label = tuple(value for flag, value in run.point.items() if flag != "seed")
    groups.setdefault(label, []).append(i)
  heads = [flag for flag in runs[0].point if flag != "seed"]
  lines = [
    "| " + " | ".join([*heads, *(title for _, title, _ in measures), "seeds"]) + " |",
    "|" + "---|" * len(heads) + "---:|" * (len(measures) + 1),
  ]
  for label, members in groups.items():
    named = [
      find(v).name if h == "algorithm" and v else v for h, v in zip(heads, label, strict=True)
    ]
    found = [outcomes[i].summary for i in members]
    lacking = lack_of(found) or "not measured"
    cells = [
      mean_and_deviation([summary.get(name) for summary in found], text, lacking)
      for name, _, text in measures
    ]
    lines.append("| " + " | ".join([*map(cell, named), *cells, str(len(members))]) + " |")
  reasons = [
    f"- {kind} {_name(run)}: {outcome.summary[kind]}"
    for run, outcome in zip(runs, outcomes, strict=True)
    for kind in LACKING
    if kind in outcome.summary
  ]
  reasons += [
    f"- no better than guessing {_name(run)}"
    for run, outcome in zip(runs, outcomes, strict=True)
    if outcome.summary.get("is_chance")
  ]
  reasons += [
    f"- clients predict with models of their own {_name(run)}: {_of_clients(outcome.summary)}"
    for run, outcome in zip(runs, outcomes, strict=True)
    if outcome.summary.get("has_client_models")
  ]
  table = "\n".join([*lines, *([""] if reasons else []), *reasons]) + "\n"
  (directory / "table.md").write_text(table, encoding="utf-8")

  curves = []
  for label, members in groups.items():
    rows = [outcomes[i].rows for i in members if outcomes[i].rows]
    if rows:
      point = dict(zip(heads, label, strict=True))
      curves.append(Curve(label_of(point) or "run", rows, point.get("algorithm", "")))
  plot_sweep(curves, directory / "sweep.png", judgement_of(runs[0].config).main)
  return table


def _of_clients(summary: Mapping[str, Any]) -> str:
  """Says how good the models of clients are, if they were evaluated."""
  scores = summary.get("client_accuracies", summary.get("client_scores")) or ()
  known = [score for score in scores if score is not None]
  return (
    f"{statistics.fmean(known):.4f} on average" if known else "evaluated with --client_eval=true"
  )


def _write_csv(
  runs: Sequence[Run],
  outcomes: Sequence[Outcome],
  measures: Sequence[Measure],
  path: pathlib.Path,
) -> None:
  columns = [*(name for name, *_ in measures), "seconds_per_round"]
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow([*runs[0].point, *columns, "note"])
    for run, (summary, _) in zip(runs, outcomes, strict=True):
      notes = [f"{kind}: {summary[kind]}" for kind in LACKING if kind in summary]
      writer.writerow([*run.point.values(), *map(summary.get, columns), "; ".join(notes)])


def lack_of(summaries: Sequence[Mapping[str, Any]]) -> str:
  """Says in a word why runs have no numbers, if some have none."""
  return " or ".join(kind for kind in LACKING if any(kind in summary for summary in summaries))


def cell(value: str) -> str:
  """Writes a text into a cell of a Markdown table, where a bar would begin the next."""
  return value.replace("|", "\\|")


def _name(run: Run) -> str:
  return ", ".join(f"{flag}={value}" for flag, value in run.point.items() if value) or "the run"


def mean_and_deviation(
  values: Sequence[float | None], text: Callable[[float], str], lacking: str
) -> str:
  """Writes the mean and the standard deviation of the runs of a setting.

  Args:
    values: of each run; None or not finite where it has none.
    text: writes a value.
    lacking: what is said of runs without a value.
  """
  known = [value for value in values if value is not None and math.isfinite(value)]
  if len(known) < len(values):
    return f"{len(values) - len(known)} of {len(values)} {lacking}"
  mean = text(statistics.mean(known))
  return f"{mean} ± {text(statistics.stdev(known))}" if len(known) > 1 else mean
