import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl.flags import FlagValues

from experiments import flags, train
from experiments.run import failures
from experiments.run.build import build
from sparsyfed_jax.data.batches import batch_rows
from sparsyfed_jax.data.sources import DataError
from sparsyfed_jax.io.writers import read_metrics
from tests.programs import Program

SMALL = flags.DEFAULTS._replace(
  model="mlp", rounds=5, eval_every=2, num_clients=20, clients_per_round=4, local_epochs=1
)


def run(directory, config):
  directory.mkdir()
  return train.run(flags.resolve(config), build(flags.resolve(config)), directory)


@pytest.mark.pictures
def test_a_run_leaves_its_record(tmp_path, capsys):
  summary = run(tmp_path / "run", SMALL)
  files = {path.name for path in (tmp_path / "run").iterdir()}
  assert {"config.json", "metrics.jsonl", "summary.json", "curves.png", "partition.png"} <= files

  rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
  assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
  contract = (
    "round train_loss test_accuracy test_loss global_sparsity prunable_sparsity client_regrowth"
    " server_regrowth uplink_bytes downlink_bytes client_lr"
  )
  assert all(set(contract.split()) <= row.keys() for row in rows)
  evaluated = [row["round"] for row in rows if row["test_accuracy"] is not None]
  assert evaluated == [2, 4, 5]

  written = json.loads((tmp_path / "run" / "summary.json").read_text())
  contract = (
    "test_accuracy test_loss rounds global_sparsity prunable_sparsity"
    " uplink_bytes_per_client_round downlink_bytes_per_client_round seconds_per_round"
    " compile_seconds device versions seed"
  )
  assert set(contract.split()) <= written.keys()
  assert written["test_accuracy"] == summary["test_accuracy"] == rows[-1]["test_accuracy"]
  # The way there is paid for: the mean lies above what the last, sparsest round sends.
  uplinks = [row["uplink_bytes"] for row in rows]
  assert written["uplink_bytes_per_client_round"] == pytest.approx(np.mean(uplinks))
  assert written["uplink_bytes_per_client_round"] > 1.2 * uplinks[-1]
  # The first model is dense but for its biases; names and shapes are sent too.
  assert rows[0]["downlink_bytes"] == pytest.approx(written["dense_bytes"], rel=0.02)

  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["sparsity_ramp_rounds"] == 2
  assert config["data"]["num_clients"] == 20
  assert "test accuracy" in capsys.readouterr().out


def test_a_run_is_decided_by_its_seed(tmp_path):
  first = run(tmp_path / "a", SMALL)
  again = run(tmp_path / "b", SMALL)
  other = run(tmp_path / "c", SMALL._replace(seed=1))
  assert first["test_loss"] == again["test_loss"]
  assert first["test_loss"] != other["test_loss"]
  rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in "ab"]
  assert rows[0] == rows[1]


