"""Pictures: of a run over its rounds, of a sweep, and of how a round grows with its clients."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from experiments.terminal import BYTE_UNITS, format_bytes

# Okabe and Ito's palette: its colours stay apart with every common colour blindness.
BLUE, VERMILLION = "#0072B2", "#D55E00"
INK, GREY, GRID = "#1F1F1F", "#6B6B6B", "#E6E6E6"

NAMES = {
  "fedavg": "FedAvg",
  "feddst": "FedDST",
  "flash": "FLASH",
  "sparsyfed": "SparsyFed",
  "static": "Static mask",
  "topk": "Top-K",
  "zerofl": "ZeroFL",
}
_BOX = {"left": 0.055, "right": 0.875, "bottom": 0.07, "top": 0.84, "wspace": 0.45, "hspace": 0.38}
_STEPS = (1, 2, 5, 10)  # between two ticks
_LABEL_GAP = 0.075  # least distance of two labels, as a fraction of the panel's height

Rows = Sequence[Mapping[str, Any]]


class Line(NamedTuple):
  """One curve, labelled where it ends."""

  x: np.ndarray  # f64[n], n > 0
  y: np.ndarray  # f64[n]
  label: str  # "" for none
  color: str
  style: str
  width: float
  spread: np.ndarray | float = 0.0  # of a band around it


class Panel(NamedTuple):
  """What one pair of axes shows."""

  title: str
  unit: str
  lines: list[Line]
  bounds: tuple[float, float]  # what the quantity itself cannot leave
  log_ratio: float  # of the largest value to the least, from which the axis is logarithmic


def plot_curves(rows: Rows, summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
  """Draws `curves.png`.

  Args:
    rows: the rows of `metrics.jsonl`. Columns may be missing, values None or not finite.
    summary: the contents of `summary.json`. Where known, `algorithm`, `dataset` and `model` go into
      the title, and `dense_bytes`, the bytes of one dense model, is what communication is held
      against.
    path: the PNG to write.
  """
  figure = Figure(figsize=(12, 7.8), dpi=150, facecolor="white")
  title, subtitle = _heading(rows, summary)
  left = _BOX["left"] - 0.03
  figure.text(left, 0.945, title, fontsize=18, fontweight="bold", color=INK, va="baseline")
  figure.text(left, 0.908, subtitle, fontsize=11, color=GREY, va="baseline")
  panels = (_accuracy(rows), _loss(rows), _sparsity(rows), _communication(rows, summary))
  ends = [line.x[-1] for panel in panels for line in panel.lines]
  for axes, panel in zip(figure.subplots(2, 2, gridspec_kw=_BOX).flat, panels, strict=True):
    draw_over_rounds(axes, panel, max(ends, default=1.0))
  figure.savefig(path, format="png")


def _heading(rows: Rows, summary: Mapping[str, Any]) -> tuple[str, str]:
  algorithm = summary.get("algorithm", "Federated training")
  names = [NAMES.get(algorithm, algorithm), summary.get("dataset"), summary.get("model")]
  title = "  ·  ".join(str(name) for name in names if name)
  facts = []
  for key, text in (
    ("test_accuracy", "{:.1%} test accuracy"),
    ("global_sparsity", "{:.1%} of the global model is zero"),
  ):
    value = summary.get(key)
    if value is None:
      _, column = _column(rows, key)
      value = column[-1] if column.size else None
    if value is not None:
      facts.append(text.format(value))
  for key, way in (("uplink", "up"), ("downlink", "down")):
    sent = summary.get(f"{key}_bytes_per_client_round")
    if sent and summary.get("dense_bytes"):
      facts.append(f"{sent / summary['dense_bytes']:.1%} of the dense bytes {way}")
  return title, "   ·   ".join(facts)


def _accuracy(rows: Rows) -> Panel:
  lines = [
    *_line(rows, "train_accuracy", "train {:.1f}%", VERMILLION, width=1.2, scale=100),
    *_line(rows, "test_accuracy", "test {:.1f}%", BLUE, scale=100),
  ]
  return Panel("Accuracy", "%", lines, (0, 100), math.inf)


def _loss(rows: Rows) -> Panel:
  lines = [
    *_line(rows, "train_loss", "train {:.3g}", VERMILLION, width=1.2),
    *_line(rows, "test_loss", "test {:.3g}", BLUE),
  ]
  return Panel("Loss", "", lines, (-math.inf, math.inf), 30)


def _sparsity(rows: Rows) -> Panel:
  lines = [
    *_line(rows, "global_sparsity", "global {:.1f}%", VERMILLION, scale=100),
    *_line(rows, "prunable_sparsity", "prunable {:.1f}%", BLUE, scale=100),
    *_line(rows, "target_sparsity", "target {:.1f}%", INK, style="--", width=1.2, scale=100),
  ]
  return Panel("Zeros in the global model", "%", lines, (0, 100), math.inf)


def _communication(rows: Rows, summary: Mapping[str, Any]) -> Panel:
  """Sums up a client's bytes; a row stands for all the rounds since the row before."""
  lines = []
  # The second line is the thinner, so that both show where they coincide.
  for name, color, width in (("uplink", BLUE, 3.6), ("downlink", VERMILLION, 1.6)):
    x, y = _column(rows, f"{name}_bytes")
    if x.size:
      total = np.cumsum(y * np.diff(x, prepend=0))
      lines.append(Line(np.append(0, x), np.append(0, total), name, color, "-", width))
  dense = summary.get("dense_bytes")
  if dense and lines:
    x = np.array([0.0, max(line.x[-1] for line in lines)])
    lines.append(Line(x, dense * x, "dense", INK, "--", 1.2))
  largest = max([1.0, *(line.y[-1] for line in lines)])
  power = min(int(math.log10(largest)) // 3, len(BYTE_UNITS) - 1)
  lines = [
    line._replace(y=line.y / 1000**power, label=f"{line.label} {format_bytes(line.y[-1])}")
    for line in lines
  ]
  title = "Cumulative traffic per participating client"
  return Panel(title, BYTE_UNITS[power], lines, (0, math.inf), math.inf)


def _column(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
  """Rounds and values of a column, without the rows that have no finite value there."""
  pairs = [
    (row.get("round", index), row[key])
    for index, row in enumerate(rows, start=1)
    if row.get(key) is not None
  ]
  table = np.array(pairs, float).reshape(-1, 2)
  x, y = table[np.isfinite(table).all(axis=1)].T
  return x, y


def _line(
  rows: Rows,
  key: str,
  label: str,
  color: str,
  *,
  style: str = "-",
  width: float = 2.0,
  scale: float = 1.0,
) -> list[Line]:
  x, y = _column(rows, key)
  return [Line(x, y * scale, label.format(y[-1] * scale), color, style, width)] if x.size else []


def frame(axes: Axes, panel: Panel, x_label: str) -> None:
  """Dresses axes before anything is drawn into them."""
  axes.set_title(panel.title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=11)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(GREY)
  axes.tick_params(colors=GREY, labelsize=9.5, length=3)
  axes.grid(color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.set_xlabel(x_label, fontsize=9.5, color=GREY)
  axes.set_ylabel(panel.unit, fontsize=9.5, color=GREY, rotation=0, ha="right")
  axes.yaxis.set_label_coords(-0.02, 1.03)


def draw(axes: Axes, panel: Panel, x_label: str) -> None:
  """Draws all of a panel but the limits and ticks of its x axis."""
  frame(axes, panel, x_label)
  if not panel.lines:
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, color=GREY, ha="center")
    axes.set_axis_off()
    return

  for line in panel.lines:
    if np.any(line.spread):
      band = (line.y - line.spread, line.y + line.spread)
      axes.fill_between(line.x, *band, color=line.color, alpha=0.15, linewidth=0)
    axes.plot(
      line.x,
      line.y,
      color=line.color,
      linestyle=line.style,
      linewidth=line.width,
      marker="o" if line.x.size <= 25 and line.style == "-" else None,
      markersize=3.5,
      solid_capstyle="round",
      clip_on=False,
    )
  _set_limits(axes, panel)
  _label_ends(axes, panel.lines)


def draw_over_rounds(axes: Axes, panel: Panel, last_round: float) -> None:
  """Draws a panel whose x are rounds."""
  draw(axes, panel, "round")
  axes.set_xlim(0, max(last_round, 1))
  axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=_STEPS))


