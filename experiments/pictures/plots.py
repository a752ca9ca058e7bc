"""Pictures of a run over its rounds, of a sweep, and of how a round grows with its clients."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.pictures import panels
from experiments.pictures.panels import BLUE, GREY, INK, VERMILLION, Line, Panel, Rows, styled
from experiments.run.learning import recorded_judgement
from experiments.terminal import BYTE_UNITS, format_bytes
from sparsyfed_jax.fed.metric import ACCURACY, Metric


class Curve(NamedTuple):
  """The runs of one setting over several seeds."""

  label: str
  runs: Sequence[Rows]  # the rows of metrics.jsonl of each seed
  method: str = ""  # whose colour it has; by default that of the label


@styled
def plot_curves(rows: Rows, summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
  """Draws `curves.png`.

  Args:
    rows: the rows of `metrics.jsonl`. Columns may be missing, values None or not finite.
    summary: the contents of `summary.json`. Where known, `algorithm`, `dataset` and `model` go into
      the title, and `dense_bytes`, the bytes of one dense model, is what communication is held
      against.
    path: the PNG to write.
  """
  metric = recorded_judgement(summary).main
  parts = (_score(rows, metric), _loss(rows), _sparsity(rows), _communication(rows, summary))
  last = max((line.x[-1] for panel in parts for line in panel.lines), default=1.0)
  figure = panels.make_figure([panel._replace(last=last) for panel in parts], 2, height=3.9)
  title, facts = _heading(rows, summary)
  figure.set_layout_engine("constrained", rect=(0, 0, 1, 0.89))
  figure.text(0.015, 0.945, title, fontsize=18, fontweight="bold", color=INK)
  figure.text(0.015, 0.908, facts, fontsize=11, color=GREY)
  figure.savefig(path, format="png")


def _heading(rows: Rows, summary: Mapping[str, Any]) -> tuple[str, str]:
  method = panels.method_title(summary.get("algorithm") or "Federated training")
  names = [method, summary.get("dataset"), summary.get("model")]
  title = "  ·  ".join(str(name) for name in names if name)
  facts = []
  metric = recorded_judgement(summary).main
  score = "{:.1%}" if metric.is_share else "{:.4g}"
  for key, text in (
    (f"test_{metric.name}", f"{score} test {metric.title}"),
    ("global_sparsity", "{:.1%} of the global model is zero"),
  ):
    value = summary.get(key)
    if value is None:
      _, known = panels.column(rows, key)
      value = known[-1] if known.size else None
    if value is not None:
      facts.append(text.format(value))
  for key, way in (("uplink", "up"), ("downlink", "down")):
    sent = summary.get(f"{key}_bytes_per_client_round")
    if sent and summary.get("dense_bytes"):
      facts.append(f"{sent / summary['dense_bytes']:.1%} of the dense bytes {way}")
  return title, "   ·   ".join(facts)


def _score(rows: Rows, metric: Metric) -> Panel:
  value, scale = ("{:.1f}%" if metric.is_share else "{:.3g}"), metric.factor
  lines = [
    *_line(rows, f"train_{metric.name}", f"train {value}", VERMILLION, width=1.2, scale=scale),
    *_line(rows, f"test_{metric.name}", f"test {value}", BLUE, scale=scale),
  ]
  return panel_of(metric, metric.title[0].upper() + metric.title[1:], lines)


def panel_of(metric: Metric, title: str, lines: Sequence[Line]) -> Panel:
  """Makes the panel of a metric, in percent or between its own bounds."""
  if metric.is_share:
    return Panel(title, metric.unit, lines)
  return Panel(title, metric.unit, lines, (metric.low, metric.high), 30)


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
  return Panel("Zeros in the global model", "%", lines)


def _communication(rows: Rows, summary: Mapping[str, Any]) -> Panel:
  """Sums up a client's bytes; a row stands for all the rounds since the row before."""
  lines = []
  # The second line is the thinner, so that both show where they coincide.
  for name, color, width in (("uplink", BLUE, 3.6), ("downlink", VERMILLION, 1.6)):
    x, y = panels.column(rows, f"{name}_bytes")
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
  return Panel(title, BYTE_UNITS[power], lines, (0, math.inf))


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
  x, y = panels.column(rows, key)
  return [Line(x, y * scale, label.format(y[-1] * scale), color, style, width)] if x.size else []


def plot_sweep(
  curves: Sequence[Curve], path: str | os.PathLike[str], metric: Metric = ACCURACY
) -> None:
  """Draws `sweep.png`: the metric and sparsity over the rounds, mean and range of the seeds.

  Args:
    curves: the settings to compare.
    path: the PNG to write.
    metric: what is drawn of the test set.
  """
  looks = panels.looks_of([curve.method or curve.label for curve in curves])

  def lines_of(key: str, scale: int, value: str) -> list[Line]:
    lines = []
    for curve, look in zip(curves, looks, strict=True):
      points = panels.mean_curve(curve.runs, key)
      if points.x.size:
        label = f"{panels.method_title(curve.label)} {value.format(scale * points.y[-1])}"
        lines.append(panels.make_line(points, label, look, scale))
    return lines

  value = "{:.1f}%" if metric.is_share else "{:.3g}"
  scores = lines_of(f"test_{metric.name}", metric.factor, value)
  zeros = lines_of("prunable_sparsity", 100, "{:.1f}%")
  parts = [
    panel_of(metric, f"Test {metric.title}", scores),
    Panel("Zeros among prunable weights", "%", zeros),
  ]
  panels.save(parts, path)


def plot_scaling(rows: Rows, path: str | os.PathLike[str]) -> None:
  """Draws `scaling.png`: seconds a round and peak memory against clients a round, both log-log.

  Args:
    rows: points with `algorithm`, `clients_per_round`, `seconds_per_round` and
      `peak_memory_bytes`, at least one.
    path: the PNG to write.
  """
  algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
  parts = []
  for key, title, unit, scale in (
    ("seconds_per_round", "A round", "s", 1.0),
    ("peak_memory_bytes", "Peak memory", "GB", 1e-9),
  ):
    lines = []
    for algorithm, look in zip(algorithms, panels.looks_of(algorithms), strict=True):
      own = [row for row in rows if row["algorithm"] == algorithm]
      x, y = np.array(sorted((row["clients_per_round"], row[key]) for row in own), float).T
      lines.append(Line(x, scale * y, panels.method_title(algorithm), *look))
    if key == "seconds_per_round":
      # Through the last point of the first method, where fixed costs weigh least.
      x, y = lines[0].x, lines[0].y
      lines.append(Line(x, y[-1] * x / x[-1], "linear", GREY, "--", 1.2))
    panel = Panel(title, unit, lines, (0, math.inf), 1.0)
    parts.append(panel._replace(x_title="clients a round", x_log="{:g}".format))
  panels.save(parts, path)