def test_how_often_a_run_is_evaluated_changes_nothing_else(tmp_path):
  run(tmp_path / "a", SMALL._replace(algorithm="fedavg"))
  run(tmp_path / "b", SMALL._replace(algorithm="fedavg", eval_every=5))
  losses = [
    [row["train_loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in "ab"
  ]
  assert losses[0] == losses[1]


def test_a_diverging_run_says_so_and_keeps_its_rows(tmp_path):
  with pytest.raises(train.DivergedError, match="smaller --client_lr"):
    run(tmp_path / "run", SMALL._replace(client_lr=1e6, client_lr_final=1e6))
  assert read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_rounds_in_which_nobody_is_left_are_counted_and_the_run_goes_on(tmp_path):
  config = SMALL._replace(
    algorithm="topk", client_dropout=0.7, server_optimizer="momentum", rounds=6, seed=2
  )
  summary = run(tmp_path / "run", config)
  rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
  assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
  lost = [i for i, row in enumerate(rows) if row["clients"] == 0]
  assert lost and len(lost) < 6
  for i in lost:
    assert rows[i]["dropped_clients"] == 4 and rows[i]["train_loss"] is None
    assert rows[i]["round_uplink_bytes"] == 0 < rows[i]["round_downlink_bytes"]
    assert rows[i]["server_regrowth"] == 0 and rows[i]["mask_iou"] == 1
  assert np.isfinite(summary["test_loss"])


def test_when_nobody_ever_is_left_the_run_says_so(tmp_path):
  with pytest.raises(
    train.DivergedError, match=r"of 12 clients sampled 12 vanished .--client_drop"
  ):
    run(tmp_path / "run", SMALL._replace(client_dropout=0.999, rounds=3))
  assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3
  assert not (tmp_path / "run" / "summary.json").exists()


def test_uploads_that_stay_infinite_end_the_run():
  row = {"clients": 0, "excluded_clients": 4, "examples": 0, "train_loss": None, "round": 7}
  assert failures.failure([row] * 9, 0) is None
  vanished, fine = row | {"excluded_clients": 0}, row | {"clients": 1}
  assert failures.failure([row] * 9 + [fine] + [row] * 9, 0) is None
  for rows, before in (([row] * 10, 0), ([row], 9), ([vanished, row] * 10, 0)):
    with pytest.raises(train.DivergedError, match="the last 10 rounds is not finite"):
      raise failures.failure(rows, before)


def test_clients_may_vanish_and_straggle(tmp_path):
  summary = run(tmp_path / "run", SMALL._replace(client_dropout=0.3, straggler_fraction=0.5))
  rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
  assert sum(row["dropped_clients"] for row in rows) > 0
  assert all(row["clients"] == 4 - row["dropped_clients"] for row in rows)
  assert np.isfinite(summary["test_loss"])


def write_npz(path, num_examples=60, **changes):
  rng = np.random.default_rng(0)
  arrays = dict(
    x=rng.integers(0, 256, (num_examples, 8, 8, 1), dtype=np.uint8),
    y=rng.integers(0, 3, num_examples),
  )
  arrays |= changes
  np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
  return f"npz:{path}"


def test_an_empty_client_is_allowed_and_counted(tmp_path, capsys):
  clients = np.arange(60) % 10
  clients[clients == 7] = 8
  rng = np.random.default_rng(0)
  arrays = dict(
    x_train=rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8),
    y_train=rng.integers(0, 3, 60),
    client_train=clients,
    x_test=rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8),
    y_test=rng.integers(0, 3, 20),
    client_test=np.arange(20) % 10,
  )
  dataset = write_npz(tmp_path / "data.npz", x=None, y=None, **arrays)
  config = SMALL._replace(
    algorithm="fedavg", dataset=dataset, partition="natural", num_clients=None
  )
  summary = run(tmp_path / "run", config)
  assert summary["empty_clients"] == 1
  assert "10 clients (1 of them empty)" in capsys.readouterr().out
  rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
  assert all(row["clients"] <= 4 and np.isfinite(row["train_loss"]) for row in rows)


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    (dict(y=None), "y"),
    (dict(x=np.full((60, 8, 8, 1), np.nan, np.float32)), "x"),
    (dict(client=np.linspace(0, 1, 60)), "client"),
  ],
)
def test_a_bad_file_is_refused(tmp_path, changes, named):
  dataset = write_npz(tmp_path / "data.npz", **changes)
  with pytest.raises(DataError, match=rf"data\.npz.*\b{named}\b"):
    build(flags.resolve(SMALL._replace(dataset=dataset)))


def test_images_too_small_for_the_cnn_are_refused_with_an_alternative(tmp_path):
  x = np.zeros((60, 5, 5, 1), np.uint8)
  dataset = write_npz(tmp_path / "data.npz", x=x)
  with pytest.raises(flags.ConfigError, match=r"--model=cnn.*\(5, 5, 1\).*--model=mlp"):
    build(flags.resolve(SMALL._replace(dataset=dataset, model="cnn")))


def test_the_program_refuses_in_one_line_and_writes_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for argument in ("--sparsity=1.2", "--nosuch=1", "--rounds=ten", "stray"):
    with Program("experiments.train", argument) as program:
      _, errors = program.communicate()
    assert program.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert argument.removeprefix("--").partition("=")[0] in line
  assert not list(tmp_path.iterdir())


