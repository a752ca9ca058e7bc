"""What all pictures share: colours, lines in panels, and figures made of panels."""

import base64
import io
import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sparsyfed_jax.algorithms import METHODS, find

# Okabe and Ito's palette: its colours stay apart with every common colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1F1F1F", "#6B6B6B")
BLUE, VERMILLION, INK, GREY = PALETTE[0], PALETTE[1], PALETTE[6], PALETTE[7]
STYLES = ("-", "--", "-.", ":")  # of lines of one colour

# Decorates what draws, so that no setting of matplotlib stays changed.
styled = matplotlib.rc_context(
  {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "grid.color": "#E6E6E6",
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sparsyfed_jax",  # the same figure is the same file
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": GREY,
    "xtick.labelsize": 9,
    "ytick.color": GREY,
    "ytick.labelsize": 9,
  }
)

_STEPS = (1, 2, 5, 10)  # between two ticks
_LEGEND_ROWS = 16
_NOTE = 64  # letters in a line of a note
# Inches: of a panel, of its axes with their ticks, and of a letter of its legend.
_PANEL, _AXES, _LETTER = 6.0, 4.5, 0.078
_NARROW = 4.2  # inches, of what a telephone shows

Rows = Sequence[Mapping[str, Any]]


class Points(NamedTuple):
  """A curve over several seeds; f64[n] each."""

  x: np.ndarray
  y: np.ndarray  # means
  low: np.ndarray  # least value of any seed
  high: np.ndarray  # greatest

  def where(self, kept: np.ndarray) -> "Points":
    """Selects points; `kept` is bool[n]."""
    return Points(*(values[kept] for values in self))


NO_POINTS = Points(*[np.zeros(0)] * 4)


class Line(NamedTuple):
  """One curve."""

  x: np.ndarray  # f64[n], n > 0
  y: np.ndarray  # f64[n]
  label: str  # in the legend; "" for none
  color: str
  style: str = "-"
  width: float = 1.8
  low: np.ndarray | None = None  # f64[n], of a band around it
  high: np.ndarray | None = None


class Panel(NamedTuple):
  """What one pair of axes shows."""

  title: str
  unit: str
  lines: Sequence[Line]
  bounds: tuple[float, float] = (0, 100)  # what the quantity itself cannot leave
  log_ratio: float = math.inf  # of the largest value to the least that makes the axis logarithmic
  x_title: str = "round"
  first: float = 0.0  # where the x axis begins
  last: float = 1.0  # where it ends at the earliest
  x_log: Callable[[float], str] | None = None  # writes the ticks of a logarithmic x axis
  x_names: Sequence[str] = ()  # of x = 0, 1, ..., in place of numbers
  level: float | None = None  # of a horizontal line
  mark: float | None = None  # where a vertical line is
  note: str = ""


def method_title(name: str) -> str:
  """Writes a method as its authors do; an unknown one as given, so that no stranger's code runs."""
  return METHODS[name].title if name in METHODS else name


def label_of(point: Mapping[str, str]) -> str:
  """Names a setting that was run: by its words alone, by its numbers with their flags."""
  titled = {
    flag: find(value).title if flag == "algorithm" and value else value
    for flag, value in point.items()
  }
  return ", ".join(
    value if value[0].isalpha() else f"{flag} {value}" for flag, value in titled.items() if value
  )


