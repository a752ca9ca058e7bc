"""What is made of a board: its tables, in Markdown, and the picture of its frontier."""

import json
import math
import os
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from experiments.boards.rows import SHARED, Row, form_of
from experiments.boards.settings import (
  SHARES,
  Setting,
  accuracy,
  bytes_to,
  dense_accuracy,
  flops_share,
  frontier,
  method_of,
  settings_of,
  total_bytes,
  virtual_seconds,
)
from experiments.pictures.panels import INK, Line, Panel, looks_of, save
from experiments.studies.study import markdown
from experiments.sweeps.results import decimals, lack_of, mean_and_deviation
from experiments.terminal import format_bytes, format_seconds

_FRONTIER = "frontier"


def report(rows: Sequence[Row]) -> str:
  """Makes the tables of a board."""
  settings = settings_of(rows)
  parts = [_head(rows)]
  for alpha in _alphas(settings):
    own = _ordered([s for s in settings if s.alpha == alpha])
    title = "All clients" if alpha is None else f"Dirichlet {alpha:g}"
    parts += [f"### {title}: test accuracy, %", _accuracies(own)]
    parts += [f"### {title}: what it took", _costs(own)]
  parts += ["### Flags", _flags(rows, settings)]
  return "\n\n".join(part.strip() for part in parts) + "\n"