def test_the_program_does_not_overwrite_a_directory(tmp_path, monkeypatch, request):
  monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "notes.txt").write_text("mine")
  command = [sys.executable, "-m", "experiments.train", "--output_dir=run"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
  assert result.returncode == 2
  assert "--output_dir=run" in result.stderr
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_flags_that_the_method_does_not_read_are_noted_and_not_recorded(tmp_path):
  values = FlagValues()
  flags.define(values)
  values(["train", "--algorithm=fedavg", "--sparsity=0.9", "--rounds=3"])
  (note,) = flags.notes(flags.read(values), values)
  assert "--sparsity" in note and "fedavg" in note
  summary = run(tmp_path / "run", SMALL._replace(algorithm="fedavg"))
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["sparsity"] is None and config["beta"] is None
  assert summary["prunable_sparsity"] == 0


@pytest.mark.parametrize(
  ("given", "limit"),
  [
    (["--rounds=20"], 10),
    (["--rounds=22"], None),
    (["--rounds=22", "--fedtiny_update_every=11"], 11),
    (["--rounds=8", "--fedtiny_update_until=30"], 8),
    (["--rounds=20", "--fedtiny_update_until=0"], None),
  ],
)
def test_masks_that_are_never_readjusted_are_noted(given, limit):
  values = FlagValues()
  flags.define(values)
  values(["train", "--algorithm=fedtiny", *given])
  config = flags.resolve(flags.read(values))
  expected = (
    f"note: --fedtiny_update_every={config.fedtiny_update_every}: masks are never readjusted"
  )
  found = flags.notes(config, values)
  assert found == ([f"{expected}, which takes a number below {limit}"] if limit else [])


def test_every_preset_is_accepted(request):
  presets = sorted((request.config.rootpath / "experiments" / "presets").glob("*.flags"))
  assert presets
  for preset in presets:
    values = FlagValues()
    flags.define(values)
    flags.parse(["train", f"--flagfile={preset}"], values)
    flags.read(values)


def test_streamed_clients_may_differ_in_size_the_first_being_the_largest(tmp_path):
  dataset = write_npz(tmp_path / "data.npz", client=np.repeat(np.arange(6), [30, 6, 6, 6, 6, 6]))
  config = SMALL._replace(
    dataset=dataset,
    partition="natural",
    num_clients=None,
    algorithm="fedavg",
    data_placement="streamed",
    rounds=2,
  )
  assert np.isfinite(run(tmp_path / "run", config)["test_loss"])


def test_a_folder_streams_what_an_npz_file_gives(tmp_path):
  rng = np.random.default_rng(1)
  arrays = dict(
    x_train=rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8),
    y_train=np.arange(60) % 3,
    client_train=np.repeat(np.arange(7), [20, 11, 9, 8, 6, 5, 1]),
    x_test=rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
    y_test=np.arange(20) % 3,
  )
  np.savez(tmp_path / "data.npz", **arrays)
  files = dict(x_train="examples", y_train="labels", client_train="clients")
  files |= dict(x_test="test_examples", y_test="test_labels")
  (tmp_path / "folder").mkdir()
  for name, array in arrays.items():
    np.save(tmp_path / "folder" / f"{files[name]}.npy", array)
  (tmp_path / "folder" / "dataset.json").write_text('{"format_version": 1, "name": "toy"}')
  config = SMALL._replace(algorithm="fedavg", partition="natural", num_clients=None, rounds=3)
  rows = []
  for form, placement in (("npz:data.npz", "replicated"), ("folder:folder", "streamed")):
    kind, _, name = form.partition(":")
    changed = config._replace(dataset=f"{kind}:{tmp_path / name}", data_placement=placement)
    run(tmp_path / placement, changed)
    found = read_metrics(tmp_path / placement / "metrics.jsonl")
    rows.append([{name: row[name] for name in row if "seconds" not in name} for row in found])
  assert rows[0] == rows[1] and rows[0][0]["train_loss"] > 0


@pytest.mark.parametrize("placement", ["streamed", "sharded"])
def test_clients_may_become_larger_in_a_shift(tmp_path, placement):
  config = SMALL._replace(
    dataset=write_npz(tmp_path / "data.npz"),
    partition="dirichlet_per_class",
    dirichlet_alpha=100.0,
    num_clients=6,
    algorithm="fedavg",
    data_placement=placement,
    rounds=2,
    eval_every=1,
    shift_round=1,
    shift_kind="resplit",
    shift_dirichlet_alpha=0.1,
  )
  experiment = build(flags.resolve(config))
  sizes = [max(np.asarray(one.sizes)) for one in (experiment.federation, experiment.shifted)]
  assert sizes[1] > sizes[0]
  shapes = [jax.tree.map(np.shape, one) for one in (experiment.federation, experiment.shifted)]
  assert shapes[0] == shapes[1]
  assert np.isfinite(run(tmp_path / "run", config)["test_loss"])


def test_examples_stay_on_the_device_as_they_are_stored():
  experiment = build(flags.resolve(SMALL))
  assert experiment.federation.x.dtype == np.uint8
  assert isinstance(experiment.federation.x, jax.Array)


def test_batches_are_not_padded_beyond_the_largest_client(tmp_path):
  # 71 or 72 examples a client, in batches of up to 80 rows.
  rows = []
  for batch_size in (80, 20_000):
    config = SMALL._replace(algorithm="fedavg", batch_size=batch_size, rounds=2)
    run(tmp_path / str(batch_size), config)
    rows.append(read_metrics(tmp_path / str(batch_size) / "metrics.jsonl"))
  assert rows[0] == rows[1]
  sizes = np.array([3, 0, 15])
  assert [batch_rows(size, sizes) for size in (1, 15, 16, 17, 20_000)] == [1, 15, 16, 16, 16]
  assert batch_rows(20_000, np.array([0, 0])) == 16
