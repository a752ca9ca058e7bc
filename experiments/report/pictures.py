"""The report's pictures: curves over the rounds, and how the clients differ."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from experiments.pictures import plots
from experiments.report import layers
from experiments.report.drawing import (
  FONT_SIZE,
  PERCENT,
  ROUND,
  Axis,
  Chapter,
  Key,
  Look,
  Picture,
  as_they_are,
  limits_of,
  make_figure,
  set_axis,
  to_svg,
)
from experiments.report.runs import ENDED, Run, Setting, method_name

_STYLES = ("-", "--", ":", "-.")
_MOST_POINTS = 100  # of a curve, about, or a curve of many rounds is a band of noise
_MOST_LINES = 8  # in one picture, as many as there are colours


class _Line(NamedTuple):
  """A setting's curve: means over the seeds, and the standard deviation as a band."""

  x: np.ndarray  # f64[n], n > 0
  y: np.ndarray  # f64[n]
  spread: np.ndarray  # f64[n]
  block: int = 1  # rounds of which a point is the mean


class _Quantity(NamedTuple):
  """What one picture shows of all settings."""

  title: str
  caption: str
  line_of: Callable[[Setting], _Line | None]
  last: str = "{:.1f} %"  # how the legend writes the last value
  x: Axis = ROUND
  y: Axis = PERCENT
  rule: float | None = None  # where a vertical line is


def draw(settings: Sequence[Setting]) -> list[Chapter]:
  """Draws what there is data for.

  Args:
    settings: the rows of the report's table, in its order.

  Returns:
    The chapters, none of them empty.
  """
  looks = _looks(settings)
  accuracy = [_draw_curves(looks, quantity) for quantity in _ACCURACY]
  clients = [_draw_spread(looks), _draw_curves(looks, _WEAK_CLIENTS)]
  sparsity = [_draw_curves(looks, quantity) for quantity in _SPARSITY]
  masks = [_draw_curves(looks, quantity) for quantity in _MASKS]
  chapters = [
    *_gather("Accuracy", accuracy),
    *_gather("Clients", clients),
    *_gather("Sparsity and regrowth", sparsity),
    *_gather("Masks", masks),
    layers.similarity(looks),
    layers.densities(looks),
    layers.flops(looks),
  ]
  return [chapter for chapter in chapters if chapter.pictures]


def _gather(title: str, chapters: Sequence[Chapter]) -> list[Chapter]:
  """Puts quantities of one picture each under a common heading."""
  if any(picture.title for chapter in chapters for picture in chapter.pictures):
    return list(chapters)
  pictures = [
    picture._replace(title=chapter.title, caption=f"{chapter.caption} {picture.caption}".strip())
    for chapter in chapters
    for picture in chapter.pictures
  ]
  return [Chapter(title, pictures)]


def _looks(settings: Sequence[Setting]) -> list[Look]:
  """Gives a method the same colour everywhere; many settings share out among several pictures."""
  rests = list(dict.fromkeys(setting.rest for setting in settings))
  has_methods = any(setting.method for setting in settings)
  is_few = len(settings) <= _MOST_LINES and (len(rests) <= len(_STYLES) or not has_methods)
  facets = _facets(settings) if has_methods else _chunks(len(settings))
  looks = []
  for i, setting in enumerate(settings):
    algorithm = _algorithm(setting)
    is_known = has_methods and algorithm in plots.NAMES
    # As plots.plot_sweep colours them.
    place = list(plots.NAMES).index(algorithm) if is_known else i
    style = _STYLES[rests.index(setting.rest)] if is_few and has_methods else "-"
    label = setting.method if has_methods and not is_few else setting.label
    if all(run.state != ENDED for run in setting.runs):
      states = dict.fromkeys(run.state for run in setting.runs)
      label = f"{label or method_name(algorithm)} ({' and '.join(states)})"
    looks.append(
      Look(
        setting,
        plots.PALETTE[place % len(plots.PALETTE)],
        style,
        ("",) if is_few else facets[i],
        label or method_name(algorithm),
      )
    )
  return looks


def _facets(settings: Sequence[Setting]) -> list[tuple[str, ...]]:
  """Makes a picture for the methods at the same values of the other flags.

  A method that does not read some of them, as dense training no sparsity, is in several pictures.
  """

  def fits(setting: Setting, other: Setting) -> bool:
    return setting.others.items() <= other.others.items()

  whole = [
    setting
    for setting in settings
    if not any(fits(setting, other) and not fits(other, setting) for other in settings)
  ]
  return [
    tuple(dict.fromkeys(other.rest for other in whole if fits(setting, other)))
    for setting in settings
  ]


