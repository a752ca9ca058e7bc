"""Splits: by a file, drawn without training, and the one that is taken where none is asked for."""

import json

import numpy as np
import pytest
from absl import flags as absl_flags

from experiments import flags, partition, train
from experiments.run import begun
from experiments.run.build import build
from experiments.run.checks import check
from experiments.run.clients import client_scores
from experiments.run.data import load
from experiments.run.defaults import with_partition
from experiments.sweeps.grid import Run, name_of
from sparsyfed_jax.types import Mean

TINY = flags.DEFAULTS._replace(
  model="mlp", algorithm="fedavg", num_clients=4, clients_per_round=2, local_epochs=1, rounds=2,
  eval_every=2, num_devices=1,
)  # fmt: skip


def resolved(**changes):
  config = TINY._replace(**changes)
  check(config)
  return flags.resolve(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  x, y = np.arange(40, dtype=np.float32).reshape(20, 2), np.arange(20) % 2
  np.savez(folder / "own.npz", x=x, y=y, client=np.arange(20) % 5)
  np.savez(folder / "numbers.npz", x=x, y=x[:, 0], client=np.arange(20) % 5)
  np.savez(folder / "plain.npz", x=x, y=x[:, 0])
  (folder / "text.txt").write_text("to be or not to be\n" * 110)
  users = {
    part: {
      "users": ["a", "b"],
      "num_samples": [2, 2],
      "user_data": {user: {"x": x[:2].tolist(), "y": [0, 1]} for user in "ab"},
    }
    for part in ("train", "test")
  }
  users["test"]["users"] = ["b", "new"]
  users["test"]["user_data"]["new"] = users["test"]["user_data"].pop("a")
  for part, content in users.items():
    (folder / part).mkdir()
    (folder / part / "all.json").write_text(json.dumps(content))
  return folder


def own(name, place, **changes):
  task = {"numbers": "regression", "plain": "regression", "text": "next_token"}.get(name)
  file = {"text": "text:{}/text.txt", "leaf": "leaf:{}"}.get(name, f"npz:{{}}/{name}.npz")
  return dict(dataset=file.format(place), task=task, num_clients=None) | changes


@pytest.mark.parametrize(
  "name, changes, expected",
  [
    ("own", {}, "dirichlet"),  # as ever, though there are clients
    ("numbers", {}, "natural"),
    ("numbers", dict(num_clients=3), "iid"),
    ("plain", {}, "iid"),
    ("text", dict(model="lstm", sequence_length=8), "natural"),
    ("leaf", {}, "natural"),
    ("leaf", dict(num_clients=2), "natural"),
    ("leaf", dict(num_clients=3), "dirichlet"),
    ("leaf", dict(shift_round=1), "dirichlet"),
    ("leaf", dict(partition="iid"), "iid"),
  ],
)
def test_the_split_that_suits_the_data(place, name, changes, expected):
  config = resolved(**own(name, place, **changes))
  assert with_partition(config, load(config)).partition == expected


def test_a_split_that_the_data_has_anyway_makes_no_other_run(place):
  def name(**changes):
    return name_of(Run({}, resolved(**changes)))

  assert name() == name(partition="dirichlet") != name(partition="iid")
  leaf = own("leaf", place)
  assert len({name(**leaf, partition=chosen) for chosen in (None, "dirichlet", "natural")}) == 3


def test_clients_that_only_test_are_told_apart(place):
  experiment = build(resolved(**own("leaf", place, client_eval=True)))
  owners = experiment.test_owners.before
  assert experiment.facts["num_clients"] == 2 and owners.tolist() == [1, 1, 2, 2]
  hits = Mean(np.array([1.0, 0.0, 1.0, 1.0]), np.ones(4))
  assert client_scores(hits, owners, 2) == [None, 0.5, 1.0]
  assert any("clients with test examples alone: 1;" in line for line in experiment.remarks)


def test_it_is_recorded_and_a_run_goes_on_with_it(place, tmp_path):
  config = resolved(**own("numbers", place), output_dir=str(tmp_path))
  experiment = build(config)
  train.run(config, experiment, tmp_path)
  recorded = json.loads((tmp_path / "config.json").read_text())
  assert recorded["partition"] == recorded["data"]["partition"] == "natural"
  begun.check_flags(recorded, config, tmp_path)
  begun.check_data(recorded, config, experiment.facts, tmp_path)
  with pytest.raises(flags.ConfigError, match="--partition=iid: must be natural to go on"):
    begun.check_flags(recorded, config._replace(partition="iid"), tmp_path)
  others = experiment.facts | {"partition": "iid"}
  with pytest.raises(flags.ConfigError, match="--partition=iid: partition is iid, not the natural"):
    begun.check_data(recorded, config, others, tmp_path)


@pytest.mark.pictures
def test_a_split_is_drawn_without_training_and_read_back(tmp_path, capsys):
  config = resolved(dirichlet_alpha=0.1, output_dir=str(tmp_path / "split"))
  partition.draw(config)
  assert {path.name for path in (tmp_path / "split").iterdir()} == {"partition.png", "clients.csv"}
  assert (tmp_path / "split" / "partition.png").stat().st_size > 1000
  assert "4 clients, 1,438 examples, 359 to 360 a client" in capsys.readouterr().out
  again = build(resolved(partition=f"file:{tmp_path}/split/clients.csv", num_clients=None))
  expected = build(config)
  assert again.facts["split_sha256"] == expected.facts["split_sha256"]
  assert again.split[0].counts.tolist() == expected.split[0].counts.tolist()
  assert again.split[0].title == "digits  ·  clients.csv"
  with pytest.raises(FileExistsError, match="is not empty"):
    partition.draw(config)


@pytest.mark.pictures
def test_clients_of_the_data_are_named_and_numbered(place, tmp_path, capsys):
  partition.draw(resolved(**own("leaf", place), output_dir=str(tmp_path / "split")))
  rows = (tmp_path / "split" / "clients.csv").read_text().split()
  assert rows == ["example,client,class,name", "0,0,0,a", "1,0,1,a", "2,1,0,b", "3,1,1,b"]
  again = dict(partition=f"file:{tmp_path}/split/clients.csv", num_clients=None)
  expected, found = (build(resolved(**own("leaf", place, **more))) for more in ({}, again))
  assert found.facts["split_sha256"] == expected.facts["split_sha256"]


@pytest.mark.pictures
def test_both_splits_of_a_shift_are_drawn(tmp_path):
  config = resolved(shift_round=1, output_dir=str(tmp_path / "split"))
  partition.draw(config)
  names = {"partition.png", "clients.csv", "clients_after.csv"}
  assert {path.name for path in (tmp_path / "split").iterdir()} == names


def test_a_file_that_deals_other_examples_is_one_line(tmp_path):
  (tmp_path / "few.csv").write_text("example,client\n0,a\n")
  flag = f"file:{tmp_path}/few.csv"
  with pytest.raises(flags.ConfigError, match=f"--partition={flag}: .*example 1 is missing"):
    build(resolved(partition=flag))
  rows = "\n".join(f"{i},{i % 3}" for i in range(1438))
  (tmp_path / "few.csv").write_text(f"example,client\n{rows}")
  with pytest.raises(flags.ConfigError, match="--num_clients=4: must be left out or 3, the number"):
    build(resolved(partition=flag))


def test_a_split_may_have_fewer_clients_than_a_round_by_default(tmp_path):
  values = absl_flags.FlagValues()
  flags.define(values)
  arguments = ["partition", "--num_clients=3", f"--output_dir={tmp_path}/split"]
  partition.main(flags.parse_or_raise(arguments, values) or arguments[:1], values)
  rows = (tmp_path / "split" / "clients.csv").read_text().splitlines()[1:]
  assert {row.split(",")[1] for row in rows} == {"0", "1", "2"}


def test_a_split_of_other_examples_than_the_seeds_is_refused(tmp_path):
  directory = partition.draw(resolved(output_dir=str(tmp_path / "split")))
  flag = f"file:{directory}/clients.csv"
  assert build(resolved(partition=flag)).facts["num_clients"] == 4
  with pytest.raises(flags.ConfigError, match="is of class .*; another --seed draws"):
    build(resolved(partition=flag, seed=1))


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(partition="file:"), "--partition=file:: must be one of dirichlet, .*file:CLIENTS.csv"),
    (dict(partition="file:a", shift_round=1), "--shift_round=1: must be left out with"),
    (dict(image_size=(8, 8)), "--image_size=.*: must be left out with --dataset=digits"),
    (
      dict(dataset="images:x", image_size=(8,)),
      "--image_size=.*: must be HEIGHT,WIDTH, two whole numbers",
    ),
    (dict(dataset="speech:x", task="next_token"), "--task=next_token: must be another"),
  ],
)
def test_flags_that_do_not_fit(changes, message):
  with pytest.raises(flags.ConfigError, match=message):
    resolved(**changes)
