"""The picture of a split: which classes each client has, and how many examples."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from experiments.pictures.panels import BLUE, GREY, INK, styled
from experiments.run.split import Split

_MOST_COLUMNS = 500  # of clients; more of them share a column
_MOST_ROWS = 100  # of classes; more of them share a row
_MOST_LABELS = 32
_MOST_NUMBERED = 16  # clients, each with a number of its own below it
_LONGEST_LABEL = 10
_COLORS = LinearSegmentedColormap.from_list("share", ["#FFFFFF", "#9CCBEA", BLUE, "#00304D"])
_NORM = PowerNorm(0.5, 0, 1)  # so that a hundredth can be told from nothing
_BOX = {"left": 0.09, "right": 0.9, "bottom": 0.13, "top": 0.84, "wspace": 0.03, "hspace": 0.06}


@styled
def plot_split(
  phases: Sequence[Split], classes: Sequence[Any], path: str | os.PathLike[str]
) -> None:
  """Draws `partition.png`: clients x classes, with the sizes of both, a row for each phase.

  Clients are in the order of their most frequent class. Where there are many clients or classes,
  neighbours share a column or a row.

  Args:
    phases: before and after a change of the data, or one.
    classes: the labels of the classes, as they are to be written.
    path: the PNG to write.
  """
  figure = Figure(figsize=(12, 5.4 * len(phases)), dpi=110)
  figure.set_layout_engine("none")
  rows = figure.subfigures(len(phases), 1, squeeze=False)
  for row, split in zip(rows[:, 0], phases, strict=True):
    _draw_phase(row, split, [_shortened(label) for label in classes])
  figure.savefig(path, format="png")


def _draw_phase(figure: SubFigure, split: Split, labels: Sequence[str]) -> None:
  ratios = {"width_ratios": (1, 0.12), "height_ratios": (0.16, 1)}
  (top, corner), (middle, side) = figure.subplots(2, 2, gridspec_kw=_BOX | ratios)
  corner.set_axis_off()
  counts = _sorted(split.counts)
  figure.text(0.03, 0.935, split.title, fontsize=15, fontweight="bold", color=INK)
  figure.text(0.03, 0.885, "   ·   ".join(facts_of(split)), fontsize=10.5, color=GREY)
  num_clients, num_classes = counts.shape

  columns = _merged(_merged(counts, _MOST_COLUMNS).T, _MOST_ROWS).T
  totals = columns.sum(1, keepdims=True)
  shares = np.divide(columns, totals, out=np.zeros(columns.shape), where=totals > 0)
  middle.imshow(
    shares.T,
    cmap=_COLORS,
    norm=_NORM,
    aspect="auto",
    interpolation="nearest",
    extent=(0, num_clients, num_classes, 0),
  )
  by_class = ", in the order of their most frequent class" if num_classes > 1 else ""
  middle.set_xlabel(f"clients{by_class}")
  middle.set_ylabel("class" if num_classes > 1 else "")
  middle.yaxis.set_label_coords(-0.1, 0.5)
  shown = range(0, num_classes, -(-num_classes // _MOST_LABELS))
  middle.yaxis.set_major_locator(FixedLocator([i + 0.5 for i in shown]))
  middle.set_yticklabels([labels[i] for i in shown], fontsize=9 if len(shown) <= 16 else 7)
  if num_clients <= _MOST_NUMBERED:
    middle.set_xticks(np.arange(num_clients) + 0.5, [str(i + 1) for i in range(num_clients)])
  else:
    middle.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    middle.xaxis.set_major_formatter("{x:,.0f}")

  edges = np.linspace(0, num_clients, len(columns) + 1)
  of_column = columns.sum(1) * len(columns) / num_clients
  top.stairs(of_column, edges, fill=True, color=BLUE, alpha=0.75, lw=0)
  top.set_xlim(0, num_clients)
  top.set_ylim(0, 1.05 * max(of_column.max(), 1))
  top.tick_params(labelbottom=False, bottom=False)
  top.set_ylabel("examples")
  _tick_largest(top.yaxis, of_column)

  of_class = counts.sum(0)
  ends = np.arange(num_classes + 1)
  side.stairs(of_class, ends, orientation="horizontal", fill=True, color=BLUE, alpha=0.75, lw=0)
  side.set_ylim(num_classes, 0)
  side.tick_params(labelleft=False, left=False)
  side.set_xlabel("examples")
  _tick_largest(side.xaxis, of_class)
  _draw_scale(figure)


def _draw_scale(figure: SubFigure) -> None:
  axes = figure.add_axes((0.925, 0.13, 0.013, 0.61))
  mappable = ScalarMappable(norm=_NORM, cmap=_COLORS)
  bar = figure.colorbar(mappable, cax=axes, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
  bar.outline.set_visible(False)  # type: ignore[operator]
  axes.yaxis.set_major_formatter(PercentFormatter(1))
  axes.tick_params(colors=GREY, labelsize=8.5, length=3)
  axes.set_ylabel("share of the client's examples")


def _tick_largest(axis: Axis, values: np.ndarray) -> None:
  axis.set_major_locator(FixedLocator([0, round(values.max())]))
  axis.set_major_formatter("{x:,.0f}")


def _sorted(counts: np.ndarray) -> np.ndarray:
  """Puts the clients of a most frequent class side by side, the purest first, empty ones last."""
  sizes = counts.sum(1)
  main = counts.argmax(1)
  purity = counts.max(1) / np.maximum(sizes, 1)
  return counts[np.lexsort((-purity, main, sizes == 0))]


def _merged(counts: np.ndarray, most: int) -> np.ndarray:
  """Adds up neighbouring rows where there are more than `most`."""
  if len(counts) <= most:
    return counts
  return np.add.reduceat(counts, (np.arange(most) * len(counts)) // most, axis=0)


def facts_of(split: Split) -> list[str]:
  """Describes a split in a few words each: clients, examples, sizes."""
  clients, classes = split.counts.shape
  sizes = split.counts.sum(1)
  filled = split.counts[split.counts.any(1)]
  facts = [
    f"{clients:,} client{'s' * (clients != 1)}"
    if split.every == 1
    else f"{clients:,} clients, 1 of every {split.every}",
    f"{split.counts.sum():,} examples",
    f"{sizes.min():,} to {sizes.max():,} a client",
  ]
  if len(filled) < clients:
    facts.append(f"{clients - len(filled):,} empty")
  if len(filled) and classes > 1:
    facts.append(f"{np.mean((filled > 0).sum(1)):.3g} of {classes:,} classes a client on average")
  return facts


def _shortened(label: Any) -> str:
  text = str(label)
  return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
