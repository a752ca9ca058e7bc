"""The report's pictures: curves over the rounds, the clients and the layers."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.pictures import panels
from experiments.pictures.panels import PALETTE, STYLES, Panel, Points, to_uri
from experiments.report.runs import ENDED, OTHER_METRICS, Run, Setting
from experiments.run.mask_files import iou_by_distance
from experiments.terminal import format_bytes

_MOST_POINTS = 100  # of a curve, about, or a curve of many rounds is a band of noise
_PARTS = ("forward", "input_gradient", "weight_gradient")  # of the FLOPs of a layer


class Picture(NamedTuple):
  """One figure of the page."""

  title: str
  caption: str
  alt: str
  uri: str


class Look(NamedTuple):
  """How a setting is drawn, and in which of the panels that show the same quantity."""

  setting: Setting
  label: str
  color: str
  style: str
  facets: tuple[str, ...]  # titles of those panels; ("",) where there is one


class _Quantity(NamedTuple):
  """What one picture shows of all settings."""

  title: str
  points_of: Callable[[Setting], Points]
  caption: str
  panel: Panel = Panel("", "%", [])
  last: str = "{:.1f} %"  # how the legend writes the last value, if at all


def draw(settings: Sequence[Setting]) -> list[Picture]:
  """Draws what there is data for; `settings` are the rows of the report's table, in its order."""
  looks = looks_of(settings)
  quantities = [*_QUANTITIES, *_of_layers(settings)]
  pictures = [_draw_curves(looks, quantity) for quantity in quantities]
  return [picture for picture in pictures if picture is not None]


def looks_of(settings: Sequence[Setting]) -> list[Look]:
  """Gives a method the same colour everywhere; many settings of methods share out among panels."""
  methods = [str(s.values.get("algorithm", s.runs[0].config.get("algorithm"))) for s in settings]
  has_methods = any(setting.method for setting in settings)
  most = max(Counter(methods).values(), default=0)
  is_divided = has_methods and (len(settings) > len(PALETTE) or most > len(STYLES))
  looks = []
  found = panels.looks_of(methods if has_methods else [""] * len(settings))
  for setting, method, (color, style) in zip(settings, methods, found, strict=True):
    label = (setting.method if is_divided else setting.label) or panels.method_title(method)
    if all(run.state != ENDED for run in setting.runs):
      label += f" ({' and '.join(dict.fromkeys(run.state for run in setting.runs))})"
    facets = _facets(setting, settings) if is_divided else ("",)
    looks.append(Look(setting, label, color, "-" if is_divided else style, facets))
  return looks


def _facets(setting: Setting, settings: Sequence[Setting]) -> tuple[str, ...]:
  """Names the panels of a setting, one for the methods at the same values of the other flags.

  A method that does not read some of them, as dense training no sparsity, is in several panels.
  """
  fitting = [other for other in settings if setting.others.items() <= other.others.items()]
  most = [
    one
    for one in fitting
    if not any(one.others.items() < other.others.items() for other in fitting)
  ]
  return tuple(dict.fromkeys(one.rest for one in most))


def _known(row: Mapping[str, Any], *keys: str) -> bool:
  return all(row.get(key) is not None for key in keys)


def _with(setting: Setting, *keys: str) -> list[Run]:
  """The runs that have all columns in some row."""
  return [run for run in setting.shown if any(_known(row, *keys) for row in run.rows)]


