"""Pictures of studies: settings over the rounds, or against a flag, in the style of the others."""

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pictures.plots import (
  GREY,
  NAMES,
  PALETTE,
  Line,
  Panel,
  draw,
  draw_over_rounds,
  mean_curve,
)
from experiments.studies.study import ACCURACY, Outcome, Setting, by_value, finished

# Inches: of a pair of axes, left of them, between them besides labels, and of a letter of a label.
_AXES, _LEFT, _GAP, _LETTER, _HEIGHT = 4.2, 0.66, 0.75, 0.078, 5.4
_STYLES = ("-", "--", "-.", ":")

# x, mean and standard deviation, f64[n] each
Points: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


class View(NamedTuple):
  """A panel, and what draws it."""

  panel: Panel
  draw: Callable[[Axes, Panel], None]


def save(views: Sequence[View], path: str | os.PathLike[str]) -> None:
  """Draws panels side by side into a PNG."""
  labels = [line.label for view in views for line in view.panel.lines]
  gap = _GAP + _LETTER * max(map(len, labels), default=0)
  width = _LEFT + len(views) * (_AXES + gap)
  figure = Figure(figsize=(width, _HEIGHT), dpi=150, facecolor="white")
  box = {"left": _LEFT / width, "right": 1 - gap / width, "bottom": 0.15, "top": 0.88}
  row = figure.subplots(1, len(views), squeeze=False, gridspec_kw={**box, "wspace": gap / _AXES})
  for axes, view in zip(row.flat, views, strict=True):
    view.draw(axes, view.panel)
  figure.savefig(path, format="png")


def label_of(point: Mapping[str, str]) -> str:
  """Names a setting: by its words alone, by its numbers with their flags."""
  parts = [
    NAMES.get(value, value) if value[0].isalpha() else f"{flag} {value}"
    for flag, value in point.items()
    if value
  ]
  return ", ".join(parts)


def lines_of(curves: Sequence[tuple[Mapping[str, str], Points]], scale: float = 1.0) -> list[Line]:
  """Makes lines of points and what names them; none where there is nothing to draw.

  A method has the same colour in every picture.
  """
  lines = []
  used: list[str] = []
  for i, (point, (x, y, spread)) in enumerate(curves):
    method = point.get("algorithm", "")
    color = PALETTE[(list(NAMES).index(method) if method in NAMES else i) % len(PALETTE)]
    style = _STYLES[min(used.count(color), len(_STYLES) - 1)]
    used.append(color)
    if x.size:
      lines.append(Line(x, scale * y, label_of(point), color, style, 1.8, scale * spread))
  return lines


def mean_of(setting: Setting, key: str) -> Points:
  """Reads the rounds of a column of metrics.jsonl, and its mean and deviation over the seeds."""
  return mean_curve([outcome.rows for outcome in finished(setting)], key)


def over_rounds(
  settings: Sequence[Setting],
  key: str,
  panel: Panel,
  *,
  scale: float = 1.0,
  first: int = 0,
  mark: int | None = None,
) -> View:
  """Shows a column of metrics.jsonl, mean and standard deviation over the seeds.

  Args:
    settings: to compare.
    key: the column.
    panel: without lines. An axis that may be logarithmic has neither bands nor zeros.
    scale: of the values.
    first: the round in which the axis begins.
    mark: a round to mark with a vertical line.
  """

  def points(setting: Setting) -> Points:
    x, y, spread = mean_of(setting, key)
    x, y, spread = x[x >= first], y[x >= first], spread[x >= first]
    return (x, y, spread) if panel.log_ratio == math.inf else (x[y > 0], y[y > 0], 0 * y[y > 0])

  curves = [(setting.point, points(setting)) for setting in settings]
  lines = lines_of(curves, scale)
  zeros = [label_of(s.point) for s in settings if mean_of(s, key)[0].size and not points(s)[0].size]
  last = max((line.x[-1] for line in lines), default=1.0)

  def draw_lines(axes: Axes, panel: Panel) -> None:
    draw_over_rounds(axes, panel, last)
    axes.set_xlim(left=first)
    if zeros and lines:
      text = f"zeros are left out, of all rounds: {', '.join(zeros)}"
      axes.annotate(text, (0, -0.16), xycoords="axes fraction", color=GREY, fontsize=9.5)
    if mark is not None:
      axes.axvline(mark, color=GREY, linestyle="--", linewidth=1.2)

  return View(panel._replace(lines=lines), draw_lines)


def against_flag(
  settings: Sequence[Setting],
  flag: str,
  value: Callable[[Outcome], float | None],
  panel: Panel,
  *,
  scale: float = 1.0,
  panel_flag: str = "",
  known: Callable[[Setting], float | None] = lambda setting: None,
) -> list[View]:
  """Shows a number against the values of a flag, evenly spaced, a line for each other setting.

  Args:
    settings: to compare. Those on which the flag has no effect become level lines.
    flag: of the x axis, of numbers.
    value: reads a run.
    panel: without lines.
    scale: of the values.
    panel_flag: a flag with a panel for each of its values.
    known: a figure of others for a setting, drawn dotted beside.
  """
  ticks = sorted({s.point[flag] for s in settings if s.point.get(flag)}, key=float)

  def places(setting: Setting) -> Sequence[int]:
    own = setting.point.get(flag)
    return [ticks.index(own)] if own else range(max(len(ticks), 1))

  def points(members: Sequence[Setting]) -> Points:
    found = []
    for member in members:
      values = [v for outcome in finished(member) if (v := value(outcome)) is not None]
      spread = statistics.stdev(values) if len(values) > 1 else 0.0
      found += [(x, statistics.fmean(values), spread) for x in places(member) if values]
    x, y, spreads = np.array(sorted(found), float).reshape(-1, 3).T
    return x, y, spreads

  def known_points(members: Sequence[Setting]) -> Points:
    found = [(x, v) for member in members if (v := known(member)) for x in places(member)]
    x, y = np.array(sorted(found), float).reshape(-1, 2).T
    return x, y, 0 * y

  def draw_lines(axes: Axes, panel: Panel) -> None:
    draw(axes, panel, flag)
    axes.set_xticks(range(len(ticks)), ticks)

  views = []
  for panel_value, chosen in by_value(settings, panel_flag).items():
    groups: dict[tuple[tuple[str, str], ...], list[Setting]] = {}
    for setting in chosen:
      rest = [(name, x) for name, x in setting.point.items() if name not in (flag, panel_flag)]
      groups.setdefault(tuple(rest), []).append(setting)
    curves = [(dict(rest), points(members)) for rest, members in groups.items()]
    others = [(dict(rest), known_points(members)) for rest, members in groups.items()]
    lines = lines_of(curves, scale) + [
      line._replace(label="", style=":", width=1.2) for line in lines_of(others, scale)
    ]
    title = f"{panel.title}, {panel_flag} {panel_value}" if panel_value else panel.title
    views.append(View(panel._replace(title=title, lines=lines), draw_lines))
  return views


def accuracy_against(flag: str, settings: Sequence[Setting], path: str | os.PathLike[str]) -> None:
  """Draws the accuracy at the end against the values of a flag."""
  panel = Panel("Test accuracy", "%", [], (0, 100), math.inf)
  save(against_flag(settings, flag, ACCURACY.value, panel, scale=100), path)
