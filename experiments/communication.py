"""What is sent, counted in real bytes, and the accuracy that it buys, by method.

`python -m experiments.communication --dataset=npz:cifar10.npz --output_dir=runs/bytes`, or --smoke.
See experiments/studies/study.py for what the studies have in common.

Bytes include the positions of the values. SparsyFed also runs with values of two bytes.
"""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from experiments.pictures.plots import GREY, Panel
from experiments.pictures.plots import draw as draw_panel
from experiments.studies import pictures
from experiments.studies.study import (
  ACCURACY,
  METHODS,
  SEEDS,
  Column,
  Outcome,
  Setting,
  Study,
  run,
  table_of,
)
from experiments.sweeps.results import decimals
from experiments.terminal import format_bytes


def share_of_dense(outcome: Outcome) -> float | None:
  """Divides what a client sends and receives in a round by two dense models."""
  names = ("uplink_bytes_per_client_round", "downlink_bytes_per_client_round", "dense_bytes")
  up, down, dense = (outcome.summary.get(name) for name in names)
  return None if up is None or down is None or not dense else (up + down) / (2 * dense)


def report(settings: Sequence[Setting]) -> str:
  def read(title: str, name: str, lacking: str = "not measured") -> Column:
    return Column(title, lambda outcome: outcome.summary.get(name), format_bytes, lacking)

  target = settings[0].outcomes[0].config.target_accuracy
  columns = (
    read("up, a client and round", "uplink_bytes_per_client_round"),
    read("down", "downlink_bytes_per_client_round"),
    Column("of dense, %", share_of_dense, decimals(100, 2)),
    read("all clients and rounds", "total_bytes"),
    read(f"until {100 * target:g} % accuracy", "bytes_to_target", "never"),
    ACCURACY,
  )
  return "Bytes on the wire\n\n" + table_of(settings, columns)


def _points(setting: Setting) -> pictures.Points:
  rounds, accuracy, spread = pictures.mean_of(setting, "test_accuracy")
  all_rounds, sent, _ = pictures.mean_of(setting, "cumulative_bytes")
  is_known = np.isin(rounds, all_rounds)
  return sent[np.isin(all_rounds, rounds)], accuracy[is_known], spread[is_known]


def draw(settings: Sequence[Setting], path: pathlib.Path) -> None:
  lines = pictures.lines_of([(setting.point, _points(setting)) for setting in settings], 100)
  target = settings[0].outcomes[0].config.target_accuracy

  def draw_lines(axes: Axes, panel: Panel) -> None:
    draw_panel(axes, panel, "bytes sent so far, both ways, all clients")
    if not panel.lines:
      return
    axes.axhline(100 * target, color=GREY, linestyle="--", linewidth=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.xaxis.set_minor_locator(NullLocator())

  panel = Panel("Test accuracy", "%", lines, (0, 100), math.inf)
  pictures.save([pictures.View(panel, draw_lines)], path)


_COMMON = ("--sparsity=0.95", "--target_accuracy=0.75", SEEDS)

STUDY = Study(
  "communication",
  blocks=(
    (*_COMMON, METHODS, "--wire_dtype=float32"),
    (*_COMMON, "--preset=studies/ours", "--wire_dtype=bfloat16"),
  ),
  smoke=("--preset=studies/communication-smoke", "--seed=0,1"),
  report=report,
  draw=draw,
)

if __name__ == "__main__":
  run(STUDY)
