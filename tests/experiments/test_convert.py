"""experiments.convert: what is written is what was read; nothing is overwritten."""

import json
import re

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments import convert, flags
from sparsyfed_jax.data import sources
from sparsyfed_jax.data.readers import READERS, open_with

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A set in LEAF's files, whose test has a client of its own."""
  place = tmp_path_factory.mktemp("leaf")
  rng = np.random.default_rng(0)
  for part, names in (("train", "cab"), ("test", "ad")):
    data = {user: {"x": rng.random((3, 4)).tolist(), "y": ["cat", "owl", "dog"]} for user in names}
    content = {"users": list(names), "num_samples": [3] * len(names), "user_data": data}
    (place / part).mkdir()
    (place / part / "all.json").write_text(json.dumps(content))
  return f"leaf:{place}"


def run(*arguments):
  table = absl_flags.FlagValues()
  flags.define(table)
  convert.main(flags.parse_with_names(["convert", *map(str, arguments)], table), table)


def test_an_npz_has_the_examples_labels_and_clients(source, tmp_path, capsys):
  run(source, tmp_path / "own.npz")
  told = capsys.readouterr().out
  assert "9 training and 6 test examples of float32 (4,), 3 outputs, 3 clients and 1 that" in told
  assert "note:" not in told
  found, expected = (sources.load(name, KEY) for name in (f"npz:{tmp_path}/own.npz", source))
  for name in ("x_train", "y_train", "x_test", "y_test", "client_train", "client_test"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
  assert found.classes == expected.classes == ("cat", "dog", "owl")
  assert (found.num_clients, expected.num_clients) == (3, 3)
  assert found.client_test.tolist() == expected.client_test.tolist() == [0, 0, 0, 3, 3, 3]
  with np.load(tmp_path / "own.npz") as file:
    assert file["client_train"].tolist() == [*"cccaaabbb"]
    assert file["client_test_only"].tolist() == ["d"]


def test_a_folder_has_numbers_and_names(source, tmp_path):
  run(source, tmp_path / "own")
  opened = open_with(READERS["leaf"], source.removeprefix("leaf:"), KEY)
  data = opened.dataset
  arrays = {
    "examples": data.x_train,
    "labels": data.y_train,
    "clients": data.client_train,
    "test_examples": data.x_test,
    "test_labels": data.y_test,
    "test_clients": data.client_test,
  }
  files = {path.name for path in (tmp_path / "own").iterdir()}
  assert files == {"dataset.json", *(f"{name}.npy" for name in arrays)}
  for name, array in arrays.items():
    found = np.load(tmp_path / "own" / f"{name}.npy")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
  assert json.loads((tmp_path / "own" / "dataset.json").read_text()) == {
    "name": data.name,
    "classes": ["cat", "dog", "owl"],
    "num_clients": 3,
    "client_names": ["a", "b", "c", "d"],
    "format_version": 1,
  }


def test_a_folder_is_read_as_its_source(source, tmp_path, capsys):
  run(source, tmp_path / "own")
  opened = sources.open_source(f"folder:{tmp_path}/own", KEY)
  found, expected = opened.dataset, sources.load(source, KEY)
  assert opened.clients == ("a", "b", "c", "d")
  for name, value in expected._asdict().items():
    np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
  (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
  text = f"text:{tmp_path}/text.txt"
  run(text, tmp_path / "text", "--num_clients=3", "--sequence_length=8")
  reading = sources.READING._replace(num_clients=3, sequence_length=8)
  found = sources.load(f"folder:{tmp_path}/text", KEY)
  for name, value in sources.load(text, KEY, reading=reading)._asdict().items():
    np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_texts_and_other_sources_are_folders_too(tmp_path, capsys):
  (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
  run(f"text:{tmp_path}/text.txt", tmp_path / "text", "--num_clients=3", "--sequence_length=8")
  assert np.load(tmp_path / "text" / "labels.npy").shape[1] == 8
  assert np.load(tmp_path / "text" / "clients.npy").max() == 2
  run("digits", tmp_path / "digits")
  assert np.load(tmp_path / "digits" / "examples.npy").shape == (1438, 8, 8, 1)
  assert not (tmp_path / "digits" / "clients.npy").exists()
  capsys.readouterr()


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["digits"], "'digits': must be a data set and a file or folder to write"),
    (["digits", "{}/there.npz"], "there.npz: exists, must be new; nothing is overwritten"),
    (["digits", "{}/there"], "there: exists, must be new"),
    (["digits", "{}/no/own.npz"], "own.npz: must be in a folder that exists"),
    (["npz:{}/no.npz", "{}/own.npz"], "no.npz: no such file"),
    (["text:{}/text.txt", "{}/own.npz", "--num_clients=1"], "own.npz: must be a folder"),
    (["digits", "{}/own", "--image_size=4,4"], "--image_size=.*: must be left out"),
  ],
)
def test_one_line_and_nothing_is_left(tmp_path, capsys, arguments, message):
  (tmp_path / "there.npz").write_text("mine")
  (tmp_path / "there").mkdir()
  (tmp_path / "text.txt").write_text("to be or not to be\n" * 40)
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(SystemExit):
    run(*(argument.format(tmp_path) for argument in arguments))
  told = capsys.readouterr().err
  assert told.count("\n") == 1 and re.search(message, told)
  assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "there.npz").read_text() == "mine"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, source):
  def fail(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("sparsyfed_jax.io.arrays.blocks", fail)
  for out in ("own.npz", "own"):
    with pytest.raises(SystemExit):
      run(source, tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_its_help_has_the_flags_that_it_reads(capsys):
  told = convert.describe_flags()
  assert "--client_column" in told and "--image_size" in told and "--seed" in told
  assert "--rounds" not in told and "--sparsity" not in told and told.count("\n\n") == 0


def test_what_it_says_does_not_name_a_flag_that_it_has_not(tmp_path, capsys):
  for source in ("nothing", f"npz:{tmp_path}/no.npz", f"leaf:{tmp_path}/no"):
    with pytest.raises(SystemExit):
      run(source, tmp_path / "own")
    assert "--dataset" not in capsys.readouterr().err
