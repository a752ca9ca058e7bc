"""Boards: rows that stay, what they are grouped into, and tables and pictures of them."""

import itertools
import json
import shutil
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import flags, leaderboard, sweep
from experiments.boards import pages, rows
from experiments.boards.settings import bytes_to, dense_accuracy, frontier, settings_of
from experiments.studies import study
from sparsyfed_jax.data import digits
from sparsyfed_jax.io.writers import read_metrics


def make_row(algorithm, accuracy, size, *, sparsity=None, alpha=1.0, seed=0, **more):
  named = {} if algorithm == "sparsyfed" else {"algorithm": algorithm}
  return {
    **{"task": "classification", "model": "mlp", "num_clients": 20, "clients_per_round": 5},
    **{"partition": "dirichlet", "dirichlet_alpha": alpha, "sparsity": sparsity, "seed": seed},
    "flags": {**named, "rounds": 20, **more.pop("flags", {})},
    "examples_sha256": f"digest {seed}",
    "total_bytes": size,
    "accuracy": accuracy,
    "curve": [[10, accuracy / 2, size / 2, None], [20, accuracy, size, None]],
    **more,
  }


ROWS = [
  *(make_row("fedavg", 0.8 + 0.1 * seed, 1000, seed=seed) for seed in range(2)),
  *(make_row("topk", 0.5 + 0.1 * seed, 100, sparsity=0.9, seed=seed) for seed in range(2)),
  *(make_row("topk", 0.4, 50, sparsity=0.99, seed=seed) for seed in range(2)),
  *(make_row("sparsyfed", 0.45, 60, sparsity=0.99, seed=seed) for seed in range(2)),
  *(make_row("fedavg", 0.6, 1000, alpha=0.1, seed=seed) for seed in range(2)),
]


def test_rows_that_differ_in_the_seed_alone_are_a_setting():
  found = [(s.entry, s.alpha, s.sparsity, len(s.rows)) for s in settings_of(ROWS)]
  assert found == [
    ("FedAvg", 1.0, None, 2),
    ("Top-K", 1.0, 0.9, 2),
    ("Top-K", 1.0, 0.99, 2),
    ("SparsyFed", 1.0, 0.99, 2),
    ("FedAvg", 0.1, None, 2),
  ]


def test_forms_of_a_method_are_named_by_what_differs():
  more = [
    make_row("topk", 0.7, 90, sparsity=0.9, flags={"wire_dtype": "bfloat16"}),
    make_row("./mine.py:METHOD", 0.7, 90, sparsity=0.9, flags={"client_lr": 0.1}),
  ]
  names = [s.entry for s in settings_of([*ROWS, *more])]
  assert names[-2:] == ["Top-K, wire_dtype=bfloat16", "./mine.py:METHOD"]
  assert names[1] == "Top-K"


