"""The tables and pictures of the paper: their runs, and what is made of rows written by hand."""

import importlib
import json
import math
import statistics
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import (
  communication,
  consensus,
  flags,
  regrowth,
  sweep,
  table1,
)
from experiments.run.measures import final_accuracy
from experiments.studies import pictures, study
from experiments.sweeps import grid, results
from sparsyfed_jax.io.writers import read_metrics

NAMES = (
  "table1",
  "ablation_reparam",
  "ablation_activation",
  "ablation_fedfade",
  "beta_sweep",
  "communication",
  "virtual_time",
  "regrowth",
  "consensus",
  "adaptivity",
)
STUDIES = [importlib.import_module(f"experiments.{name}").STUDY for name in NAMES]
by_name = pytest.mark.parametrize("made", STUDIES, ids=NAMES)
LAST = 14  # rounds


def make_rows(seed, count=LAST):
  rng = np.random.default_rng(seed)
  return [
    {
      "round": i,
      "test_accuracy": rng.uniform(0.5, 1) if i % 2 == 0 else None,
      "prunable_sparsity": 0.9,
      "client_regrowth": 1e-3 * rng.uniform(),
      "server_regrowth": 0.0,
      "cumulative_bytes": 1000 * i,
      "virtual_seconds": 2.5 * i,
      "mask_iou": 0.9,
      "client_mask_iou": 0.8 if i % 2 == 0 else None,
      "client_accuracy_p10": rng.uniform() if i % 2 == 0 else None,
    }
    for i in range(1, count + 1)
  ]


def write_runs(runs, directory, diverged=()):
  """Writes what runs leave; returns the rows by place."""
  written = {}
  for i, run in enumerate(runs):
    place = grid.place_of(run, directory)
    place.mkdir()
    rows = make_rows(i)
    summary = {
      "test_accuracy": rows[-1]["test_accuracy"],
      "uplink_bytes_per_client_round": 100.0,
      "downlink_bytes_per_client_round": 300.0,
      "dense_bytes": 1000,
      "total_bytes": 14_000,
      "bytes_to_target": 4_000 if i % 2 else None,
    }
    summary = {"diverged": "round 3"} if i in diverged else summary
    (place / "summary.json").write_text(json.dumps(summary))
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {"rounds": [2, 4, 8], "iou": [[1, 0.9, 0.5], [0.9, 1, 0.7], [0.5, 0.7, 1]]}
    (place / "mask_similarity.json").write_text(json.dumps(table))
    written[place] = rows
  return written


def cells_of(table):
  """Reads the rows of a Markdown table, head first."""
  lines = [line for line in table.splitlines() if line.startswith("|")]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


@by_name
@pytest.mark.parametrize("arguments", [["--smoke"], []], ids=["smoke", "full"])
def test_runs_are_distinct_and_have_directories_of_their_own(tmp_path, made, arguments):
  grids, runs = study.read(made, arguments)
  assert len(grids) == len(made.blocks)
  assert len({run.config for run in runs}) == len(runs)
  assert len({grid.place_of(run, tmp_path) for run in runs}) == len(runs)
  assert len({tuple(run.point) for run in runs}) == 1
  seeds = {run.config.seed for run in runs}
  assert len(seeds) >= 2
  for run in runs:
    assert (run.config.dataset == "digits") == bool(arguments)
    for name, value in run.point.items():
      if value and value[0].isdigit():
        assert float(value) == getattr(run.config, name)


