"""A grid of tiny runs, read back."""

import contextlib
import csv
import json
import shutil

import numpy as np
import pytest
from absl import flags as absl_flags

from experiments import flags, sweep
from experiments.run import build as building
from experiments.sweeps import grid, members, results
from sparsyfed_jax.fed import simulation
from sparsyfed_jax.io.writers import MetricsWriter, read_metrics

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
  values, runs = grid.read_grid(parse(*arguments))
  with contextlib.ExitStack() as stack:
    runs = sweep.prepare(values, runs, directory, mode, stack)
    sweep.run_all(runs, directory, mode)
    return results.write_results(runs, directory)


def place(directory, name):
  """Finds the directory of a run by the readable part of its name."""
  (found,) = directory.glob(f"{name}-*")
  return found


def test_the_grid_is_every_combination():
  values, runs = grid.read_grid(parse("--sparsity=0.5,0.9", "--seed=0, 1,2", "--algorithm=topk"))
  assert values["seed"] == ["0", "1", "2"]
  points = [(run.config.sparsity, run.config.seed) for run in runs]
  assert points == [(s, k) for s in (0.5, 0.9) for k in (0, 1, 2)]
  assert {run.config.algorithm for run in runs} == {"topk"}
  assert runs[0].point == {"sparsity": "0.5", "seed": "0"}


def test_lists_of_a_run_are_not_swept():
  _, runs = grid.read_grid(
    parse("--client_sparsities=0.95,0.99", "--client_sparsity_shares=0.5,0.5", "--seed=0,1")
  )
  assert [run.config.client_sparsities for run in runs] == [(0.95, 0.99)] * 2


@pytest.mark.parametrize(
  ("argument", "message"),
  [("--sparsity=0.5,1.5", "--sparsity=1.5"), ("--seed=0,x", "seed"), ("--algorithm=a,topk", "=a")],
)
def test_a_bad_value_is_refused_before_anything_runs(argument, message):
  with pytest.raises((flags.ConfigError, absl_flags.Error), match=message):
    grid.read_grid(parse(argument))


def test_runs_share_programs_resume_and_are_averaged(tmp_path, capsys, monkeypatch):
  compiled = []
  compile_programs = sweep.compile_programs
  monkeypatch.setattr(
    sweep, "compile_programs", lambda e: compiled.append(1) or compile_programs(e)
  )
  monkeypatch.setattr("experiments.run.loop.plot_curves", lambda *_: None)
  arguments = ["--algorithm=fedavg,topk", "--sparsity=0.5,0.9", "--seed=0,1"]
  directory = tmp_path / "grid"
  table = run(directory, *arguments)
  assert len(compiled) == 2  # one for each method
  with open(directory / "sweep.csv") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 + 4  # dense training reads no sparsity
  for row in rows:
    sparsity = f"sparsity={row['sparsity']}," if row["sparsity"] else ""
    name = f"algorithm={row['algorithm']},{sparsity}seed={row['seed']}"
    summary = json.loads((place(directory, name) / "summary.json").read_text())
    assert float(row["test_accuracy"]) == summary["test_accuracy"]
    assert (summary["algorithm"], summary["seed"]) == (row["algorithm"], int(row["seed"]))
  assert table.count("±") == 3 * 4 and "| topk | 0.9 |" in table and "| fedavg |  |" in table
  assert (directory / "sweep.png").stat().st_size > 10_000

  # A run that never ended is done again, the others are kept.
  shutil.rmtree(place(directory, "algorithm=topk,sparsity=0.9,seed=1"))
  kept = place(directory, "algorithm=topk,sparsity=0.9,seed=0") / "metrics.jsonl"
  before = kept.stat().st_mtime_ns
  assert run(directory, *arguments) == table
  assert kept.stat().st_mtime_ns == before and len(compiled) == 3
  assert "6 runs, 5 done before" in capsys.readouterr().out

  with pytest.raises(FileExistsError, match="other flags"):
    run(directory, "--seed=0")


def test_what_a_reader_of_the_table_may_overlook_is_said(tmp_path, capsys, monkeypatch):
  values, runs = grid.read_grid(parse("--algorithm=fedavg,fedtiny", "--seed=0,1"))
  with contextlib.ExitStack() as stack:
    runs = sweep.prepare(values, runs, tmp_path / "grid", "sequential", stack)
  told = capsys.readouterr().out
  assert told.count("note: --fedtiny_update_every=10: masks are never readjusted") == 1

  def outcome(run, _):
    is_chance = run.config.algorithm == "fedavg" and run.config.seed == 1
    return results.Outcome({"test_accuracy": 0.5, "is_chance": is_chance}, [])

  monkeypatch.setattr(results, "read_outcome", outcome)
  table = results.write_results(runs, tmp_path / "grid")
  assert table.endswith("\n\n- no better than guessing algorithm=fedavg, seed=1\n")


def test_a_shared_program_gives_what_its_own_would(tmp_path):
  run(tmp_path / "both", "--sparsity=0.5,0.9", "--beta=1.1,1.3")
  run(tmp_path / "one", "--sparsity=0.9", "--beta=1.3")
  names = place(tmp_path / "both", "sparsity=0.9,beta=1.3"), place(tmp_path / "one", "run")
  first, second = ((name / "metrics.jsonl").read_text() for name in names)
  assert first == second