def looks_of(methods: Sequence[str]) -> list[tuple[str, str]]:
  """Chooses colours and styles of lines.

  Args:
    methods: of each line. A known one has the same colour in every picture.

  Returns:
    A colour and a style for each; lines of the same hue differ in their style, up to four of them.
  """
  known = list(METHODS)
  places = [known.index(method) if method in known else i for i, method in enumerate(methods)]
  hues = [place % len(PALETTE) for place in places]
  repeats = [hues[:i].count(hue) for i, hue in enumerate(hues)]
  return [
    (_shade(PALETTE[hue], place // len(PALETTE)), STYLES[min(repeat, len(STYLES) - 1)])
    for hue, place, repeat in zip(hues, places, repeats, strict=True)
  ]


def _shade(color: str, turn: int) -> str:
  """Makes a colour lighter the second time that it is taken, and darker the third."""
  end, share = (("white", 0.45), ("black", 0.4))[turn - 1] if 0 < turn < 3 else (color, 0.0)
  mixed = (1 - share) * np.array(to_rgb(color)) + share * np.array(to_rgb(end))
  return to_hex(tuple(mixed)).upper()


def column(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads the rounds and values of a column, where it is finite; rounds may be left out."""
  pairs = [(row.get("round", number), row.get(key)) for number, row in enumerate(rows, start=1)]
  table = np.array(pairs, float).reshape(-1, 2)  # None becomes NaN
  x, y = table[np.isfinite(table).all(axis=1)].T
  return x, y


def mean_points(curves: Sequence[Mapping[Any, float]]) -> Points:
  """Averages curves, values by x, where all of them have a value."""
  x = sorted(set.intersection(*map(set, curves))) if curves else []
  if not x:
    return NO_POINTS
  y = np.array([[values[place] for place in x] for values in curves])
  return Points(np.array(x, float), y.mean(axis=0), y.min(axis=0), y.max(axis=0))


def mean_curve(runs: Sequence[Rows], key: str, x_key: str = "round") -> Points:
  """Averages a column over runs of several seeds, in the rounds that all of them have.

  Args:
    runs: their rows of metrics.jsonl.
    key: the column.
    x_key: another column, whose means are the x, of the rounds that have both.
  """
  if x_key == "round":
    return mean_points([dict(zip(*column(rows, key), strict=True)) for rows in runs])
  both = [[row for row in rows if None not in (row.get(key), row.get(x_key))] for rows in runs]
  return mean_curve(both, key)._replace(x=mean_curve(both, x_key).y)


def make_line(points: Points, label: str, look: tuple[str, str], scale: float = 1.0) -> Line:
  """Makes a line whose band is the range of the seeds."""
  x, y, low, high = points
  return Line(x, scale * y, label, *look, low=scale * low, high=scale * high)


def make_figure(panels: Sequence[Panel], columns: int, height: float = 4.4) -> Figure:
  """Draws panels with their legends beside them; `height` is that of a panel in inches."""
  longest = max((len(line.label) for panel in panels for line in panel.lines), default=0)
  legends = max(-(-len(panel.lines) // _LEGEND_ROWS) for panel in panels)
  width = max(_PANEL, _AXES + legends * (_LETTER * longest + 0.6) - 0.6)
  rows = -(-len(panels) // columns)
  figure = Figure(figsize=(columns * width, rows * height))
  for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
    draw(axes, panel, panel.lines)
    axes.set_title(_title_of(panel))
    _add_legend(axes, panel, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)
  return figure


def make_column(panels: Sequence[Panel]) -> Figure:
  """Draws panels of one scale below each other, each below its legend, for narrow screens."""
  shown = [
    panel._replace(
      title=textwrap.fill(_title_of(panel), 50),
      unit="",
      lines=[line._replace(label=textwrap.fill(line.label, 50)) for line in panel.lines],
    )
    for panel in panels
  ]
  longest = max(len(line.label) for panel in shown for line in panel.lines)
  num_columns = 2 if longest <= 24 else 1
  heights = []
  for panel in shown:
    entries = sum(1 + line.label.count("\n") for line in panel.lines)
    names = max(map(len, panel.x_names)) if _is_long(panel.x_names) else 0
    more = panel.title.count("\n") + len(textwrap.wrap(panel.note, _NOTE))  # lines
    heights.append(2.4 + 0.2 * -(-entries // num_columns) + 0.08 * names + 0.17 * more)
  figure = Figure(figsize=(_NARROW, sum(heights)))
  rows = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)
  lines = [line for panel in shown for line in panel.lines]
  for axes, panel in zip(rows.flat, shown, strict=True):
    draw(axes, panel, lines)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1), "ncols": num_columns}
    title = {"title": _title_of(panel), "alignment": "left", "title_fontproperties": {"size": 9.5}}
    _add_legend(axes, panel, fontsize=8.5, **place, **title)
  return figure


def draw(axes: Axes, panel: Panel, among: Sequence[Line]) -> None:
  """Draws a panel without title and legend; its axes have room for all the lines `among`."""
  if not panel.lines:
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, color=GREY, ha="center")
    axes.set_axis_off()
    return
  axes.grid(visible=True)
  for line in panel.lines:
    if line.low is not None and line.high is not None and np.any(line.low < line.high):
      axes.fill_between(line.x, line.low, line.high, color=line.color, alpha=0.13, linewidth=0)
    axes.plot(
      line.x,
      line.y,
      color=line.color,
      linestyle=line.style,
      linewidth=line.width,
      marker="o" if line.x.size == 1 or (line.x.size <= 25 and line.style == "-") else None,
      markersize=3.5,
      label=line.label or "_nolegend_",
      clip_on=False,
    )
  if panel.level is not None:
    axes.axhline(panel.level, color=GREY, linestyle="--", linewidth=1.2)
  if panel.mark is not None:
    axes.axvline(panel.mark, color=GREY, linestyle="--", linewidth=1.2)
  axes.set_xlabel("\n".join(filter(None, (panel.x_title, textwrap.fill(panel.note, _NOTE)))))
  _set_x(axes, panel, among)
  _set_y(axes, panel, among)


def _title_of(panel: Panel) -> str:
  return (
    f"{panel.title} ({panel.unit})" if panel.title and panel.unit else panel.title or panel.unit
  )


def _set_x(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
  if panel.x_names:
    turned = 90 if _is_long(panel.x_names) else 0
    axes.set_xticks(range(len(panel.x_names)), panel.x_names, rotation=turned)
  elif panel.x_log:
    _set_log(axes, "x", np.concatenate([line.x for line in lines]), panel.x_log)
  else:
    axes.set_xlim(panel.first, max(panel.last, *(line.x[-1] for line in lines)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=_STEPS))


def _is_long(names: Sequence[str]) -> bool:
  """Whether names do not fit side by side below an axis."""
  return len("  ".join(names)) > 50


def _set_y(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
  bands = [band for line in lines for band in (line.y, line.low, line.high) if band is not None]
  values = np.concatenate(bands)
  if np.concatenate([line.y for line in lines]).min() > 0:
    positive = values[values > 0]
    if positive.max() / positive.min() >= panel.log_ratio:
      return _set_log(axes, "y", positive, "{:g}".format)
  low, high = float(values.min()), float(values.max())
  margin = max(0.05 * (high - low), 0.02 * abs(high)) or 1.0
  axes.set_ylim(max(low - margin, panel.bounds[0]), min(high + margin, panel.bounds[1]))
  axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=_STEPS))


def _set_log(axes: Axes, name: str, values: np.ndarray, write: Callable[[float], str]) -> None:
  low, high = float(values.min()), float(values.max())
  # At least a decade, so that what is nearly flat looks so.
  margin = max(1.15, math.sqrt(10 * low / high))
  axes.set(**{f"{name}scale": "log", f"{name}lim": (low / margin, high * margin)})
  decades = math.log10(margin**2 * high / low)
  subs = (1, 2, 5) if decades < 2.5 else (1, 3) if decades < 4 else (1,)
  axis = axes.xaxis if name == "x" else axes.yaxis
  axis.set_major_locator(LogLocator(subs=subs, numticks=12))
  axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
  axis.set_minor_locator(NullLocator())


def _add_legend(axes: Axes, panel: Panel, **options: Any) -> None:
  """Lists the lines in the order of their ends, so that it is that in which the eye meets them."""
  handles, labels = axes.get_legend_handles_labels()
  ends = [line.y[-1] for line in panel.lines if line.label]
  order = sorted(range(len(ends)), key=lambda i: -ends[i])
  if order:
    options.setdefault("ncols", -(-len(order) // _LEGEND_ROWS))
    axes.legend(
      [handles[i] for i in order], [labels[i] for i in order], handlelength=2.2, **options
    )


@styled
def save(panels: Sequence[Panel], path: str | os.PathLike[str]) -> None:
  """Draws panels side by side into a PNG."""
  make_figure(panels, len(panels)).savefig(path, format="png")


@styled
def to_uri(make: Callable[..., Figure], *arguments: Any) -> str:
  """Makes a figure, and writes it as the address of an SVG that holds itself."""
  file = io.StringIO()
  nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
  make(*arguments).savefig(file, format="svg", metadata=nothing)
  text = file.getvalue()
  text = text[text.index("<svg") :]
  return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
