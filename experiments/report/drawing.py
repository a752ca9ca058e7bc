"""How the report's pictures are drawn: small, because a telephone shows them as they are."""

import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.pictures import plots
from experiments.report.runs import Setting
from experiments.terminal import format_bytes

FONT_SIZE, SMALL_FONT_SIZE = 8.5, 7.5
_WIDTH = 3.9  # inches
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^")]+)')


class Key(NamedTuple):
  """An entry of a picture's legend."""

  label: str
  color: str
  style: str  # of a line, or "" for an area


class Picture(NamedTuple):
  """One figure of the page."""

  title: str
  svg: str
  alt: str
  caption: str
  keys: list[Key]


class Chapter(NamedTuple):
  """Pictures under one heading."""

  title: str
  pictures: list[Picture]
  caption: str = ""  # of all of them, which are small and have none of their own
  keys: Sequence[Key] = ()


class Look(NamedTuple):
  """How a setting is drawn, and in which of the pictures that show the same quantity."""

  setting: Setting
  color: str
  style: str
  facets: tuple[str, ...]  # titles of those pictures; ("",) where there is one
  label: str  # in them


class Axis(NamedTuple):
  """A quantity along an axis."""

  title: str
  low: float = -math.inf  # what it cannot leave
  high: float = math.inf
  is_log: bool = False
  is_bytes: bool = False
  is_whole: bool = False


ROUND = Axis("round", low=0, is_whole=True)
PERCENT = Axis("%", 0, 100)


def limits_of(columns: Sequence[np.ndarray], axis: Axis) -> tuple[float, float]:
  """Finds the ends of an axis that shows all the values."""
  values = np.concatenate(columns)
  low, high = float(values.min()), float(values.max())
  if axis.is_log:
    # At least a decade, so that there are ticks to read.
    margin = max(1.15, math.sqrt(10 * low / high))
    return low / margin, min(high * margin, axis.high)
  if axis.is_whole:
    low = min(low, axis.low) if math.isfinite(axis.low) else low
    return low, max(high, low + 1)
  margin = max(0.05 * (high - low), 0.02 * abs(high)) or 0.05
  return max(low - margin, axis.low), min(high + margin, axis.high)


def make_figure(height: float) -> tuple[Figure, Axes]:
  """Makes a figure of one pair of axes; `height` in inches."""
  figure = Figure(
    figsize=(_WIDTH, height), dpi=200, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
  )
  figure.set_facecolor("none")  # the page's card is white
  axes = figure.subplots()
  axes.set_facecolor("none")
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(plots.GREY)
  axes.tick_params(colors=plots.GREY, labelsize=FONT_SIZE, length=2.5)
  axes.grid(color=plots.GRID, linewidth=0.7)
  axes.set_axisbelow(True)
  return figure, axes


def set_axis(axes: Axes, name: str, axis: Axis, limits: tuple[float, float]) -> None:
  """Sets scale, ticks, limits and title of the x or the y axis."""
  target = axes.xaxis if name == "x" else axes.yaxis
  if axis.is_log:
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    decades = math.log10(limits[1] / limits[0])
    subs = (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3 else (1,)
    target.set_major_locator(LogLocator(subs=subs, numticks=12))
    target.set_minor_locator(NullLocator())
    write = format_bytes if axis.is_bytes else "{:g}".format
    target.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
  else:
    target.set_major_locator(MaxNLocator(integer=axis.is_whole, nbins=6, steps=(1, 2, 5, 10)))
  (axes.set_xlim if name == "x" else axes.set_ylim)(*limits)
  if name == "x":
    label_x(axes, axis.title)
  else:
    axes.set_title(axis.title, color=plots.GREY, fontsize=FONT_SIZE, loc="left", x=-0.02, pad=5)


def label_x(axes: Axes, text: str) -> None:
  """Writes what the x axis is."""
  axes.set_xlabel(text, color=plots.GREY, fontsize=FONT_SIZE)


def name_rows(axes: Axes, places: Sequence[float] | np.ndarray, names: Sequence[str]) -> None:
  """Writes names beside the y axis."""
  axes.set_yticks(places, names, fontsize=SMALL_FONT_SIZE)
  as_they_are(axes.get_yticklabels())


def as_they_are(texts: Iterable[Text]) -> None:
  """Keeps a dollar sign in a name from being read as mathematics."""
  for text in texts:
    text.set_parse_math(False)


def to_svg(figure: Figure) -> str:
  """Writes a figure as part of a page, in the page's font."""
  file = io.StringIO()
  # Text stays text, and the same figure is the same file.
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
    figure.savefig(file, format="svg", metadata={"Date": None})
  text = file.getvalue()
  text = text[text.index("<svg") :]
  for block in ("metadata", "style"):
    text = re.sub(rf"<{block}\b.*?</{block}>", "", text, flags=re.DOTALL)
  text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
  text = re.sub(r"<[^>]*>", _shorten_tag, text)
  used = set(_REFERENCE.findall(text))
  text = _ID.sub(lambda found: found[0] if found[1] in used else "", text)
  text = re.sub(r"<g>\s*</g>", "", text)
  return re.sub(r">\s+<", "><", text).strip()


def rename_ids(svg: str, prefix: str) -> str:
  """Keeps a picture's clips and markers apart from those of the page's other pictures."""
  svg = _REFERENCE.sub(lambda found: found[0].replace("#", f"#{prefix}"), svg)
  return _ID.sub(rf' id="{prefix}\1"', svg)


def _shorten_tag(match: re.Match[str]) -> str:
  # An image's scale is in its tag, and is to be exact.
  tag = match[0] if match[0].startswith("<image") else re.sub(r"(\.\d\d)\d+", r"\1", match[0])
  tag = re.sub(r"font-family: [^;]*; |( version| xmlns(:xlink)?)=\"[^\"]*\"", "", tag)
  tag = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", tag)
  return re.sub(r"\s+", " ", tag)
