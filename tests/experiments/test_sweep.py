"""A grid of tiny runs, read back."""

import csv
import json
import shutil

import pytest
from absl import flags as absl_flags

from experiments import build as building
from experiments import flags, sweep

COMMON = [
  "--model=mlp",
  "--num_clients=10",
  "--clients_per_round=2",
  "--rounds=2",
  "--local_epochs=1",
  "--eval_every=2",
]


def parse(*arguments):
  table = absl_flags.FlagValues()
  sweep.define(table)
  table(["sweep", *COMMON, *arguments])
  return table


def run(directory, *arguments, mode="sequential"):
  grid, runs = sweep.read_grid(parse(*arguments))
  opened = sweep._open_directory(str(directory), grid)
  sweep.run_all(runs, opened, mode)
  return sweep._write_results(runs, opened)


def test_the_grid_is_every_combination():
  grid, runs = sweep.read_grid(parse("--sparsity=0.5,0.9", "--seed=0, 1,2", "--algorithm=topk"))
  assert grid["seed"] == ["0", "1", "2"]
  points = [(run.config.sparsity, run.config.seed) for run in runs]
  assert points == [(s, k) for s in (0.5, 0.9) for k in (0, 1, 2)]
  assert {run.config.algorithm for run in runs} == {"topk"}
  assert runs[0].point == {"sparsity": "0.5", "seed": "0"}


def test_lists_of_a_run_are_not_swept():
  _, runs = sweep.read_grid(
    parse("--client_sparsities=0.95,0.99", "--client_sparsity_shares=0.5,0.5", "--seed=0,1")
  )
  assert [run.config.client_sparsities for run in runs] == [(0.95, 0.99)] * 2


@pytest.mark.parametrize(
  ("argument", "message"),
  [("--sparsity=0.5,1.5", "--sparsity=1.5"), ("--seed=0,x", "seed"), ("--algorithm=a,topk", "=a")],
)
def test_a_bad_value_is_refused_before_anything_runs(argument, message):
  with pytest.raises((flags.ConfigError, absl_flags.Error), match=message):
    sweep.read_grid(parse(argument))


def test_runs_share_programs_resume_and_are_averaged(tmp_path, capsys, monkeypatch):
  compiled = []
  compile_programs = sweep.compile_programs
  monkeypatch.setattr(
    sweep, "compile_programs", lambda e: compiled.append(1) or compile_programs(e)
  )
  arguments = ["--algorithm=fedavg,topk", "--sparsity=0.5,0.9", "--seed=0,1"]
  directory = tmp_path / "grid"
  table = run(directory, *arguments)
  assert len(compiled) == 2  # one for each method
  with open(directory / "sweep.csv") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 8
  for row in rows:
    place = f"algorithm={row['algorithm']},sparsity={row['sparsity']},seed={row['seed']}"
    summary = json.loads((directory / place / "summary.json").read_text())
    assert float(row["test_accuracy"]) == summary["test_accuracy"]
    assert (summary["algorithm"], summary["seed"]) == (row["algorithm"], int(row["seed"]))
  assert table.count("±") == 4 * 4 and "| topk | 0.9 |" in table
  assert (directory / "sweep.png").stat().st_size > 10_000

  # A run that never ended is done again, the others are kept.
  shutil.rmtree(directory / "algorithm=topk,sparsity=0.9,seed=1")
  kept = directory / "algorithm=topk,sparsity=0.9,seed=0" / "metrics.jsonl"
  before = kept.stat().st_mtime_ns
  assert run(directory, *arguments) == table
  assert kept.stat().st_mtime_ns == before and len(compiled) == 3
  assert "8 runs, 7 done before" in capsys.readouterr().out

  with pytest.raises(FileExistsError, match="other flags"):
    run(directory, "--seed=0")


def test_a_shared_program_gives_what_its_own_would(tmp_path):
  run(tmp_path / "both", "--sparsity=0.5,0.9", "--beta=1.1,1.3")
  run(tmp_path / "one", "--sparsity=0.9", "--beta=1.3")
  names = tmp_path / "both" / "sparsity=0.9,beta=1.3", tmp_path / "one" / "run"
  first, second = ((name / "metrics.jsonl").read_text() for name in names)
  assert first == second


def test_what_changes_the_program_changes_its_key():
  base = flags.resolve(flags.DEFAULTS._replace(model="mlp", rounds=4, eval_every=2))

  def key(**change):
    config = flags.resolve(base._replace(**change))
    return building.program_key(config, building.build(config))

  same = [
    {},
    {"seed": 1},
    {"beta": 2.0},
    {"client_lr": 0.1},
    {"rounds": 8},
    {"dirichlet_alpha": 9.0},
  ]
  other = [
    {"algorithm": "topk"},
    {"batch_size": 8},
    {"proximal_mu": 0.1},
    {"client_momentum": 0.9},
    {"num_clients": 50},
    {"eval_every": 3},
    {"client_sparsities": (0.99,), "client_sparsity_shares": (1.0,)},
  ]
  assert len({key(**change) for change in same}) == 1
  assert len({key(**change) for change in other} | {key()}) == len(other) + 1