def _over_rounds(key: str) -> Callable[[Setting], Points]:
  def points(setting: Setting) -> Points:
    runs = _with(setting, key)
    longest = max((sum(_known(row, key) for row in run.rows) for run in runs), default=0)
    size = max(longest // _MOST_POINTS, 1)
    return panels.mean_curve([in_blocks(run.rows, key, size) for run in runs], key)

  return points


def in_blocks(rows: panels.Rows, key: str, size: int) -> panels.Rows:
  """Averages a column over as many rows as `size`; a block has the round of its last."""
  known = [row for row in rows if _known(row, key)]
  if size == 1:
    return known
  blocks = [known[i : i + size] for i in range(0, len(known), size)]
  return [
    {"round": block[-1].get("round"), key: statistics.fmean(row[key] for row in block)}
    for block in blocks
  ]


def _by_bytes(setting: Setting) -> Points:
  keys = ("test_accuracy", "cumulative_bytes")
  points = panels.mean_curve([run.rows for run in _with(setting, *keys)], *keys)
  return points.where(points.x > 0)


def _since_shift(setting: Setting) -> Points:
  points = _over_rounds("test_accuracy")(setting)
  shift = setting.shown[0].summary.get("shift_round")
  if shift is None or not points.x.size:
    return points.where(points.x < 0)
  points = points._replace(x=points.x - shift)
  return points.where(points.x >= -max(points.x[-1], 1) / 3)  # enough to see where it came from


def _by_client(setting: Setting) -> Points:
  listed = [run.summary.get("client_accuracies") or [] for run in setting.shown]
  known = [value for value in itertools.chain(*listed) if value is not None]
  if not known:
    return panels.NO_POINTS
  x = np.linspace(0, 100, min(len(known), _MOST_POINTS + 1))
  return Points(x, *[np.percentile(known, x)] * 3)


def _by_distance(setting: Setting) -> Points:
  runs = [iou_by_distance(run.similarity) for run in setting.shown if run.similarity.get("iou")]
  return panels.mean_points(runs)


_BYTES = Panel("", "%", [], x_title="bytes, all clients, both ways", x_log=format_bytes)
_SHIFT = Panel("", "%", [], x_title="rounds since the shift", mark=0)
_CLIENTS = Panel("", "%", [], x_title="clients, from the weakest, %")
_RARE = Panel("", "%", [], log_ratio=0), "{:.2g} %"
_IOU = Panel("", "IoU", [], (0, 1)), "{:.3f}"
_APART = _IOU[0]._replace(x_title="rounds apart"), "{:.3f}"
_QUANTITIES = (
  _Quantity("Test accuracy", _over_rounds("test_accuracy"), "After each evaluated round."),
  *(
    _Quantity(
      f"Test {m.title}",
      _over_rounds(f"test_{m.name}"),
      "After each evaluated round.",
      Panel("", m.unit, [], (0, 100) if m.is_share else (m.low, m.high)),
      "{:.1f} %" if m.is_share else "{:.3g}",
    )
    for m in OTHER_METRICS
  ),
  _Quantity(
    "Accuracy for its traffic",
    _by_bytes,
    "Test accuracy against what all clients have sent and received: further left is cheaper.",
    _BYTES,
  ),
  _Quantity(
    "Recovery from the shift",
    _since_shift,
    "Test accuracy around the round after which the clients’ data is another.",
    _SHIFT,
  ),
  _Quantity(
    "Accuracy of the weakest clients",
    _over_rounds("client_accuracy_p10"),
    "Accuracy that a tenth of the clients do not reach on test examples of their own.",
  ),
  _Quantity(
    "Spread over the clients",
    _by_client,
    "Accuracy of the final model on each client’s test examples, clients of all seeds together.",
    _CLIENTS,
    "",
  ),
  _Quantity(
    "Sparsity of the global model",
    _over_rounds("prunable_sparsity"),
    "Zeros among the prunable weights after each round.",
  ),
  _Quantity(
    "Client regrowth",
    _over_rounds("client_regrowth"),
    "Prunable weights that are 0 in a download and not in the upload; rounds at 0 are left out.",
    *_RARE,
  ),
  _Quantity(
    "Server regrowth",
    _over_rounds("server_regrowth"),
    "Prunable weights that are 0 before a round and not after it; rounds at 0 are left out.",
    *_RARE,
  ),
  _Quantity(
    "Global mask, round to round",
    _over_rounds("mask_iou"),
    "Overlap (intersection over union) with the mask of the round before: 1 is a mask that stays.",
    *_IOU,
  ),
  _Quantity(
    "Clients’ masks among each other",
    _over_rounds("client_mask_iou"),
    "Mean overlap of the masks of two uploads of a round: 1 is the same mask for all.",
    *_IOU,
  ),
  _Quantity(
    "Masks of different rounds",
    _by_distance,
    "Mean overlap of the global masks of two rounds, by how far they are apart.",
    *_APART,
  ),
)


def _of_layers(settings: Sequence[Setting]) -> tuple[_Quantity, _Quantity]:
  """Makes what is shown of each layer; layers of all settings share an axis."""
  runs = [run for setting in settings for run in setting.shown]
  names = list(dict.fromkeys(name for run in runs for name in (*_density_of(run), *_flops_of(run))))
  panel = Panel("", "%", [], x_title="", x_names=names)

  def points_of(values_of: Callable[[Run], dict[str, float]]) -> Callable[[Setting], Points]:
    def points(setting: Setting) -> Points:
      found = [values for run in setting.shown if (values := values_of(run))]
      return panels.mean_points([{names.index(x): y for x, y in one.items()} for one in found])

    return points

  shares = panel._replace(bounds=(0, math.inf))
  density = "Share of a layer’s weights that are not 0 in the global model after the last round."
  flops = "Operations of a client’s training in a round, in % of those of dense training."
  return (
    _Quantity(
      "Density by layer", points_of(_density_of), density, panel._replace(log_ratio=10), ""
    ),
    _Quantity("FLOPs by layer", points_of(_flops_of), flops, shares, ""),
  )


def _density_of(run: Run) -> dict[str, float]:
  found = [row["layer_density"] for row in run.rows if row.get("layer_density")]
  names = run.summary.get("layers") or []
  if not found:
    return {}
  if len(names) != len(found[-1]):
    names = [f"layer {i}" for i in range(1, len(found[-1]) + 1)]
  pairs = zip(names, found[-1], strict=True)
  return {_short(name): value for name, value in pairs if value is not None}


def _flops_of(run: Run) -> dict[str, float]:
  return {
    _short(layer["layer"]): sum(layer.get(part) or 0.0 for part in _PARTS) / layer["dense_total"]
    for layer in run.summary.get("flops_by_layer") or []
    if layer.get("dense_total")
  }


def _short(name: Any) -> str:
  return str(name).removesuffix("/kernel")


def _draw_curves(looks: Sequence[Look], quantity: _Quantity) -> Picture | None:
  """Draws a quantity in as many panels as there are facets."""
  title, points_of, caption, panel, last = quantity
  scale = 100 if panel.unit == "%" else 1
  lines: dict[str, list[panels.Line]] = {}
  zeros: dict[str, list[str]] = {}
  for look in looks:
    points = points_of(look.setting)
    kept = points if panel.log_ratio else points.where(points.y > 0)
    for facet in look.facets if points.x.size else ():
      if not kept.x.size:
        zeros.setdefault(facet, []).append(look.label)
        continue
      label = f"{look.label} {last.format(scale * kept.y[-1])}".rstrip()
      line = panels.make_line(kept, label, (look.color, look.style), scale)
      lines.setdefault(facet, []).append(line)
  if not lines:
    return None
  first = min(line.x[0] for own in lines.values() for line in own)
  shown = [
    panel._replace(
      title=facet,
      lines=own,
      first=min(first, 0),
      note=f"0 in every round: {', '.join(zeros[facet])}" if facet in zeros else "",
    )
    for facet, own in lines.items()
  ]
  ends = "; ".join(
    f"{facet}: {line.label}".removeprefix(": ") for facet, own in lines.items() for line in own
  )
  alt = f"{title}: curves by {panel.x_title or 'layer'}. {'Last values: ' * bool(last)}{ends}."
  return Picture(title, caption, alt, to_uri(panels.make_column, shown))
