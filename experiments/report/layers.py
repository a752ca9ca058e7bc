"""The report's pictures of layers and of masks: a panel of its own for each setting."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from experiments.pictures import plots
from experiments.report.drawing import (
  SMALL_FONT_SIZE,
  Chapter,
  Key,
  Look,
  Picture,
  label_x,
  make_figure,
  name_rows,
  to_svg,
)
from experiments.report.runs import Setting

_MOST_NAMES = 28  # of layers beside an axis
_LEAST_DENSITY = 1e-3  # of the scale
_UNITS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP")
_PARTS = (  # of a layer's FLOPs: entry of flops_by_layer, name, colour
  ("forward", "forward", plots.BLUE),
  ("input_gradient", "gradient by input", "#E69F00"),
  ("weight_gradient", "gradient by weights", plots.VERMILLION),
)
_DENSE = "#D9D9D9"


class _Densities(NamedTuple):
  """Means over the seeds."""

  names: list[str]  # of layers
  rounds: np.ndarray  # f64[rounds]
  values: np.ndarray  # f64[layers, rounds]


class _Similarity(NamedTuple):
  """Means over the seeds."""

  rounds: list[int]
  values: np.ndarray  # f64[rounds, rounds]


class _Flops(NamedTuple):
  """Means over the seeds, of a client in a round."""

  names: list[str]  # of layers
  parts: np.ndarray  # f64[parts, layers]
  dense: np.ndarray  # f64[layers]

  def largest(self) -> float:
    return max(float(self.dense.max()), float(self.parts.sum(axis=0).max()))


def densities(looks: Sequence[Look]) -> Chapter:
  """Draws the density of each layer over the rounds."""
  found = [(look, table) for look in looks if (table := _read_densities(look.setting))]
  positive = [table.values[table.values > 0] for _, table in found]
  least = min((float(values.min()) for values in positive if values.size), default=1.0)
  # One scale for all, at least a decade of it.
  decade = math.floor(math.log10(min(max(least, _LEAST_DENSITY), 0.1)) + 1e-9)
  norm = LogNorm(10.0**decade, 1)
  pictures = []
  for look, table in found:
    last = zip(table.names, table.values[:, -1], strict=True)
    shares = "; ".join(f"{name} {value:.1%}" for name, value in last)
    alt = f"Densities, {_name(look)}: a heat map of layers by rounds. In the last round: {shares}."
    pictures.append(Picture(_name(look), _draw_densities(table, norm), alt, "", []))
  caption = (
    "Share of each layer’s weights that are not 0 in the global model, by round, mean over the"
    " seeds. The scale is logarithmic and the same for all settings; grey is below it."
  )
  return Chapter("Density by layer", pictures, caption)


def similarity(looks: Sequence[Look]) -> Chapter:
  """Draws how alike the global masks of any two rounds are."""
  found = [(look, table) for look in looks if (table := _read_similarity(look.setting))]
  least = min((float(np.nanmin(table.values)) for _, table in found), default=0.0)
  norm = Normalize(min(math.floor(10 * least) / 10, 0.9), 1)
  pictures = []
  for look, table in found:
    ends = f"{table.values[0, -1]:.3f}"
    alt = f"Masks, {_name(look)}: a matrix of rounds. Overlap of the first with the last: {ends}."
    pictures.append(Picture(_name(look), _draw_similarity(table, norm), alt, "", []))
  caption = (
    "Overlap (intersection over union) of the global masks of any two rounds, mean over the seeds."
    " The scale is the same for all settings."
  )
  return Chapter("Masks of different rounds", pictures, caption)


def flops(looks: Sequence[Look]) -> Chapter:
  """Draws what each layer costs a client in a round."""
  found = [(look, table) for look in looks if (table := _read_flops(look.setting))]
  largest = max((table.largest() for _, table in found), default=1.0)
  power = min(int(math.log10(max(largest, 1.0))) // 3, len(_UNITS) - 1)
  pictures = []
  for look, table in found:
    whole = zip(table.names, table.parts.sum(axis=0), table.dense, strict=True)
    shares = "; ".join(f"{name} {own / dense:.0%}" for name, own, dense in whole if dense)
    alt = f"FLOPs, {_name(look)}: a bar by layer. Shares of dense training: {shares}."
    pictures.append(Picture(_name(look), _draw_flops(table, power, largest), alt, "", []))
  caption = (
    f"Operations of a client’s training in a round, in {_UNITS[power]}, layer by layer; behind them"
    " those of dense training. The axis is the same for all settings."
  )
  keys = [Key(title, color, "") for _, title, color in _PARTS] + [Key("dense", _DENSE, "")]
  return Chapter("FLOPs by layer", pictures, caption, keys)


def _name(look: Look) -> str:
  """The whole name of a setting, as its panel stands alone."""
  return look.setting.label or look.label


def _draw_densities(table: _Densities, norm: Normalize) -> str:
  names, rounds, values = table
  count = len(names)
  colors = matplotlib.colormaps["viridis"].with_extremes(under="#D0D0D0", bad="white")
  figure, axes = make_figure(1.0 + 0.16 * min(max(count, 4), _MOST_NAMES))
  step = np.diff(rounds).min() if len(rounds) > 1 else 1.0
  edges = np.append(rounds[0] - step, rounds)  # a row stands for the rounds since the one before
  axes.pcolormesh(edges, np.arange(count + 1), values, cmap=colors, norm=norm, rasterized=True)
  _as_map(axes, count)
  every = -(-count // _MOST_NAMES)
  name_rows(axes, np.arange(0, count, every) + 0.5, names[::every])
  axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=(1, 2, 5, 10)))
  label_x(axes, "round")
  _add_scale(figure, axes, ScalarMappable(norm, colors), lambda value: f"{100 * value:g}%")
  return to_svg(figure)


def _draw_similarity(table: _Similarity, norm: Normalize) -> str:
  rounds, values = table
  count = len(rounds)
  figure, axes = make_figure(3.1)
  edges = np.arange(count + 1)
  axes.pcolormesh(edges, edges, values, cmap="viridis", norm=norm, rasterized=True)
  _as_map(axes, count)
  axes.set_aspect("equal")
  every = -(-count // 8)
  names = [f"{number:g}" for number in rounds[::every]]
  name_rows(axes, edges[:-1:every] + 0.5, names)
  axes.set_xticks(edges[:-1:every] + 0.5, names, fontsize=SMALL_FONT_SIZE)
  label_x(axes, "round")
  colors = ScalarMappable(norm, "viridis")
  _add_scale(figure, axes, colors, lambda value: f"{value:g}")
  return to_svg(figure)


def _draw_flops(table: _Flops, power: int, largest: float) -> str:
  names, scale = table.names, 1000.0**-power
  figure, axes = make_figure(0.75 + 0.19 * max(len(names), 3))
  places = np.arange(len(names))
  axes.barh(places, scale * table.dense, height=0.82, color=_DENSE)
  left = np.zeros(len(names))
  for part, (_, _, color) in zip(table.parts, _PARTS, strict=True):
    axes.barh(places, scale * part, left=scale * left, height=0.5, color=color)
    left += part
  axes.set_xlim(0, 1.03 * scale * largest)
  axes.set_ylim(len(names) - 0.4, -0.6)
  name_rows(axes, places, names)
  axes.grid(visible=False, axis="y")
  axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=(1, 2, 5, 10)))
  label_x(axes, f"{_UNITS[power]}")
  return to_svg(figure)


def _as_map(axes: Axes, count: int) -> None:
  axes.grid(visible=False)
  axes.spines[:].set_visible(False)
  axes.set_ylim(count, 0)  # the first at the top


def _add_scale(figure: Figure, axes: Axes, colors: ScalarMappable, write: Any) -> None:
  bar = figure.colorbar(colors, ax=axes, fraction=0.045, pad=0.02)
  bar.ax.spines[:].set_visible(False)
  bar.ax.tick_params(colors=plots.GREY, labelsize=SMALL_FONT_SIZE, length=2)
  bar.ax.yaxis.set_minor_locator(NullLocator())
  bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _read_densities(setting: Setting) -> _Densities | None:
  columns = []
  for run in setting.shown:
    known = {
      row.get("round", number): row["layer_density"]
      for number, row in enumerate(run.rows, start=1)
      if row.get("layer_density")
    }
    if known:
      columns.append(known)
  rounds = sorted(set.intersection(*map(set, columns))) if columns else []
  lengths = {len(column[number]) for column in columns for number in rounds}
  if len(lengths) != 1:  # none, or models that differ
    return None
  (count,) = lengths
  values = np.array([[column[number] for number in rounds] for column in columns], float)
  listed = [names for run in setting.shown if (names := run.summary.get("layers"))]
  names = next((list(map(str, names)) for names in listed if len(names) == count), None)
  named = _shorten(names) if names else [f"layer {i}" for i in range(1, count + 1)]
  return _Densities(named, np.array(rounds, float), values.mean(axis=0).T)


def _read_similarity(setting: Setting) -> _Similarity | None:
  known = [run.similarity for run in setting.shown if run.similarity.get("iou")]
  if not known:
    return None
  rounds = known[0]["rounds"]
  same = [np.array(one["iou"], float) for one in known if one["rounds"] == rounds]
  return _Similarity(rounds, np.mean(same, axis=0))


def _read_flops(setting: Setting) -> _Flops | None:
  listed = [layers for run in setting.shown if (layers := run.summary.get("flops_by_layer"))]
  if not listed:
    return None
  names = [str(layer["layer"]) for layer in listed[0]]
  same = [layers for layers in listed if [str(layer["layer"]) for layer in layers] == names]

  def mean(key: str) -> np.ndarray:
    values = [[layer.get(key) or 0.0 for layer in layers] for layers in same]
    return np.mean(np.array(values, float), axis=0)

  parts = np.stack([mean(key) for key, *_ in _PARTS])
  return _Flops(_shorten(names), parts, mean("dense_total"))


def _shorten(names: Sequence[str]) -> list[str]:
  return [name.removesuffix("/kernel") for name in names]