def _set_limits(axes: Axes, panel: Panel) -> None:
  ends = [(line.y - line.spread, line.y + line.spread) for line in panel.lines]
  values = np.concatenate([end for pair in ends for end in pair])
  low, high = float(values.min()), float(values.max())
  if low > 0 and high / low > panel.log_ratio:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
  else:
    margin = max(0.05 * (high - low), 0.02 * abs(high)) or 1.0
    axes.set_ylim(max(low - margin, panel.bounds[0]), min(high + margin, panel.bounds[1]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=_STEPS))


def _label_ends(axes: Axes, lines: Sequence[Line]) -> None:
  """Writes the labels to the right of the panel, at their line's end or as near as they fit."""
  to_axes = axes.transData + axes.transAxes.inverted()
  wanted = [
    (float(to_axes.transform((line.x[-1], line.y[-1]))[1]), line) for line in lines if line.label
  ]
  wanted.sort(key=lambda pair: pair[0])
  places = [place for place, _ in wanted]
  for i in range(1, len(places)):
    places[i] = max(places[i], places[i - 1] + _LABEL_GAP)
  ceiling = 1.0
  for i in reversed(range(len(places))):
    places[i] = min(places[i], ceiling)
    ceiling = places[i] - _LABEL_GAP
  for place, (_, line) in zip(places, wanted, strict=True):
    axes.text(
      1.025, place, line.label, transform=axes.transAxes, color=line.color, fontsize=10, va="center"
    )