@pytest.mark.pictures
@pytest.mark.parametrize(
  "form",
  [
    "--algorithm=topk",
    pytest.param("--upload=changes_with_feedback", marks=pytest.mark.slow),
  ],
)
def test_runs_side_by_side_are_the_runs_alone(tmp_path, capsys, monkeypatch, form):
  monkeypatch.delenv("XLA_FLAGS")  # compiled as a user's are
  arguments = ["--sparsity=0.5,0.9", "--checkpoint_every=1", form]
  arguments += ["--shift_round=1", "--client_eval=true", "--mask_metrics_every=1"]
  tables = [run(tmp_path / mode, *arguments, mode=mode) for mode in sweep.MODES]
  output = capsys.readouterr().out
  assert output.count("2 runs by 1 compiled programs") == 2
  places = sorted(found.name for found in (tmp_path / "vmap").glob("sparsity*"))
  assert len(places) == 2
  for name in places:
    rows, expected = (
      read_metrics(tmp_path / mode / name / "metrics.jsonl") for mode in sweep.MODES
    )
    assert len(rows) == len(expected) == 2
    for row, other in zip(rows, expected, strict=True):
      assert row.keys() == other.keys()
      for column, value in other.items():
        assert value is None or row[column] == pytest.approx(value, rel=1e-4), column
      assert row["client_mask_iou"] is not None
      assert (row["client_accuracy_min"] is None) == (row["test_loss"] is None)
    assert (tmp_path / "vmap" / name / "curves.png").exists()
  assert tables[0].splitlines()[0] == tables[1].splitlines()[0]

  # Killed after round 1: the group goes on from its checkpoint.
  (group,) = (tmp_path / "vmap" / "side_by_side").iterdir()
  assert json.loads((group / "members.json").read_text()) == places
  shutil.rmtree(group / "checkpoints" / "00000002")
  before = {name: (tmp_path / "vmap" / name / "metrics.jsonl").read_text() for name in places}
  for name in places:
    (tmp_path / "vmap" / name / "summary.json").unlink()
  assert run(tmp_path / "vmap", *arguments, mode="vmap") == tables[1]
  assert "going on after round 1" in capsys.readouterr().out
  for name in places:
    assert (tmp_path / "vmap" / name / "metrics.jsonl").read_text() == before[name]


def test_data_that_vanishes_and_a_full_disk_end_a_sweep_that_can_go_on(
  tmp_path, capsys, monkeypatch
):
  rng = np.random.default_rng(0)
  path = tmp_path / "data.npz"
  arrays = dict(x=rng.normal(size=(200, 3)).astype(np.float32), y=rng.integers(0, 2, 200))
  np.savez(path, **arrays)
  values, runs = grid.read_grid(
    parse(f"--dataset=npz:{path}", "--seed=0,1", "--algorithm=fedavg", "--checkpoint_every=1")
  )
  directory = tmp_path / "grid"
  members.open_directory(directory, values, runs)
  train_loop = sweep.train_loop

  def then_vanish(members, *args):
    path.unlink()  # the run under way has read it
    return train_loop(members, *args)

  with monkeypatch.context() as patch:
    patch.setattr(sweep, "train_loop", then_vanish)
    with pytest.raises(SystemExit) as ended:
      sweep.finish(runs, directory, "sequential", results.write_results)
  assert ended.value.code == 2
  assert f"error: {path}: no such file" in capsys.readouterr().err
  first = place(directory, "seed=0") / "summary.json"
  kept = first.read_bytes()
  assert (first.parent / "checkpoints" / "00000002").is_dir()

  np.savez(path, **arrays)
  full = OSError(28, "No space left on device")
  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, "write", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(SystemExit) as ended:
      sweep.finish(runs, directory, "sequential", results.write_results)
  assert ended.value.code == 1
  assert "No space left on device" in capsys.readouterr().err
  sweep.finish(runs, directory, "sequential", results.write_results)
  assert first.read_bytes() == kept
  assert (place(directory, "seed=1") / "summary.json").exists()


def test_side_by_side_one_may_diverge(tmp_path):
  arguments = "--client_lr=0.1,1e30", "--algorithm=fedavg"
  table = run(tmp_path / "grid", *arguments, mode="vmap")
  summaries = [
    json.loads((place(tmp_path / "grid", f"client_lr={rate}") / "summary.json").read_text())
    for rate in ("0.1", "1e30")
  ]
  assert summaries[0]["test_accuracy"] > 0
  assert "4 sent what is not finite (a smaller --client_lr than 1e+30" in summaries[1]["diverged"]
  assert "1 of 1 diverged" in table

  # Killed after the last checkpoint, before the summaries: it is known from the rows.
  for summary in (tmp_path / "grid").glob("client_lr=*/summary.json"):
    summary.unlink()
  assert run(tmp_path / "grid", *arguments, mode="vmap") == table


def test_fifteen_runs_trace_the_round_once(tmp_path, monkeypatch):
  traced = []
  one_round = simulation.run_round

  def counted(*args):
    traced.append(args)
    return one_round(*args)

  monkeypatch.setattr(simulation, "run_round", counted)
  monkeypatch.setattr("experiments.run.loop.plot_curves", lambda *_: None)
  run(tmp_path / "one", "--algorithm=topk", "--sparsity=0.9", "--rounds=1")
  for_one, traced[:] = len(traced), []
  assert for_one > 0
  grid = "--sparsity=0.8,0.9,0.95", "--seed=0,1,2,3,4"
  run(tmp_path / "all", "--algorithm=topk", *grid, "--rounds=1")
  assert len(traced) == for_one
  assert len(list((tmp_path / "all").glob("*/summary.json"))) == 15


@pytest.mark.parametrize(
  ("mode", "arguments", "message"),
  [
    ("pmap", [], "--sweep_mode=pmap: must be one of sequential, vmap"),
    ("vmap", ["--data_placement=streamed"], "--data_placement=streamed: must be replicated"),
  ],
)
def test_a_mode_that_cannot_be_is_refused(mode, arguments, message):
  with pytest.raises(flags.ConfigError, match=message):
    sweep.check_mode(mode, grid.read_grid(parse(*arguments))[1])


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
