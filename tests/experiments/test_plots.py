"""`curves.png`: drawn from whatever a run logged, and showing it."""

import math
import warnings

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.pictures import panels, plots
from sparsyfed_jax.fed.metric import ACCURACY

SUMMARY = {
  "algorithm": "sparsyfed",
  "dataset": "digits",
  "model": "mlp",
  "test_accuracy": 0.94,
  "global_sparsity": 0.93,
  "dense_bytes": 40_000,
  "uplink_bytes_per_client_round": 3_000.0,
  "downlink_bytes_per_client_round": 4_000.0,
}


def make_rows(count=20):
  rows = []
  for i in range(1, count + 1):
    row = {
      "round": i,
      "train_loss": 2 / i,
      "train_accuracy": 1 - 0.9 / i,
      "test_loss": None,
      "test_accuracy": None,
      "global_sparsity": 0.93,
      "prunable_sparsity": 0.95,
      "target_sparsity": 0.95,
      "uplink_bytes": 3_000.0,
      "downlink_bytes": 4_000.0,
    }
    if i % 5 == 0:
      row.update(test_loss=2.5 / i, test_accuracy=1 - 1 / i)
    rows.append(row)
  return rows


def inked_quarters(path):
  """How much of each quarter of the picture, by row and column, is not white."""
  picture = imread(path)[..., :3]
  height, width = picture.shape[:2]
  dark = picture.min(axis=-1) < 0.9
  return dark[: height // 2 * 2, : width // 2 * 2].reshape(2, height // 2, 2, -1).mean(axis=(1, 3))


def colors_in(path):
  pixels = np.round(imread(path)[..., :3] * 255).astype(int) @ [1 << 16, 1 << 8, 1]
  return {f"#{pixel:06X}" for pixel in np.unique(pixels)}


def test_a_full_run_fills_all_four_panels(tmp_path):
  path = tmp_path / "curves.png"
  plots.plot_curves(make_rows(), SUMMARY, path)
  assert imread(path).shape == (1170, 1800, 4)
  assert (inked_quarters(path) > 0.01).all()
  assert {panels.BLUE, panels.VERMILLION} <= colors_in(path)


@pytest.mark.parametrize(
  ("rows", "summary"),
  [
    ([], {}),
    ([{}], SUMMARY),
    ([{"round": 1, "train_loss": math.nan}], SUMMARY),
    ([{"round": 1, "train_loss": 0.5}], dict.fromkeys(SUMMARY)),
    ([{"round": i, "train_loss": 1.0, "global_sparsity": 0.0} for i in range(3)], {}),
    ([{"round": 1, "test_loss": -1.0, "uplink_bytes": 0.0, "test_accuracy": 1.0}], {}),
    ([{"round": 1, "train_loss": 1e-9}, {"round": 2, "train_loss": 1e9}], {}),
  ],
)
def test_missing_and_odd_values_are_drawn_around(tmp_path, rows, summary):
  path = tmp_path / "curves.png"
  plots.plot_curves(rows, summary, path)
  assert inked_quarters(path).sum() > 0


def test_communication_counts_the_rounds_that_were_not_logged():
  rows = [{"round": 10, "uplink_bytes": 100.0}, {"round": 30, "uplink_bytes": 200.0}]
  panel = plots._communication(rows, {"dense_bytes": 1_000})
  uplink, dense = panel.lines
  assert panel.unit == "kB"
  np.testing.assert_allclose(uplink.y, [0.0, 1.0, 5.0])
  np.testing.assert_allclose(dense.y, [0.0, 30.0])
  assert (uplink.label, dense.label) == ("uplink 5 kB", "dense 30 kB")


def test_unevaluated_rounds_are_left_out_of_the_curve():
  test = plots._score(make_rows(), ACCURACY).lines[1]
  np.testing.assert_array_equal(test.x, [5, 10, 15, 20])
  assert test.label == "test 95.0%"


def test_heading_names_the_run_and_its_result():
  title, facts = plots._heading(make_rows(), SUMMARY)
  assert title.split("  ·  ") == ["SparsyFed", "digits", "mlp"]
  assert facts.split("   ·   ") == [
    "94.0% test accuracy",
    "93.0% of the global model is zero",
    "7.5% of the dense bytes up",
    "10.0% of the dense bytes down",
  ]


@pytest.mark.parametrize("cohorts", [(10,), (10, 100, 1000)])
def test_scaling_is_drawn_in_two_panels(tmp_path, cohorts):
  rows = [
    {
      "algorithm": algorithm,
      "clients_per_round": count,
      "seconds_per_round": 1e-3 * count,
      "peak_memory_bytes": 500_000_000,
    }
    for algorithm in ("fedavg", "sparsyfed", "mine")
    for count in cohorts
  ]
  path = tmp_path / "scaling.png"
  plots.plot_scaling(rows, path)
  assert (inked_quarters(path) > 0.002).all()
  assert panels.BLUE in colors_in(path)


def test_a_sweep_shows_the_mean_and_the_range_of_its_seeds():
  runs = [
    [{"round": i, "x": value, "bytes": 10 * i} for i, value in enumerate(values, 1)]
    for values in ([0.9, 1.0, 0.5], [0.1, 1.0, None], [0.2, 1.0, 0.5])
  ]
  points = panels.mean_curve(runs, "x")
  np.testing.assert_allclose(points, [[1, 2], [0.4, 1], [0.1, 1], [0.9, 1]])
  assert points.high.max() <= 1
  del runs[1][0]["bytes"]  # a round that is left out
  by_bytes = panels.mean_curve(runs, "x", "bytes")
  np.testing.assert_allclose(by_bytes, [[20], [1], [1], [1]])


def test_every_curve_of_a_sweep_is_in_a_legend_that_follows_their_ends(monkeypatch, tmp_path):
  drawn = []
  make = panels.make_figure
  monkeypatch.setattr(panels, "make_figure", lambda *given: drawn.append(make(*given)) or drawn[0])
  ends = {"fedavg": 0.93, "topk": 0.95, "mine": 0.94, "sparsyfed": 0.951}
  plots.plot_sweep(
    [
      plots.Curve(
        name, [[{"round": i, "test_accuracy": end, "prunable_sparsity": 0.95} for i in (1, 2)]]
      )
      for name, end in ends.items()
    ],
    tmp_path / "sweep.png",
  )
  left, right = drawn[0].axes
  legend = left.get_legend()
  said = [text.get_text() for text in legend.get_texts()]
  assert said == ["SparsyFed 95.1%", "Top-K 95.0%", "mine 94.0%", "FedAvg 93.0%"]
  colors = {line.get_label(): line.get_color() for line in left.get_lines()}
  assert [line.get_color() for line in legend.get_lines()] == [colors[label] for label in said]
  assert len({*colors.values()}) == 4 and right.get_legend() is not None


def test_a_strangers_method_is_named_by_its_record_where_it_was_run(tmp_path):
  (tmp_path / "own.py").write_text(
    "from sparsyfed_jax.algorithms.topk import METHOD as base\n"
    "METHOD = base._replace(name='mine', title='My method')\n"
  )
  name = f"{tmp_path}/own.py:METHOD"
  assert panels.label_of({"algorithm": name, "sparsity": "0.9"}) == "My method, sparsity 0.9"
  assert panels.label_of({"algorithm": "", "upload": "changes"}) == "changes"
  assert panels.method_title("topk") == "Top-K" and panels.method_title(name) == name


@panels.styled
def test_long_titles_and_notes_of_a_column_get_the_room_that_they_need():
  words = ", ".join(f"a_long_flag_{i}=value" for i in range(9))
  x = np.arange(3.0)
  line = panels.Line(x, x, "method", panels.BLUE)
  shown = [panels.Panel(words, "%", [line]), panels.Panel("", "%", [line], note=words * 3)] * 3
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # of axes that have no room left
    figure = panels.make_column(shown)
    figure.canvas.draw()
  for axes in figure.axes:
    box = axes.get_window_extent()
    assert box.height > 0.9 * figure.dpi and box.width > 3 * figure.dpi
    legend = axes.get_legend().get_window_extent()
    assert legend.width <= figure.bbox.width and legend.y0 >= box.y1 - 1