class Curve(NamedTuple):
  """The runs of one setting over several seeds."""

  label: str
  runs: Sequence[Rows]  # the rows of metrics.jsonl of each seed


PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1F1F1F", "#6B6B6B")


def plot_sweep(curves: Sequence[Curve], path: str | os.PathLike[str]) -> None:
  """Draws `sweep.png`: test accuracy and sparsity over the rounds, mean and standard deviation.

  Args:
    curves: the settings to compare; at most as many as can be told apart have a colour of their
      own, the others repeat them dashed.
    path: the PNG to write.
  """
  figure = Figure(figsize=(12, 5.2), dpi=150, facecolor="white")
  box = {"left": 0.055, "right": 0.86, "bottom": 0.11, "top": 0.88, "wspace": 0.5}
  left, right = figure.subplots(1, 2, gridspec_kw=box)
  for axes, key, title in (
    (left, "test_accuracy", "Test accuracy"),
    (right, "prunable_sparsity", "Zeros among prunable weights"),
  ):
    lines = []
    for i, curve in enumerate(curves):
      # A method has the same colour in every picture.
      place = list(NAMES).index(curve.label) if curve.label in NAMES else i
      color = PALETTE[place % len(PALETTE)]
      style = "-" if place < len(PALETTE) else "--"
      x, mean, deviation = mean_curve(curve.runs, key)
      if not x.size:
        continue
      name = f"{NAMES.get(curve.label, curve.label)} {100 * mean[-1]:.1f}%"
      lines.append(Line(x, 100 * mean, name, color, style, 1.8, 100 * deviation))
    panel = Panel(title, "%", lines, (0, 100), math.inf)
    draw_over_rounds(axes, panel, max((line.x[-1] for line in lines), default=1))
  figure.savefig(path, format="png")


def mean_curve(runs: Sequence[Rows], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean and deviation over the runs, in the rounds that all of them have."""
  columns = [dict(zip(*_column(rows, key), strict=True)) for rows in runs]
  rounds = np.array(sorted(set.intersection(*map(set, columns)))) if columns else np.zeros(0)
  table = np.array([[column[number] for number in rounds] for column in columns])
  deviation = table.std(axis=0, ddof=1) if len(columns) > 1 else np.zeros(len(rounds))
  return rounds, table.mean(axis=0) if columns else rounds, deviation


def plot_scaling(rows: Rows, path: str | os.PathLike[str]) -> None:
  """Draws `scaling.png`: seconds a round and peak memory against clients a round, both log-log.

  Args:
    rows: points with `algorithm`, `clients_per_round`, `seconds_per_round` and
      `peak_memory_bytes`, at least one.
    path: the PNG to write.
  """
  figure = Figure(figsize=(12, 5.2), dpi=150, facecolor="white")
  box = {"left": 0.06, "right": 0.9, "bottom": 0.11, "top": 0.88, "wspace": 0.4}
  left, right = figure.subplots(1, 2, gridspec_kw=box)
  algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
  for axes, key, title, unit, scale in (
    (left, "seconds_per_round", "A round", "s", 1.0),
    (right, "peak_memory_bytes", "Peak memory", "GB", 1e-9),
  ):
    lines = []
    for i, algorithm in enumerate(algorithms):
      own = [row for row in rows if row["algorithm"] == algorithm]
      points = sorted((row["clients_per_round"], row[key]) for row in own)
      x, y = np.array(points, float).T
      place = list(NAMES).index(algorithm) if algorithm in NAMES else i
      color = PALETTE[place % len(PALETTE)]
      lines.append(Line(x, scale * y, NAMES.get(algorithm, algorithm), color, "-", 1.8))
    if key == "seconds_per_round":
      # Through the last point of the first method, where fixed costs weigh least.
      x, y = lines[0].x, lines[0].y
      lines.append(Line(x, y[-1] * x / x[-1], "linear", GREY, "--", 1.2))
    _draw_log_log(axes, Panel(title, unit, lines, (0, math.inf), 1.0))
  figure.savefig(path, format="png")


def _draw_log_log(axes: Axes, panel: Panel) -> None:
  frame(axes, panel, "clients a round")
  axes.set_xscale("log")
  axes.set_yscale("log")
  for line in panel.lines:
    marker = "o" if line.style == "-" else None
    axes.plot(
      *(line.x, line.y, line.style), color=line.color, lw=line.width, marker=marker, markersize=4
    )
  # At least a decade, so that what is nearly flat looks so.
  values = np.concatenate([line.y for line in panel.lines])
  margin = max(1.3, math.sqrt(10 * values.min() / values.max()))
  axes.set_ylim(values.min() / margin, values.max() * margin)
  for axis, subs in ((axes.xaxis, (1,)), (axes.yaxis, (1, 2, 5))):
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
  _label_ends(axes, panel.lines)
