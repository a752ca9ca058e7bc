"""The directories of a sweep's runs: one configuration each, and what cannot run is marked."""

import contextlib
import csv
import json
import re

import numpy as np
import pytest
from absl import flags as absl_flags

from experiments import flags, sweep
from experiments.run import directory as run_directory
from experiments.sweeps import grid, members, results

SHORT = [
  *("--model=mlp", "--num_clients=4", "--clients_per_round=2", "--rounds=1", "--local_epochs=1"),
  *("--algorithm=fedavg", "--checkpoint_every=1", "--metrics=false"),
]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
  monkeypatch.setattr("experiments.run.loop.plot_curves", lambda *_: None)
  monkeypatch.setattr(results, "plot_sweep", lambda *_: None)


def read(*arguments):
  table = absl_flags.FlagValues()
  sweep.define(table)
  table(["sweep", *SHORT, *arguments])
  return grid.read_grid(table)


def run(directory, *arguments, mode="sequential", discard_rounds=False):
  values, runs = read(*arguments)
  with contextlib.ExitStack() as stack:
    runs = sweep.prepare(values, runs, directory, mode, stack, discard_rounds)
    sweep.run_all(runs, directory, mode)
    results.write_results(runs, directory)
  with open(directory / "sweep.csv", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def save(path, labels, seed=0):
  """Saves 40 examples for training and testing alike, the label of each its largest feature."""
  path.parent.mkdir(exist_ok=True)
  x = np.random.default_rng(seed).normal(size=(40, 3)).astype(np.float32)
  y = labels(x).astype(np.int32)
  np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)


def test_data_sets_whose_names_differ_in_a_letter_have_results_of_their_own(tmp_path):
  save(tmp_path / "a" / "b.npz", lambda x: x.argmax(axis=1))
  save(tmp_path / "a-b.npz", lambda x: 0 * x.argmax(axis=1) + (np.arange(len(x)) % 2))
  good, bad = f"npz:{tmp_path}/a/b.npz", f"npz:{tmp_path}/a-b.npz"
  rows = run(tmp_path / "sweep", f"--dataset={good},{bad}", "--rounds=30", "--client_lr=0.1")
  accuracies = {row["dataset"]: float(row["test_accuracy"]) for row in rows}
  assert accuracies[good] > 0.85 and accuracies[bad] < 0.75
  found = [json.loads(p.read_text()) for p in (tmp_path / "sweep").glob("*/config.json")]
  assert sorted(config["dataset"] for config in found) == sorted([good, bad])


@pytest.mark.parametrize(
  "values",
  [("Conv_.*", "Conv_.+"), ("A|B", "A+B"), ("a b", "a+b"), ("a", "A"), ("x" * 300, "x" * 301)],
)
def test_values_that_look_alike_get_different_names_that_every_file_system_takes(values):
  _, runs = read("--algorithm=sparsyfed", f"--reparam_exclude={','.join(values)}")
  names = [grid.name_of(run) for run in runs]
  assert len({name.lower() for name in names}) == 2
  for name in names:
    assert len(name.encode()) <= 109
    assert re.fullmatch(r"reparam_exclude=[\w.,=-]+-[0-9a-f]{8}", name)
  umlauts = grid.name_of(runs[0]._replace(point={"reparam_exclude": "ä" * 300}))
  assert len(umlauts.encode()) <= 109 and umlauts.startswith("reparam_exclude=ää")


def test_equal_points_run_once_and_count_once(tmp_path, capsys):
  rows = run(tmp_path / "sweep", "--seed=1,1,01")
  assert [row["seed"] for row in rows] == ["1"]
  assert "note: 2 of the 3 points of the grid are equal to others" in capsys.readouterr().out
  table = (tmp_path / "sweep" / "table.md").read_text()
  assert table.splitlines()[2].endswith("| 1 |") and "±" not in table
  assert len(list((tmp_path / "sweep").glob("*/config.json"))) == 1


def test_what_a_method_does_not_read_makes_no_run_but_what_the_user_varies_does():
  _, runs = read("--algorithm=fedavg,topk", "--sparsity=0.5,0.9", "--beta=1.1,1.2")
  assert [run.point for run in runs] == [
    {"algorithm": "fedavg", "sparsity": "", "beta": ""},
    {"algorithm": "topk", "sparsity": "0.5", "beta": ""},
    {"algorithm": "topk", "sparsity": "0.9", "beta": ""},
  ]
  _, runs = read("--clients_per_chunk=1,2")  # of no effect on results, but on time
  assert [run.point for run in runs] == [{"clients_per_chunk": "1"}, {"clients_per_chunk": "2"}]
  assert len({grid.name_of(run) for run in runs}) == 2