def draw(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
  """Draws accuracy against bytes, and the frontier, a panel for each split."""
  settings = settings_of(rows)
  panels = []
  for alpha in _alphas(settings):
    own = [s for s in settings if s.alpha == alpha]
    entries = list(dict.fromkeys(s.entry for s in own))
    looks = looks_of([next(s.method for s in own if s.entry == entry) for entry in entries])
    lines = []
    for entry, look in zip(entries, looks, strict=True):
      points = _points([s for s in own if s.entry == entry])
      if points:
        x, means, lows, highs = np.array(sorted(points)).T
        lines.append(Line(x, 100 * means, entry, *look, 1.2, 100 * lows, 100 * highs))
    best = _points(frontier(own))
    if best:
      x, means, *_ = np.array(sorted(best)).T
      lines.append(Line(x, 100 * means, _FRONTIER, INK, ":", 3.0))
    dense = dense_accuracy(settings, alpha)
    panels.append(
      Panel(
        "Test accuracy" if alpha is None else f"Test accuracy, Dirichlet {alpha:g}",
        "%",
        lines,
        x_title="bytes both ways, all clients and rounds",
        x_log=format_bytes,
        level=None if dense is None else 100 * dense,
      )
    )
  save(panels, path)


def _points(settings: Sequence[Setting]) -> list[tuple[float, float, float, float]]:
  """Lists bytes, and the mean, least and greatest accuracy, of the settings that have them."""
  found = []
  for s in settings:
    size, mean = s.mean(total_bytes), s.mean(accuracy)
    if size is not None and mean is not None:
      values = [row["accuracy"] for row in s.rows]
      found.append((size, mean, min(values), max(values)))
  return found


def _alphas(settings: Sequence[Setting]) -> list[float | None]:
  return sorted({s.alpha for s in settings}, key=lambda a: -math.inf if a is None else -a)


def _ordered(settings: Sequence[Setting]) -> list[Setting]:
  """Sorts entries by their mean accuracy over the sparsities, best first, and their sparsities."""

  def rank(s: Setting) -> float:
    means = [m for t in settings if t.entry == s.entry if (m := t.mean(accuracy)) is not None]
    return -statistics.fmean(means) if means else math.inf

  return sorted(settings, key=lambda s: (rank(s), s.entry, s.sparsity or 0))


def _cell(
  setting: Setting,
  read: Callable[[Row], float | None],
  text: Callable[[float], str],
  lacking: str = "not measured",
) -> str:
  if not setting.is_whole:
    number = sum(not _has_ended(row) for row in setting.rows)
    return f"{number} of {len(setting.rows)} {lack_of(setting.rows)}"
  return mean_and_deviation([read(row) for row in setting.rows], text, lacking)


def _has_ended(row: Row) -> bool:
  return not lack_of([row])


def _accuracies(settings: Sequence[Setting]) -> str:
  sparsities = sorted({s.sparsity for s in settings if s.sparsity is not None})
  entries = list(dict.fromkeys(s.entry for s in settings))
  best = {
    sparsity: max(
      (m for s in settings if s.sparsity == sparsity if (m := s.mean(accuracy)) is not None),
      default=None,
    )
    for sparsity in sparsities
  }
  lines = []
  for entry in entries:
    own = {s.sparsity: s for s in settings if s.entry == entry}
    cells = [_cell(own[None], accuracy, decimals(100, 2)) if None in own else ""]
    for sparsity in sparsities:
      text = _cell(own[sparsity], accuracy, decimals(100, 2)) if sparsity in own else ""
      is_best = text and own[sparsity].mean(accuracy) == best[sparsity] is not None
      cells.append(f"**{text}**" if is_best else text)
    lines.append([entry, *cells])
  titles = ["of no sparsity", *(f"{100 * sparsity:g} %" for sparsity in sparsities)]
  return markdown(["method"], titles, lines)


def _costs(settings: Sequence[Setting]) -> str:
  dense = dense_accuracy(settings, settings[0].alpha)
  best = frontier(settings)
  is_timed = any(virtual_seconds(row) is not None for s in settings for row in s.rows)
  lines = []
  for s in settings:
    targets = [
      "" if dense is None else _cell(s, bytes_to(share * dense), format_bytes, "never")
      for share in SHARES
    ]
    lines.append(
      [
        s.entry,
        "" if s.sparsity is None else f"{100 * s.sparsity:g} %",
        _cell(s, accuracy, decimals(100, 2)),
        _cell(s, total_bytes, format_bytes),
        *targets,
        _cell(s, flops_share, decimals(100, 1)),
        *([_cell(s, virtual_seconds, decimals(1, 2))] if is_timed else []),
        "yes" if s in best else "",
        str(len(s.rows)),
      ]
    )
  titles = [
    *("accuracy, %", "bytes both ways"),
    *(f"to {100 * share:g} % of dense" for share in SHARES),
    *("FLOPs of dense, %", *(["virtual seconds"] if is_timed else [])),
    *("on the frontier", "seeds"),
  ]
  return markdown(["method", "sparsity"], titles, lines)


def _head(rows: Sequence[Row]) -> str:
  seconds = sum(
    row["seconds_per_round"] * row["curve"][-1][0] for row in rows if "seconds_per_round" in row
  )
  devices = ", ".join(sorted({row["device"] for row in rows if "device" in row}))
  versions = sorted({str(row["versions"].get("jax", "?")) for row in rows if "versions" in row})
  shared = ", ".join(f"{name} {rows[0][name]}" for name in SHARED if rows[0][name] is not None)
  return (
    f"{len(rows)} runs: {shared}. Their rounds took {format_seconds(seconds)} on {devices or '?'},"
    f" jax {', '.join(versions) or '?'}. Mean ± standard deviation over the seeds. Bytes are of all"
    " clients and rounds, up and down, positions included; those to a share of dense are until the"
    " test accuracy first reached that share of FedAvg's at the end of its run. An entry is on the"
    " frontier if no other is as accurate for as few bytes."
  )


def _flags(rows: Sequence[Row], settings: Sequence[Setting]) -> str:
  """Lists the flags of each entry, those that all share first."""
  # The split is the same for all; null is where it was left out.
  splits = [split for row in rows if (split := row["flags"].get("partition"))]
  shared = {"partition": splits[0]} if splits else {}
  common = shared | {
    name: value
    for name, value in form_of(rows[0]).items()
    if all(row["flags"].get(name) == value for row in rows)
  }
  entries = {s.entry: s.rows[0] for s in settings}
  lines = [["all", _as_arguments(common)]]
  for entry, row in entries.items():
    own = {"algorithm": method_of(row)} | {
      name: value for name, value in form_of(row).items() if name not in common
    }
    lines.append([entry, _as_arguments(own)])
  return markdown(["entry", "flags that are not at their defaults"], [], lines)


def _as_arguments(flags: dict[str, object]) -> str:
  def write(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

  return " ".join(f"`--{name}={write(value)}`" for name, value in sorted(flags.items()))
