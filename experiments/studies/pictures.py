"""Pictures of studies: settings over the rounds, or against a flag, in the style of the others."""

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.pictures import panels
from experiments.pictures.panels import Line, Panel, Points, label_of, save
from experiments.studies.study import ACCURACY, Outcome, Setting, by_value, finished


def lines_of(curves: Sequence[tuple[Mapping[str, str], Points]], scale: float = 1.0) -> list[Line]:
  """Makes lines of points and what names them; none where there is nothing to draw."""
  looks = panels.looks_of([point.get("algorithm", "") for point, _ in curves])
  return [
    panels.make_line(points, label_of(point), look, scale)
    for (point, points), look in zip(curves, looks, strict=True)
    if points.x.size
  ]


def mean_of(setting: Setting, key: str, x_key: str = "round") -> Points:
  """Reads a column of metrics.jsonl against the rounds or another one, over the seeds."""
  return panels.mean_curve([outcome.rows for outcome in finished(setting)], key, x_key)


def over_rounds(
  settings: Sequence[Setting], key: str, panel: Panel, *, scale: float = 1.0
) -> Panel:
  """Shows a column of metrics.jsonl, mean and range of the seeds.

  Args:
    settings: to compare.
    key: the column.
    panel: without lines. What is before its first round is left out, and on an axis that may be
      logarithmic what is zero.
    scale: of the values.
  """
  curves = []
  zeros = []
  for setting in settings:
    points = mean_of(setting, key)
    points = points.where(points.x >= panel.first)
    kept = points if panel.log_ratio == math.inf else points.where(points.y > 0)
    curves.append((setting.point, kept))
    if points.x.size and not kept.x.size:
      zeros.append(label_of(setting.point))
  note = f"zeros are left out, of all rounds: {', '.join(zeros)}" if zeros else ""
  return panel._replace(lines=lines_of(curves, scale), note=note)


def against_flag(
  settings: Sequence[Setting],
  flag: str,
  value: Callable[[Outcome], float | None],
  panel: Panel,
  *,
  scale: float = 1.0,
  panel_flag: str = "",
  known: Callable[[Setting], float | None] = lambda setting: None,
) -> list[Panel]:
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

  def points(members: Sequence[Setting], values: Callable[[Setting], list[float]]) -> Points:
    found = []
    for member in members:
      own = member.point.get(flag)
      if of_seeds := values(member):
        spread = statistics.fmean(of_seeds), min(of_seeds), max(of_seeds)
        places = [ticks.index(own)] if own else range(max(len(ticks), 1))
        found += [(x, *spread) for x in places]
    return Points(*np.array(sorted(found), float).reshape(-1, 4).T)

  def measured(setting: Setting) -> list[float]:
    return [v for outcome in finished(setting) if (v := value(outcome)) is not None]

  def of_others(setting: Setting) -> list[float]:
    return [v] if (v := known(setting)) else []

  shown = []
  for panel_value, chosen in by_value(settings, panel_flag).items():
    groups: dict[tuple[tuple[str, str], ...], list[Setting]] = {}
    for setting in chosen:
      rest = [(name, x) for name, x in setting.point.items() if name not in (flag, panel_flag)]
      groups.setdefault(tuple(rest), []).append(setting)
    own = [(dict(rest), points(members, measured)) for rest, members in groups.items()]
    others = [(dict(rest), points(members, of_others)) for rest, members in groups.items()]
    lines = lines_of(own, scale) + [
      line._replace(label="", style=":", width=1.2) for line in lines_of(others, scale)
    ]
    title = f"{panel.title}, {panel_flag} {panel_value}" if panel_value else panel.title
    shown.append(panel._replace(title=title, lines=lines, x_title=flag, x_names=ticks))
  return shown


def accuracy_against(flag: str, settings: Sequence[Setting], path: str | os.PathLike[str]) -> None:
  """Draws the accuracy at the end against the values of a flag."""
  panel = Panel("Test accuracy", "%", [])
  save(against_flag(settings, flag, ACCURACY.value, panel, scale=100), path)