def test_a_flag_at_its_default_does_not_change_the_name():
  _, (one,) = read()
  _, (other,) = read("--seed=0", "--output_dir=x", "--checkpoint_every=7")
  assert grid.name_of(one) == grid.name_of(other)


def test_a_run_that_cannot_start_is_a_marked_row_and_the_others_run(tmp_path, capsys):
  arguments = ["--num_clients=4,5000", f"--dataset=digits,npz:{tmp_path}/none.npz"]
  rows = run(tmp_path / "sweep", *arguments)
  notes = {(row["num_clients"], row["dataset"] == "digits"): row["note"] for row in rows}
  assert notes["4", True] == ""
  assert notes["5000", True].startswith("refused: --partition=dirichlet: ")
  assert notes["4", False] == f"refused: {tmp_path}/none.npz: no such file, must be an .npz file"
  assert [bool(row["test_accuracy"]) for row in rows].count(True) == 1
  table = (tmp_path / "sweep" / "table.md").read_text()
  assert "| digits | 5000 | 1 of 1 refused |" in table
  assert "- refused dataset=digits, num_clients=5000: --partition=dirichlet: " in table
  output = capsys.readouterr().out
  # It is said before anything is trained.
  assert output.index("--dataset=digits --num_clients=5000 cannot run") < output.index(
    "done before"
  )
  assert rows == run(tmp_path / "sweep", *arguments)  # again, and nothing is trained
  assert "1 runs, 1 done before" in capsys.readouterr().out


def test_flags_that_contradict_each_other_in_some_combinations_mark_those():
  _, runs = read("--algorithm=topk,zerofl", "--sparsity=0.05,0.9", "--zerofl_mask_ratio=0.1")
  refused = [run for run in runs if run.refusal]
  assert [run.point for run in refused] == [{"algorithm": "zerofl", "sparsity": "0.05"}]
  assert refused[0].refusal.startswith("--zerofl_mask_ratio=0.1: must be between 0 and --sparsity")
  assert len({grid.name_of(run) for run in runs}) == 4


def test_a_sweep_of_which_nothing_can_run_writes_nothing(tmp_path):
  values, runs = read("--num_clients=5000,6000")
  with contextlib.ExitStack() as stack, pytest.raises(flags.ConfigError, match="--partition"):
    sweep.prepare(values, runs, tmp_path / "sweep", "sequential", stack)
  assert not (tmp_path / "sweep").exists()


def test_data_that_changed_behind_their_name_are_refused_also_if_the_runs_have_ended(tmp_path):
  path = tmp_path / "data.npz"
  arguments = [f"--dataset=npz:{path}", "--seed=0,1"]
  save(path, lambda x: x.argmax(axis=1))
  before = run(tmp_path / "sweep", *arguments)
  save(path, lambda x: (x.argmax(axis=1) + 1) % 3)
  with pytest.raises(flags.ConfigError, match="examples are not those that the run in .*seed=0-"):
    run(tmp_path / "sweep", *arguments)
  (first,) = (tmp_path / "sweep").glob("seed=0-*")
  (first / "summary.json").unlink()  # not ended
  with pytest.raises(flags.ConfigError, match="examples are not those that the run in .*seed=0-"):
    run(tmp_path / "sweep", *arguments)
  path.unlink()  # which runs that have ended do not need
  rows = run(tmp_path / "sweep", *arguments)
  assert rows[1] == before[1]
  assert rows[0]["note"] == f"refused: {path}: no such file, must be an .npz file"


def test_a_directory_is_not_continued_by_another_configuration(tmp_path):
  run(tmp_path / "sweep", "--seed=0,1")
  (first,) = (tmp_path / "sweep").glob("seed=0-*")
  config = first / "config.json"
  kept = config.read_text()
  for damage, message in (
    (json.dumps(json.loads(kept) | {"client_lr": 0.125}), "--client_lr=0.5: must be 0.125"),
    ("{}", "config.json: dataset is missing"),
    ("[]", r"config.json: must be a JSON object, is \[\]"),
    ("null", "config.json: must be a JSON object, is null"),
    (kept.replace("{", "\0", 1), r"config.json: not JSON \(.*line 1 column 1"),
  ):
    config.write_text(damage)
    with pytest.raises(flags.ConfigError, match=message):
      run(tmp_path / "sweep", "--seed=0,1")
    assert config.read_text() == damage
  config.unlink()
  with pytest.raises(FileExistsError, match="seed=0-.* exists and is not empty"):
    run(tmp_path / "sweep", "--seed=0,1")