@by_name
def test_every_study_ends_in_its_table_and_picture(tmp_path, made, monkeypatch):
  monkeypatch.setattr(results, "plot_sweep", lambda *_: None)
  _, runs = study.read(made, ["--smoke", "--rounds=14"])
  write_runs(runs, tmp_path, diverged=[0])
  text = study.write(made, runs, tmp_path)
  assert (tmp_path / f"{made.name}.md").read_text() == text
  picture = imread(tmp_path / f"{made.name}.png")[..., :3]
  dark = (picture.min(axis=-1) < 0.9).mean(axis=0)
  # Something is drawn in each half, and labels are not cut off at the right.
  assert dark[: len(dark) // 2].mean() > 0.005 and dark[len(dark) // 2 :].mean() > 0.005
  assert dark[-5:].max() == 0
  head, *rows = cells_of(text)
  assert all(len(row) == len(head) for row in rows)
  assert text.count("1 of 2 diverged") > 0 and "±" in text
  assert (tmp_path / "sweep.csv").exists() and (tmp_path / "table.md").exists()


def test_what_a_method_does_not_read_makes_no_run():
  _, runs = study.read(table1.STUDY, [])
  points = [run.point for run in runs]
  assert len(runs) == 6 * 5 * 3 * 3 + 3 * 3
  fedavg = [point for point in points if point["algorithm"] == "fedavg"]
  assert [point["sparsity"] for point in fedavg] == [""] * 9
  assert {point["dirichlet_alpha"] for point in fedavg} == {"1000", "1", "0.1"}
  _, runs = study.read(table1.STUDY, ["--sparsity=0.9"])
  assert "sparsity" not in runs[0].point and len(runs) == 7 * 3 * 3


def test_flags_replace_those_of_the_study_and_those_those_of_a_file(tmp_path):
  preset = tmp_path / "own.flags"
  preset.write_text("--dataset=npz:mine.npz\n--rounds=7\n--beta=3\n--seed=9\n--algorithm=topk\n")
  made = importlib.import_module("experiments.beta_sweep").STUDY
  _, runs = study.read(made, ["--sparsity=0.5", f"--flagfile={preset}", "--rounds=8"])
  assert {run.config.beta for run in runs} == {1, 1.1, 1.25, 1.5, 2}  # the study's
  assert {run.config.seed for run in runs} == {0, 1, 2}
  assert {run.config.algorithm for run in runs} == {"sparsyfed"}
  assert {run.config.dataset for run in runs} == {"npz:mine.npz"}  # the file's
  assert {(run.config.rounds, run.config.sparsity) for run in runs} == {(8, 0.5)}  # given
  assert {run.config.model for run in runs} == {flags.DEFAULTS.model}  # the preset is not read
  with pytest.raises(flags.ConfigError, match="--sparsity=2"):
    study.read(made, ["--sparsity=0.5,2"])


def test_the_shift_comes_half_way_unless_it_is_given():
  made = importlib.import_module("experiments.adaptivity").STUDY
  for arguments, expected in (([], 350), (["--rounds=50"], 25), (["--shift_round=3"], 3)):
    _, runs = study.read(made, arguments)
    assert {run.config.shift_round for run in runs} == {expected}


def test_a_cell_is_the_mean_and_deviation_over_the_seeds(tmp_path):
  _, runs = study.read(table1.STUDY, ["--algorithm=fedavg,topk", "--sparsity=0.9,0.99"])
  written = write_runs(runs, tmp_path, diverged=[len(runs) - 1])
  settings = study.read_settings(runs, tmp_path)
  head, *rows = cells_of(table1.report(settings))
  assert head == ["algorithm", "dirichlet_alpha", "any sparsity", "sparsity 0.9", "sparsity 0.99"]
  expected = {}
  for run in runs:
    # Of 14 rounds the last alone counts.
    accuracy = 100 * written[grid.place_of(run, tmp_path)][-1]["test_accuracy"]
    key = run.config.algorithm, f"{run.config.dirichlet_alpha:g}", run.point["sparsity"]
    expected.setdefault(key, []).append(accuracy)
  for method, alpha, *cells in rows:
    for sparsity, cell in zip(["", "0.9", "0.99"], cells, strict=True):
      values = expected.get((method, alpha, sparsity))
      if values is None:
        assert cell == ""
      elif (method, alpha, sparsity) == ("topk", "0.1", "0.99"):
        assert cell.startswith("1 of 3 diverged (")
      else:
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        config = flags.DEFAULTS._replace(
          dataset="tfds:cifar10",
          algorithm=method,
          dirichlet_alpha=float(alpha),
          sparsity=float(sparsity or 0),
        )
        assert cell == f"{mean:.2f} ± {deviation:.2f} ({table1.authors(config):.2f})"


def test_what_was_not_measured_has_not_diverged(tmp_path, monkeypatch):
  monkeypatch.setattr(results, "plot_sweep", lambda *_: None)
  _, runs = study.read(table1.STUDY, ["--smoke", "--algorithm=fedavg", "--dirichlet_alpha=1"])
  write_runs(runs, tmp_path)
  (row,) = cells_of(results.write_results(runs, tmp_path))[1:]
  assert "±" in row[0] and row[1] == "2 of 2 not measured" and row[2] == "0.1 ± 0.0"


@pytest.mark.parametrize("count", [1, 5, 14, 70])
def test_the_final_accuracy_is_that_of_the_last_rounds(count):
  rows = make_rows(0, count)
  last = [
    row["test_accuracy"]
    for row in rows
    if row["round"] > count - max(1, count // 14) and row["test_accuracy"] is not None
  ]
  expected = statistics.mean(last) if last else None
  assert final_accuracy(rows) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
  ("dataset", "is_known"),
  [
    ("npz:/data/cifar10.npz", True),
    ("tfds:cifar10", True),
    ("npz:CIFAR-10-train.npz", True),
    ("tfds:cifar100", False),
    ("npz:cifar10/digits.npz", False),
    ("digits", False),
  ],
)
def test_the_authors_figures_stand_beside_those_of_their_data_alone(dataset, is_known):
  config = flags.DEFAULTS._replace(dataset=dataset, dirichlet_alpha=0.1, sparsity=0.99)
  methods = ("sparsyfed", "topk", "zerofl", "flash", "fedavg", "feddst")
  found = [table1.authors(config._replace(algorithm=method)) for method in methods]
  assert [value is not None for value in found] == [is_known] * 5 + [False]
  if is_known:
    assert found[0] > found[1] and all(10 < value < 100 for value in found[:5])
    dense = config._replace(algorithm="fedavg")
    assert table1.authors(dense) == table1.authors(dense._replace(sparsity=0.5))
    assert table1.authors(config._replace(sparsity=0.5)) is None


def make_setting(point, *columns):
  outcomes = []
  for rows in columns:
    outcomes.append(study.Outcome(flags.DEFAULTS, {}, rows, None))
  return study.Setting(point, outcomes)


def regrown(*values):
  return [{"round": i, "client_regrowth": value} for i, value in enumerate(values, start=1)]


def test_regrowth_is_held_against_sparsyfeds_in_the_same_setting():
  settings = [
    make_setting({"algorithm": "sparsyfed", "sparsity": "0.9"}, regrown(9, 1, 3), regrown(9, 4, 4)),
    make_setting({"algorithm": "topk", "sparsity": "0.9"}, regrown(0, 30, 30)),
    make_setting({"algorithm": "sparsyfed", "sparsity": "0.5"}, regrown(1, 0, 0)),
    make_setting({"algorithm": "topk", "sparsity": "0.5"}, regrown(1, 1, 1)),
    make_setting({"algorithm": "flash", "sparsity": "0.5"}, regrown(1, 0, 0)),
    make_setting({"algorithm": "flash", "sparsity": "0.1"}, regrown(1, 2, 3)),
  ]
  ratios = [regrowth.ratio(setting, settings, "client_regrowth") for setting in settings]
  assert ratios == [1, 10, None, math.inf, None, None]
  assert regrowth.ratio(settings[0], settings, "server_regrowth") is None
  assert "∞" in regrowth.report(settings)


def test_masks_are_compared_by_the_rounds_between_them(tmp_path):
  rng = np.random.default_rng(0)
  rounds = [3, 6, 9, 12, 15]
  iou = rng.uniform(size=(5, 5))
  iou = np.tril(iou, -1) + np.tril(iou, -1).T + np.eye(5)
  outcome = study.Outcome(flags.DEFAULTS, {}, [], tmp_path)
  assert consensus.by_distance(outcome) == {}
  (tmp_path / "mask_similarity.json").write_text(
    json.dumps({"rounds": rounds, "iou": iou.tolist()})
  )
  found = consensus.by_distance(outcome)
  assert list(found) == [3, 6, 9, 12]
  for distance, value in found.items():
    assert value == pytest.approx(np.diag(iou, distance // 3).mean())
  head, row = cells_of(consensus.report([study.Setting({"algorithm": "topk"}, [outcome])]))
  assert head[3:] == ["3 rounds apart", "6 rounds apart", "12 rounds apart"]
  assert row[1:3] == ["1 of 1 not measured"] * 2 and row[3] == f"{found[3]:.4f}"


def test_bytes_are_held_against_two_dense_models():
  def share(up, down, dense):
    names = "uplink_bytes_per_client_round", "downlink_bytes_per_client_round", "dense_bytes"
    summary = dict(zip(names, (up, down, dense), strict=True))
    return communication.share_of_dense(study.Outcome(flags.DEFAULTS, summary, [], None))

  assert share(100, 300, 1000) == pytest.approx(0.2)
  assert share(None, 300, 1000) is None and share(1, 1, None) is None


def test_lines_keep_the_colours_of_their_methods_and_skip_what_is_empty():
  points = pictures.Points(np.arange(3.0), *[np.ones(3)] * 3)
  nothing = pictures.Points(*[np.zeros(0)] * 4)
  lines = pictures.lines_of(
    [
      ({"algorithm": "topk", "wire_dtype": "float32"}, points),
      ({"algorithm": "flash"}, nothing),
      ({"algorithm": "topk", "beta": "1.5"}, points),
    ],
    100,
  )
  alone = pictures.lines_of([({"algorithm": "topk"}, points)])
  assert [line.label for line in lines] == ["Top-K, float32", "Top-K, beta 1.5"]
  assert lines[0].color == lines[1].color == alone[0].color
  assert [line.style for line in lines] == ["-", "--"] and lines[0].y[0] == 100


def test_zeros_of_a_logarithmic_axis_are_left_out():
  settings = [
    make_setting({"algorithm": "topk"}, regrown(0.5, 0.0, 0.25), regrown(0.1, 0.0, 0.25)),
    make_setting({"algorithm": "flash"}, regrown(0.5, 0.0, 0.0)),
  ]
  panel = pictures.Panel("", "%", [], (0, 100), 1, first=2)
  panel = pictures.over_rounds(settings, "client_regrowth", panel)
  (line,) = panel.lines
  assert line.label == "Top-K" and line.x.tolist() == [3] and line.y.tolist() == [0.25]


def test_settings_become_points_of_lines_and_level_lines():
  def setting(algorithm, sparsity, *accuracies):
    rows = [[{"round": 1, "test_accuracy": accuracy}] for accuracy in accuracies]
    return make_setting({"algorithm": algorithm, "sparsity": sparsity}, *rows)

  settings = [
    setting("fedavg", "", 0.9),
    setting("topk", "0.99", 0.2, 0.4),
    setting("topk", "0.9", 0.7),
  ]
  panel = pictures.Panel("", "%", [])
  (panel,) = pictures.against_flag(
    settings,
    "sparsity",
    study.ACCURACY.value,
    panel,
    known=lambda s: 0.5 if s.point["sparsity"] else None,
  )
  level, line, known = panel.lines
  assert (level.label, line.label, known.label) == ("FedAvg", "Top-K", "")
  np.testing.assert_allclose(level.y, [0.9, 0.9])
  np.testing.assert_allclose((line.x, line.y), [[0, 1], [0.7, 0.3]])
  np.testing.assert_allclose((line.low, line.high), [[0.7, 0.2], [0.7, 0.4]])
  np.testing.assert_allclose((known.x, known.y), [[0, 1], [0.5, 0.5]])
  assert (known.color, known.style) == (line.color, ":")


def test_a_smoke_run_ends_in_its_files_and_goes_on(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr("experiments.run.loop.plot_curves", lambda *_: None)
  directory = tmp_path / "table"
  arguments = ["--smoke", "--rounds=2", "--algorithm=fedavg", "--local_epochs=1"]

  def start(*more):
    given = [*arguments, *more, f"--output_dir={directory}"]
    monkeypatch.setattr(sys, "argv", ["table1", *given])
    table = study._parse(given)
    monkeypatch.setattr(study.absl_flags, "FLAGS", table)
    monkeypatch.setattr(sweep, "keep_compiled", lambda _: None)
    study.conduct(table1.STUDY)
    return capsys.readouterr().out

  output = start()
  assert "4 runs, 0 done before" in output and "table1.png" in output
  text = (directory / "table1.md").read_text()
  for alpha, cell in cells_of(text)[1:]:
    names = [f"dirichlet_alpha={alpha},seed={seed}-*/metrics.jsonl" for seed in (0, 1)]
    places = [place for name in names for place in directory.glob(name)]
    ends = [100 * read_metrics(place)[-1]["test_accuracy"] for place in places]
    assert cell == f"{statistics.mean(ends):.2f} ± {statistics.stdev(ends):.2f}"
  assert imread(directory / "table1.png").shape[0] > 100
  assert "4 runs, 4 done before" in start()
  with pytest.raises(SystemExit):
    start("--seed=7")
  assert "other flags" in capsys.readouterr().err
