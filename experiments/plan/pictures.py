"""The picture of a plan: memory against what a chip has, and what a round is made of."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pictures.panels import GREY, INK, PALETTE, styled
from experiments.plan.pages import MEMORY, name_of, noun_of
from experiments.terminal import BYTE_UNITS, format_bytes

_ROW = 0.5  # inches of a bar
_PANEL = 1.5  # inches of a panel without its bars
_NEAR = 0.1  # of what a chip has, from which on a line shows it
_COLORS = (*PALETTE[:6], "#B3B3B3", GREY, INK)
_NUMBERS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"), (1, ""))


@styled
def plot_plan(plan: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
  """Draws plan.png: a bar for each point, by part of the memory, and by part of a round.

  Args:
    plan: the contents of plan.json.
    path: the PNG to write.
  """
  points = [point for point in plan["points"] if "temporaries" in point["bytes"]]
  if not points:
    return
  height = 2 * (_PANEL + _ROW * len(points))
  figure = Figure(figsize=(9.5, height))
  memory, effort = figure.subplots(2, 1)
  usable = plan["usable_bytes"]
  memory.set_title(f"Memory of a round on {plan['target']}, {format_bytes(usable)} a chip usable")
  largest = max(sum(point["bytes"].values()) for point in points)
  power = min(int(math.log10(largest)) // 3, len(BYTE_UNITS) - 1)
  sizes = [[point["bytes"][key] / 1000**power for point in points] for key in MEMORY]
  _bars(memory, points, list(MEMORY.values()), sizes, f"memory, {BYTE_UNITS[power]}")
  if largest > _NEAR * usable:  # or it would leave no room for the bars
    memory.axvline(usable / 1000**power, color=INK, linestyle="--", linewidth=1.2)
  key = "cycles" if any(point["round"]["cycles"] for point in points) else "operations"
  noun, told = (
    ("cycles", ", as the compiler estimates them") if key == "cycles" else (noun_of(plan), "")
  )
  effort.set_title("A round")
  shares = [{row["name"]: row[key] for row in point["round"]["by_part"]} for point in points]
  parts = sorted({*itertools.chain(*shares)}, key=lambda part: -sum(s.get(part, 0) for s in shares))
  most = max(sum(share.values()) for share in shares)
  size, word = next(pair for pair in _NUMBERS if most >= pair[0] or not pair[1])
  values = [[share.get(part, 0) / size for share in shares] for part in parts]
  _bars(effort, points, parts, values, f"{word} {noun}{told}".lstrip())
  figure.savefig(path, format="png")


def _bars(
  axes: Axes,
  points: Sequence[Mapping[str, Any]],
  parts: Sequence[str],
  values: Sequence[Sequence[float]],
  unit: str,
) -> None:
  places = np.arange(len(points))
  left = np.zeros(len(points))
  for color, part, own in zip(_COLORS, parts, values, strict=False):
    if any(own):
      axes.barh(places, own, left=left, color=color, label=part, height=0.6)
      left = left + np.array(own)
  axes.set_yticks(places, [name_of(point) for point in points])
  axes.invert_yaxis()
  axes.set_xlabel(unit)
  axes.grid(axis="x")
  axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