@pytest.mark.parametrize("left", ["seed=0/config.json", "sweep.csv"])
def test_a_sweep_of_an_earlier_version_is_not_run_again_beside_what_it_left(tmp_path, left):
  values, runs = read("--seed=0,1")
  place = tmp_path / left
  place.parent.mkdir(exist_ok=True)
  place.write_text("{}")
  (tmp_path / "grid.json").write_text(json.dumps(values))
  with pytest.raises(FileExistsError, match=f"another version .*{left.partition('/')[0]}"):
    members.check_directory(tmp_path, values, runs)
  assert not (tmp_path / "runs.json").exists()


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("[]", r"grid.json: must hold the flags of a sweep, is \[\]"),
    ("null", "grid.json: must hold the flags of a sweep, is null"),
    ('{"seed": ["0"', "grid.json: must be JSON .*line 1 column 14"),
    ('{"seed": ["0", "2"]}', "holds a sweep of other flags"),
  ],
)
def test_a_damaged_grid_is_a_line(tmp_path, content, message):
  (tmp_path / "grid.json").write_text(content)
  values, runs = read("--seed=0,1")
  with pytest.raises((flags.ConfigError, FileExistsError), match=message):
    members.check_directory(tmp_path, values, runs)


def test_a_damaged_summary_is_a_marked_row(tmp_path):
  rows = run(tmp_path / "sweep", "--seed=0,1")
  (summary,) = (tmp_path / "sweep").glob("seed=0-*/summary.json")
  summary.write_text("null")
  again = run(tmp_path / "sweep", "--seed=0,1")
  assert again[0]["note"] == f"damaged: {summary}: must be a JSON object, is null"
  assert again[1] == rows[1]
  assert "| 1 of 2 damaged |" in (tmp_path / "sweep" / "table.md").read_text()


def test_recorded_rounds_are_not_dropped_unless_the_flag_of_the_sweep_says_so(tmp_path):
  rows = run(tmp_path / "sweep", "--rounds=2")
  (place,) = (tmp_path / "sweep").glob("run-*")
  (place / "summary.json").unlink()
  first, second = (place / "metrics.jsonl").read_text().splitlines(keepends=True)
  (place / "metrics.jsonl").write_text("\0" + first + second)
  damage = "metrics.jsonl, line 1: not JSON .* --discard_rounds goes on from round 1"
  with pytest.raises(flags.ConfigError, match=damage):
    run(tmp_path / "sweep", "--rounds=2")
  again = run(tmp_path / "sweep", "--rounds=2", discard_rounds=True)
  assert again[0]["test_accuracy"] == rows[0]["test_accuracy"]
  assert (place / "metrics.jsonl").read_text() == first + second
  (kept,) = place.glob("metrics.discarded-*.jsonl")
  assert kept.read_text() == "\0" + first + second


def test_a_second_process_is_kept_out_of_the_sweep_and_of_its_runs(tmp_path):
  run(tmp_path / "sweep", "--seed=0,1")
  (first,) = (tmp_path / "sweep").glob("seed=0-*")
  (first / "summary.json").unlink()
  for place in (tmp_path / "sweep", first):
    with (
      run_directory.locked(place),
      pytest.raises(flags.ConfigError, match=f"{re.escape(str(place))}: is in use by process"),
    ):
      run(tmp_path / "sweep", "--seed=0,1")


def test_the_checkpoints_of_a_group_belong_to_its_members(tmp_path):
  def group(*names):
    each = [members.Member(None, None, tmp_path / name) for name in names]
    return members.group_directory(each, tmp_path / "side_by_side")

  place = group("a", "b")
  assert json.loads((place / "members.json").read_text()) == ["a", "b"]
  assert group("a", "b") == place
  assert len({place, group("a"), group("a", "c"), group("b", "a")}) == 4
  (place / "members.json").write_text('["a", "c"]')
  with pytest.raises(flags.ConfigError, match="members.json"):
    group("a", "b")


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert members.directory_of("~/sweep") == tmp_path / "sweep"
  with pytest.raises(flags.ConfigError, match="--output_dir: must be given"):
    members.directory_of(None)