def _chunks(count: int) -> list[tuple[str, ...]]:
  """Makes a picture for as many settings as there are colours."""
  firsts = [i // _MOST_LINES * _MOST_LINES for i in range(count)]
  return [(f"settings {i + 1} to {min(i + _MOST_LINES, count)}",) for i in firsts]


def _algorithm(setting: Setting) -> str:
  return str(setting.values.get("algorithm", setting.runs[0].config.get("algorithm", "run")))


def _over_rounds(key: str, factor: float = 1.0) -> Callable[[Setting], _Line | None]:
  def line(setting: Setting) -> _Line | None:
    runs = _with(setting, key)
    longest = max((sum(_known(row, key) for row in run.rows) for run in runs), default=0)
    block = max(longest // _MOST_POINTS, 1)
    x, mean, deviation = plots.mean_curve([_in_blocks(run.rows, key, block) for run in runs], key)
    return _Line(x, factor * mean, factor * deviation, block) if x.size else None

  return line


def _in_blocks(rows: plots.Rows, key: str, size: int) -> plots.Rows:
  """Averages a column over as many rows as `size`; a block has the round of its last."""
  known = [row for row in rows if _known(row, key)]
  if size == 1:
    return known
  blocks = [known[i : i + size] for i in range(0, len(known), size)]
  return [
    {"round": block[-1].get("round"), key: statistics.fmean(row[key] for row in block)}
    for block in blocks
  ]


def _by_bytes(setting: Setting) -> _Line | None:
  keys = ("test_accuracy", "cumulative_bytes")
  # Of the rounds that have both.
  pairs = [[row for row in run.rows if _known(row, *keys)] for run in _with(setting, *keys)]
  _, y, spread = plots.mean_curve(pairs, "test_accuracy")
  _, x, _ = plots.mean_curve(pairs, "cumulative_bytes")
  kept = x > 0
  return _Line(x[kept], 100 * y[kept], 100 * spread[kept]) if kept.any() else None


def _since_shift(setting: Setting) -> _Line | None:
  shifts = [run.summary.get("shift_round") for run in setting.shown]
  line = _over_rounds("test_accuracy", 100)(setting)
  if line is None or shifts[0] is None:
    return None
  x = line.x - shifts[0]
  kept = x >= -max(x[-1], 1) / 3  # enough to see where it came from
  return line._replace(x=x[kept], y=line.y[kept], spread=line.spread[kept])


def _with(setting: Setting, *keys: str) -> list[Run]:
  """The runs that have all columns in some row."""
  return [run for run in setting.shown if any(_known(row, *keys) for row in run.rows)]


def _known(row: Mapping[str, Any], *keys: str) -> bool:
  return all(row.get(key) is not None for key in keys)


_ACCURACY = (
  _Quantity(
    "Test accuracy",
    "Accuracy on the test set, in %, after each evaluated round.",
    _over_rounds("test_accuracy", 100),
  ),
  _Quantity(
    "Accuracy for its traffic",
    "Accuracy on the test set, in %, against what all clients have sent and received so far, on a"
    " logarithmic axis. Further left is cheaper.",
    _by_bytes,
    x=Axis("bytes, all clients, both ways", is_log=True, is_bytes=True),
  ),
  _Quantity(
    "Recovery from the shift",
    "Accuracy on the test set, in %, around the round after which the clients’ data is another (the"
    " vertical line).",
    _since_shift,
    x=Axis("rounds since the shift", is_whole=True),
    rule=0.0,
  ),
)
_WEAK_CLIENTS = _Quantity(
  "Accuracy of the weakest clients",
  "Accuracy of the global model, in %, that a tenth of the clients do not reach on test examples of"
  " their own.",
  _over_rounds("client_accuracy_p10", 100),
)
_SPARSITY = (
  _Quantity(
    "Sparsity of the global model",
    "Zeros among the prunable weights of the global model, in %, after each round.",
    _over_rounds("prunable_sparsity", 100),
  ),
  _Quantity(
    "Client regrowth",
    "Weights that were 0 in what a client received and are not in what it sends, in % of the"
    " prunable ones, mean over the clients of a round. Logarithmic axis; rounds at 0 are"
    " left out.",
    _over_rounds("client_regrowth", 100),
    "{:.2g} %",
    y=Axis("%", 0, 100, is_log=True),
  ),
  _Quantity(
    "Server regrowth",
    "Weights of the global model that were 0 before a round and are not after it, in % of the"
    " prunable ones. Logarithmic axis; rounds at 0 are left out.",
    _over_rounds("server_regrowth", 100),
    "{:.2g} %",
    y=Axis("%", 0, 100, is_log=True),
  ),
)
_MASKS = (
  _Quantity(
    "Global mask, round to round",
    "Overlap (intersection over union) of the global model’s mask with that of the round before: 1"
    " is a mask that stays.",
    _over_rounds("mask_iou"),
    "{:.3f}",
    y=Axis("IoU", 0, 1),
  ),
  _Quantity(
    "Clients’ masks among each other",
    "Mean overlap (intersection over union) of the masks of two clients’ uploads in the same round:"
    " 1 is the same mask for all.",
    _over_rounds("client_mask_iou"),
    "{:.3f}",
    y=Axis("IoU", 0, 1),
  ),
)


def _draw_curves(looks: Sequence[Look], quantity: _Quantity) -> Chapter:
  """Draws a quantity in as many pictures as there are facets."""
  title, caption, line_of, last, x, y, rule = quantity
  found = [(look, line) for look in looks if (line := line_of(look.setting)) is not None]
  drawn = [(look, line) for look, line in found if not y.is_log or (line.y > 0).any()]
  if not drawn:
    return Chapter(title, [])
  lines = [line for _, line in drawn]
  if any(line.spread.any() for line in lines):
    caption += " Lines are means over the seeds, bands one standard deviation."
  block = max(line.block for line in lines)
  if block > 1:
    caption += f" A point is the mean of {block} rounds."
  # Pictures beside each other are to be compared.
  x_limits = limits_of([line.x for line in lines], x)
  if y.is_log:
    y_limits = limits_of([line.y[line.y > 0] for line in lines], y)
  else:
    y_limits = limits_of([line.y + sign * line.spread for line in lines for sign in (-1, 1)], y)
  pictures = []
  for facet in dict.fromkeys(facet for look, _ in drawn for facet in look.facets):
    own = [(look, line) for look, line in drawn if facet in look.facets]
    figure, axes = make_figure(2.55)
    for look, line in own:
      _draw_line(axes, look, _positive(line) if y.is_log else line, y_limits)
    if rule is not None:
      axes.axvline(rule, color=plots.INK, linewidth=0.9, linestyle="--")
    set_axis(axes, "x", x, x_limits)
    set_axis(axes, "y", y, y_limits)
    keys = [
      Key(f"{look.label} {last.format(line.y[-1])}", look.color, look.style) for look, line in own
    ]
    ends = "; ".join(key.label for key in keys)
    alt = f"{', '.join(filter(None, (title, facet)))}: curves by {x.title}. Last values: {ends}."
    hidden = [look for look, line in found if y.is_log and not (line.y > 0).any()]
    zero = [look.label for look in hidden if facet in look.facets]
    note = f"0 in every round: {', '.join(zero)}." if zero else ""
    pictures.append(Picture(facet, to_svg(figure), alt, note, keys))
  return Chapter(title, pictures, caption)


def _positive(line: _Line) -> _Line:
  kept = line.y > 0
  return line._replace(x=line.x[kept], y=line.y[kept], spread=line.spread[kept])


def _draw_line(axes: Axes, look: Look, line: _Line, limits: tuple[float, float]) -> None:
  axes.plot(
    line.x,
    line.y,
    color=look.color,
    linestyle=look.style,
    linewidth=1.5,
    marker="o" if line.x.size <= 25 else None,
    markersize=2.6,
    solid_capstyle="round",
    clip_on=False,
  )
  if line.spread.any():
    low, high = (np.clip(line.y + sign * line.spread, *limits) for sign in (-1, 1))
    axes.fill_between(line.x, low, high, color=look.color, alpha=0.15, linewidth=0)


def _draw_spread(looks: Sequence[Look]) -> Chapter:
  title = "Spread over the clients"

  def values_of(look: Look) -> list[float]:
    listed = [run.summary.get("client_accuracies") or [] for run in look.setting.shown]
    return [100 * value for value in itertools.chain(*listed) if value is not None]

  known = [(look, values) for look in looks if (values := values_of(look))]
  pictures = []
  limits = limits_of([np.array(values) for _, values in known], PERCENT) if known else (0.0, 0.0)
  for facet in dict.fromkeys(facet for look, _ in known for facet in look.facets):
    own = [(look, values) for look, values in known if facet in look.facets]
    figure, axes = make_figure(0.7 + 0.5 * len(own))
    for place, (look, values) in enumerate(own):
      ink = {"color": look.color, "linewidth": 1.2}
      axes.boxplot(
        [values],
        orientation="horizontal",
        positions=[place],
        widths=0.34,
        whis=(5, 95),
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": look.color + "33", "edgecolor": look.color, "linewidth": 1.2},
        medianprops=ink | {"linewidth": 2.4},
        whiskerprops=ink,
        capprops=ink,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": look.color},
      )
      axes.text(limits[0], place - 0.3, look.label, va="bottom", fontsize=FONT_SIZE)
    axes.set_ylim(len(own) - 0.6, -0.85)
    as_they_are(axes.texts)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    set_axis(axes, "x", PERCENT._replace(title="accuracy of a client, %"), limits)
    medians = "; ".join(f"{look.label} {np.median(values):.1f} %" for look, values in own)
    alt = f"{title}: a box by setting. Medians: {medians}."
    pictures.append(Picture(facet, to_svg(figure), alt, "", []))
  caption = (
    "Accuracy of the final global model, in %, on the test examples of each client, clients of all"
    " seeds together: median, quartiles, whiskers from the 5th to the 95th percentile, dots beyond."
  )
  return Chapter(title, pictures, caption)