def test_what_follows_from_another_flag_names_no_form():
  long = [
    make_row("feddst", 0.7, 90, sparsity=0.9, flags={"rounds": r, "feddst_update_until": r // 2})
    for r in (40, 60)
  ]
  own = make_row("feddst", 0.7, 90, sparsity=0.9, flags={"rounds": 60, "feddst_update_until": 9})
  assert [s.entry for s in settings_of(long)] == ["FedDST, rounds=40", "FedDST, rounds=60"]
  other = [make_row("topk", 0.7, 90, flags={"rounds": r, "client_lr_final": 1 / r}) for r in (1, 2)]
  assert [s.entry for s in settings_of(other)] == ["Top-K, rounds=1", "Top-K, rounds=2"]
  assert [s.entry for s in settings_of([*long, own])] == [
    *("FedDST, rounds=40, feddst_update_until=20", "FedDST, rounds=60, feddst_update_until=30"),
    "FedDST, rounds=60, feddst_update_until=9",
  ]


def test_rows_of_changed_code_are_no_seeds_of_one_method():
  mine = [
    make_row("./mine.py:METHOD", accuracy, 90, sparsity=0.9, method_sha256=64 * letter)
    for accuracy, letter in ((0.5, "a"), (0.9, "b"))
  ]
  names = [s.entry for s in settings_of(mine)]
  assert names == [f"./mine.py:METHOD, method_sha256={8 * letter}" for letter in "ab"]
  assert [s.entry for s in settings_of(mine[:1])] == ["./mine.py:METHOD"]


def test_changed_code_begins_in_a_new_directory(tmp_path, monkeypatch):
  grids, runs = study.read(leaderboard.BOARD, ["--smoke", "--algorithm=topk", "--seed=0"])
  found = []
  for digest in (None, "a", "b"):
    monkeypatch.setattr(leaderboard.begun, "code_of", lambda _, one=digest: {"method_sha256": one})
    found.append(leaderboard._sweep_directory(grids, runs, tmp_path))
  assert len(set(found)) == 3


def test_a_bar_in_a_flag_begins_no_cell():
  lines = pages.report([make_row("./a|b.py:METHOD", 0.5, 90, sparsity=0.9)]).splitlines()
  named = [line for line in lines if "b.py" in line]
  assert named and all("a\\|b.py" in line and "a|b.py" not in line for line in named)


def test_dense_is_the_best_form_of_fedavg_on_the_same_split():
  better = make_row("fedavg", 0.95, 2000, flags={"client_lr": 0.1})
  settings = settings_of([*ROWS, better])
  assert dense_accuracy(settings, 1.0) == 0.95
  assert dense_accuracy(settings, 0.1) == pytest.approx(0.6)
  assert dense_accuracy(settings_of(ROWS[2:8]), 1.0) is None


def test_bytes_are_those_of_the_first_evaluation_that_reaches_the_target():
  row = make_row("topk", 0.8, 100)
  assert [bytes_to(target)(row) for target in (0.3, 0.4, 0.41, 0.8, 0.81)] == [
    *(50, 50, 100, 100, None)
  ]
  # 318 of 359 examples are nine tenths of 1060 of 1077, whichever way they are rounded.
  third = make_row("topk", 0.885793, 60)
  assert bytes_to(0.9 * 1060 / 1077)(third) == bytes_to(318 / 359)(third) == 60
  assert bytes_to(318 / 359)(make_row("topk", 0.885790, 60)) is None


def test_the_frontier_is_what_nothing_beats_at_once_in_both():
  rng = np.random.default_rng(0)
  for _ in range(50):
    values = rng.integers(0, 6, (8, 2))
    made = [make_row(f"m{i}", float(a), float(b)) for i, (a, b) in enumerate(values)]
    settings = settings_of(made)
    found = {(s.rows[0]["accuracy"], s.rows[0]["total_bytes"]) for s in frontier(settings)}
    points = {(float(a), float(b)) for a, b in values}
    best = {
      (a, b)
      for a, b in points
      if not any((c >= a and d <= b) and (c, d) != (a, b) for c, d in points)
    }
    assert found == best and len(frontier(settings)) == len(best)


def cells_of(text):
  lines = [line for line in text.splitlines() if line.startswith("|")]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_tables_hold_means_deviations_and_what_was_never_reached():
  text = pages.report(ROWS)
  cells = cells_of(text)
  assert ["FedAvg", "85.00 ± 7.07", "", ""] in cells
  assert ["Top-K", "", "**55.00 ± 7.07**", "40.00 ± 0.00"] in cells
  assert ["SparsyFed", "", "", "**45.00 ± 0.00**"] in cells
  (topk,) = [row for row in cells if row[:2] == ["Top-K", "90 %"]]
  # Dense is 85 %; of the two seeds none comes to 80 % of it, 68.
  assert topk[2:5] == ["55.00 ± 7.07", "100 B ± 0 B", "2 of 2 never"] and topk[-2:] == ["yes", "2"]
  (worse,) = [row for row in cells if row[:2] == ["Top-K", "99 %"]]
  assert worse[-2] == "yes"  # cheaper than all others
  assert "10 runs: task classification, model mlp" in text


def test_a_setting_with_a_run_that_diverged_has_no_mean_and_is_on_no_frontier(tmp_path):
  gone = make_row("topk", 0.99, 1, sparsity=0.5, diverged="round 3: loss is nan")
  table = [*ROWS, gone]
  assert all(s.sparsity != 0.5 for s in frontier(settings_of(table)))
  (row,) = [row for row in cells_of(pages.report(table)) if row[:2] == ["Top-K", "50 %"]]
  assert row[2] == "1 of 1 diverged"
  pages.draw(table, tmp_path / "board.png")
  assert imread(tmp_path / "board.png").shape[0] > 100


def test_a_board_takes_each_run_once_and_the_newer_row(tmp_path):
  assert rows.read(tmp_path) == []
  rows.add(tmp_path, ROWS[:3])
  newer = {**ROWS[2], "accuracy": 0.123}
  merged = rows.add(tmp_path, [newer, ROWS[4]])
  assert [row["accuracy"] for row in merged] == [0.8, 0.9, 0.123, 0.4]
  assert rows.read(tmp_path) == merged


def test_a_damaged_board_is_a_line(tmp_path):
  (tmp_path / rows.NAME).write_text('{"seed": 0}\n')
  with pytest.raises(flags.ConfigError, match=r"board.jsonl, line 1: must have dirichlet_alpha"):
    rows.read(tmp_path)
  (tmp_path / rows.NAME).write_text("no\n{}\n")
  with pytest.raises(flags.ConfigError, match="--output_dir="):
    rows.read(tmp_path)


@pytest.mark.parametrize(
  ("given", "found"),
  [
    ({"flags": []}, "flags must be an object, is []"),
    ({"curve": 5}, "curve must list rounds"),
    ({"curve": [[1, 0.5]]}, "curve must list rounds"),
    ({"curve": []}, "curve must have a round"),
    ({"accuracy": "0.5"}, 'accuracy must be a number, is "0.5"'),
    ({"dirichlet_alpha": "x"}, "dirichlet_alpha must be a number"),
    ({"total_bytes": True}, "total_bytes must be a number"),
    ({"versions": 3}, "versions must be an object"),
    ({"device": ["cpu"]}, "device must be a text"),
  ],
)
def test_a_row_of_a_wrong_kind_is_a_line(tmp_path, given, found):
  lines = [json.dumps(row) + "\n" for row in (ROWS[0], {**ROWS[1], **given})]
  (tmp_path / rows.NAME).write_text("".join(lines))
  with pytest.raises(flags.ConfigError) as error:
    rows.read(tmp_path)
  assert f"board.jsonl, line 2: {found}" in str(error.value)


@pytest.mark.parametrize(
  ("given", "found"),
  [
    ({"model_sha256": "other"}, "--model=mlp: its file must be that of the other runs"),
    ({"model": "cnn"}, "--model=cnn: must be mlp"),
    ({"num_clients": 30}, "--num_clients=30: must be 20"),
    ({"examples_sha256": "other"}, "--dataset=npz:a.npz: its examples are not those"),
  ],
)
def test_a_run_that_does_not_fit_the_board_is_refused(tmp_path, given, found):
  new = {**make_row("topk", 0.5, 10), **given}
  with pytest.raises(flags.ConfigError, match=found):
    rows.check(ROWS, new, "npz:a.npz", tmp_path)


@pytest.mark.parametrize(
  ("given", "found"),
  [
    (("--metrics=false",), "--metrics=false: must be true"),
    (
      ("--dataset=text:none.txt", "--model=lstm", "--partition=iid"),
      "--task=next_token: must be one",
    ),
  ],
)
def test_a_run_that_a_board_cannot_rank_is_refused(tmp_path, given, found):
  _, runs = study.read(leaderboard.BOARD, ["--smoke", "--algorithm=topk", "--seed=0", *given])
  with pytest.raises(flags.ConfigError, match=found):
    leaderboard.heads_of(runs, [], tmp_path)


def test_clients_dealt_alike_are_of_no_alpha(tmp_path):
  given = ["--smoke", "--algorithm=fedavg", "--seed=0", "--partition=iid"]
  _, runs = study.read(leaderboard.BOARD, given)
  assert len(runs) == 2  # of two alphas
  once, (head,) = leaderboard.heads_of(runs, [], tmp_path)
  assert once == runs[:1] and head["dirichlet_alpha"] is None


def test_the_split_by_default_may_be_named():
  left_out, named = (make_row("topk", 0.5, 9, flags=one) for one in ({"partition": None}, {}))
  assert rows.key_of(left_out) == rows.key_of(named)
  assert [s.entry for s in settings_of([left_out, named])] == ["Top-K"]
  assert "--partition" not in pages.report([left_out, named])
  dealt = make_row("topk", 0.5, 9, alpha=None, flags={"partition": "iid"})
  assert "`--partition=iid`" in pages.report([dealt])


def test_where_the_examples_lie_is_no_matter():
  data = digits(seed=0)
  _, runs = study.read(leaderboard.BOARD, ["--smoke", "--algorithm=topk", "--seed=0"])
  heads = [rows.make_head(run, data) for run in runs]
  assert len({rows.key_of(head) for head in heads}) == len(runs) == 4
  moved = runs[0]._replace(config=runs[0].config._replace(dataset="npz:elsewhere.npz"))
  assert rows.key_of(rows.make_head(moved, data)) == rows.key_of(heads[0])
  assert "dataset" not in heads[0]["flags"] and "seed" not in heads[0]["flags"]


def test_all_runs_of_the_board_are_distinct():
  _, runs = study.read(leaderboard.BOARD, ["--preset=leaderboard-digits"])
  data = digits(seed=0)
  keys = [rows.key_of(rows.make_head(run, data)) for run in runs]
  assert len(set(keys)) == len(keys)
  by_method = itertools.groupby(sorted(run.config.algorithm for run in runs))
  counts = {name: len(list(group)) for name, group in by_method}
  assert counts["fedavg"] == counts["heterofl"] == 2 * 3 and counts["sparsyfed"] == 5 * 2 * 3


def test_a_board_grows_and_runs_nothing_twice(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr("experiments.run.loop.plot_curves", lambda *_: None)
  monkeypatch.setattr(sweep, "keep_compiled", lambda _: None)
  board = tmp_path / "board"

  def start(*more):
    given = ["--smoke", "--rounds=2", "--local_epochs=1", "--dirichlet_alpha=1", *more]
    given += [f"--output_dir={board}"]
    monkeypatch.setattr(sys, "argv", ["leaderboard", *given])
    monkeypatch.setattr(study.absl_flags, "FLAGS", study._parse(given))
    leaderboard.main()
    return capsys.readouterr().out

  assert "2 runs, 0 of them on the board" in start("--algorithm=fedavg")
  assert "4 runs, 2 of them on the board" in start("--algorithm=fedavg,topk", "--sparsity=0.9")
  again = start("--algorithm=fedavg,topk", "--sparsity=0.9")
  assert "4 runs, 4 of them on the board" in again and "0 runs by 0 compiled" in again
  found = rows.read(board)
  assert [row["flags"].get("algorithm") for row in found] == ["fedavg"] * 2 + ["topk"] * 2
  for place in board.glob("runs/*/*/metrics.jsonl"):
    run_rows = read_metrics(place)
    assert any(row["total_bytes"] == run_rows[-1]["cumulative_bytes"] for row in found)
  assert len(list(board.glob("runs/*/*/metrics.jsonl"))) == 4
  text = (board / "leaderboard.md").read_text()
  assert "4 runs" in text and imread(board / "leaderboard.png").shape[0] > 100
  json.loads((board / rows.NAME).read_text().splitlines()[0])
  with pytest.raises(SystemExit):
    start("--algorithm=topk", "--sparsity=0.9", "--model=cnn")
  assert "--model=cnn: must be mlp" in capsys.readouterr().err
  # Its row is there, so that its directory need not be; and a method that the model does not suit
  # keeps nobody else from running.
  shutil.rmtree(next(board.glob("runs/*/algorithm=topk,seed=0-*")))
  both = ["--algorithm=fedavg,topk", "--sparsity=0.9"]
  assert "4 runs, 4 of them on the board" in start(*both)
  shown = start("--algorithm=flash,topk", "--flash_prunes=convolutions", "--sparsity=0.95")
  assert "no convolution that can be pruned" in shown and "2 runs by 1 compiled" in shown
  assert [row["sparsity"] for row in rows.read(board)[4:]] == [0.95] * 2
