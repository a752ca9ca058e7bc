"""Folders of .npy files: read as the .npz file of the same arrays, and left where they are."""

import json
import mmap
import pathlib

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import clients, mapped, sources
from sparsyfed_jax.data.dataset import DataError

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
FILES = {
  "x_train": "examples",
  "y_train": "labels",
  "client_train": "clients",
  "x_test": "test_examples",
  "y_test": "test_labels",
  "client_test": "test_clients",
}
IMAGES = {
  "x_train": RNG.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8),
  "y_train": np.arange(12) % 3,
  "client_train": np.arange(12) // 5,
  "x_test": RNG.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8),
  "y_test": np.arange(5) % 3,
  "client_test": np.arange(5) % 4,
}


@pytest.fixture
def write(tmp_path):
  """Writes a folder; a change to None leaves a file out."""

  def write(arrays=IMAGES, classes=(), told=None, **changes):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, array in {**arrays, **changes}.items():
      if array is not None:
        np.save(folder / f"{FILES[name]}.npy", array)
    known = {"format_version": 1, "name": "toy", "classes": list(classes)} | (told or {})
    (folder / "dataset.json").write_text(json.dumps(known))
    return folder

  return write


def load(folder, task=""):
  return sources.load(f"folder:{folder}", KEY, task=task)


def assert_same(found, expected):
  for name, value, wanted in zip(found._fields, found, expected, strict=True):
    if isinstance(wanted, np.ndarray):
      assert value.dtype == wanted.dtype, name
      np.testing.assert_array_equal(value, wanted, err_msg=name)
    else:
      assert value == wanted or name == "name", name


def file_of(x):
  """The mapped file that an array is a view of; None of one in memory."""
  while isinstance(x, np.ndarray):
    x = x.base
  return x if isinstance(x, mmap.mmap) else None


SPLITS = [
  dict(),
  dict(client_test=None),
  dict(client_train=None, client_test=None),
  dict(x_train=IMAGES["x_train"] / np.float32(255), x_test=IMAGES["x_test"] / np.float32(255)),
  dict(x_train=IMAGES["x_train"][..., 0], x_test=IMAGES["x_test"][..., 0]),
  dict(x_train=IMAGES["x_train"] * np.int64(300), x_test=IMAGES["x_test"] * np.int64(300)),
  dict(y_train=np.arange(12) % 3 == 0, y_test=np.arange(5) % 2 == 0),
]


@pytest.mark.parametrize("changes", SPLITS)
def test_is_what_an_npz_file_is(write, tmp_path, changes):
  arrays = {name: array for name, array in {**IMAGES, **changes}.items() if array is not None}
  np.savez(tmp_path / "toy.npz", **arrays)
  found = load(write(**changes))
  assert_same(found, sources.npz(str(tmp_path / "toy.npz"), KEY))
  assert found.name == "toy"
  assert file_of(found.x_train) is not None or found.x_train.dtype != arrays["x_train"].dtype


def test_without_a_test_set_it_is_split_like_an_npz_file(write, tmp_path):
  arrays = {"x": IMAGES["x_train"], "y": IMAGES["y_train"], "client": IMAGES["client_train"]}
  np.savez(tmp_path / "toy.npz", **arrays)
  found = load(write(x_test=None, y_test=None, client_test=None))
  assert_same(found, sources.npz(str(tmp_path / "toy.npz"), KEY))


def test_clients_from_a_number_on_only_test(write):
  data = load(write(told={"num_clients": 3}))
  assert data.num_clients == 3 and data.client_train.max() == 2
  assert data.client_test.tolist() == IMAGES["client_test"].tolist()
  assert data.client_train.dtype == data.client_test.dtype == np.int32


def test_classes_that_do_not_occur_count(write):
  data = load(write(classes=["cat", "dog", "hen", "owl"], y_test=np.full(5, 2)))
  assert (data.num_classes, data.classes) == (4, ("cat", "dog", "hen", "owl"))
  assert data.y_train.tolist() == IMAGES["y_train"].tolist() and data.y_test.tolist() == [2] * 5
  assert data.y_train.dtype == data.y_test.dtype == np.int32


def test_other_tasks(write, tmp_path):
  numbers = dict(y_train=RNG.normal(size=(12, 2)), y_test=RNG.normal(size=(5, 2)))
  labels = dict(y_train=RNG.random((12, 3)) < 0.5, y_test=RNG.random((5, 3)) < 0.5)
  for changes, task in ((numbers, "regression"), (labels, "multi_label")):
    folder = write(**changes)
    np.savez(tmp_path / "toy.npz", **{**IMAGES, **changes})
    assert_same(load(folder), sources.npz(str(tmp_path / "toy.npz"), KEY, task))
    assert load(folder).kind == load(folder, task).kind == task
    folder.rename(tmp_path / task)


def test_tokens(write):
  text = clients.text("one two three four\nfive six\n" * 9, 2, sequence_length=8, name="toy")
  arrays = {name: getattr(text, name) for name in FILES}
  found = load(write(arrays, classes=text.classes))
  assert found.kind == "next_token"
  assert_same(found, text)


def test_what_was_read_of_a_file_is_let_go_of(tmp_path):
  np.save(tmp_path / "x.npy", np.ones((64, 2**20), np.uint8))
  x = np.load(tmp_path / "x.npy", mmap_mode="r")

  def held():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if "RssFile" in line)) * 1024

  before = held()
  assert x.sum() == 2**26
  assert held() - before > 2**25
  mapped.release(x[3:].reshape(-1))
  assert held() - before < 2**25
  assert mapped.ends(x) == (1, 1)
  assert held() - before < 2**25
  mapped.release(np.ones(3))  # nothing to do


def test_blocks_are_the_whole_array(monkeypatch):
  monkeypatch.setattr(mapped, "_BLOCK_BYTES", 50)
  x = np.arange(60, dtype=np.float32).reshape(15, 4)
  cut = list(mapped.blocks(x))
  assert [len(block) for block in cut] == [3] * 5
  np.testing.assert_array_equal(np.concatenate(cut), x)
  assert mapped.ends(x) == (0, 59)
  for step in (1, 2, 7, 12, 13, 100):
    assert mapped.every(x, step).tolist() == x.reshape(-1)[::step].tolist()
  assert not list(mapped.blocks(x[:0])) and len(list(mapped.blocks(np.zeros((2, 99))))) == 2


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (5, 7, 2)])
def test_zeros_are_aligned(shape):
  made = mapped.zeros(shape, np.int16)
  assert made.shape == shape and made.dtype == np.int16 and not made.any()
  assert not made.size or made.ctypes.data % 64 == 0


BROKEN = {
  "no examples": (dict(x_train=None), r"examples\.npy: no such file"),
  "no labels": (dict(y_train=None), r"labels\.npy: no such file"),
  "no test labels": (dict(y_test=None), r"has no test_labels\.npy"),
  "no test examples": (dict(x_test=None), r"has no test_examples\.npy"),
  "clients of no test": (dict(x_test=None, y_test=None), r"test_clients\.npy: must come with"),
  "fewer labels": (dict(y_train=np.zeros(11, int)), r"labels\.npy: holds 11 labels, must be 12"),
  "fewer clients": (dict(client_train=np.zeros(9, int)), r" clients\.npy: holds 9 client ids"),
  "another shape": (dict(x_test=np.zeros((5, 6, 6, 1), np.uint8)), r"test_examples\.npy: examples"),
  "NaN": (dict(x_train=np.full((12, 3), np.nan)), r" examples\.npy: holds NaN or infinity in 12"),
  "objects": (dict(y_train=np.array([{}] * 12)), r"labels\.npy: is no \.npy file"),
  "a vector": (dict(x_train=np.zeros(12)), r" examples\.npy: has shape \(12,\)"),
  "empty": (dict(x_train=np.zeros((0, 3))), r" examples\.npy: has shape \(0, 3\), is empty"),
  "fractions": (dict(client_train=np.linspace(0, 1, 12)), r" clients\.npy: is float64"),
  "version": (dict(told={"format_version": 2}), r"dataset\.json: format_version: is 2, must be 1"),
  "name": (dict(told={"name": 7}), r"dataset\.json: name: is 7, must be a text"),
  "no clients": (dict(told={"num_clients": 0}), r"dataset\.json: num_clients: is 0, must be a"),
  "few names": (
    dict(told={"num_clients": 3, "client_names": list("abc")}),
    r"dataset\.json: client_names: are 3, must be 4, one a client",
  ),
  "no names": (dict(told={"client_names": {"a": 0}}), r"client_names: must be a list of texts or"),
  "few clients": (dict(told={"num_clients": 2}), r"/clients\.npy: holds 0 to 2, must be 0 to 1"),
  "classes": (dict(told={"classes": "ab"}), r"dataset\.json: classes: must be a list"),
  "one class twice": (dict(classes=["a", "a", "b"]), r"dataset\.json: classes: must be a list"),
  "few classes": (dict(classes=["a", "b"]), r"/labels\.npy: holds 0 to 2, must be 0 to 1"),
  "names as labels": (
    dict(classes=["a", "b"], y_train=np.array(["a", "b"] * 6), y_test=np.array(["a"] * 5)),
    r"/labels\.npy: holds a to b, must be 0 to 1",
  ),
  "tokens of no name": (
    dict(x_train=np.ones((12, 4), int), y_train=np.ones((12, 4), int)),
    r"dataset\.json: classes: must name the tokens",
  ),
  "tokens beyond": (
    dict(
      classes=["a", "b"],
      x_train=np.full((12, 4), 2),
      y_train=np.ones((12, 4), int),
      x_test=np.ones((5, 4), int),
      y_test=np.ones((5, 4), int),
    ),
    r"/examples\.npy: holds 2 to 2, must be 0 to 1",
  ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_in_a_line(write, name):
  changes, message = BROKEN[name]
  with pytest.raises(DataError, match=message) as caught:
    load(write(**changes))
  assert "\n" not in str(caught.value)


def test_what_is_no_folder_or_no_array(write, tmp_path):
  with pytest.raises(DataError, match="missing: no such folder"):
    load(tmp_path / "missing")
  folder = write()
  content = (folder / "examples.npy").read_bytes()
  (folder / "examples.npy").write_bytes(content[:300])
  with pytest.raises(DataError, match=r"examples\.npy: is no \.npy file or was cut short"):
    load(folder)
  (folder / "dataset.json").write_text("{")
  with pytest.raises(DataError, match=r"dataset\.json: cannot be read"):
    load(folder)
  (folder / "dataset.json").unlink()
  with pytest.raises(DataError, match=r"dataset\.json: no such file"):
    load(folder)


def test_what_was_changed_of_a_map_that_is_copied_on_write_stays(tmp_path):
  path, y = tmp_path / "x.npy", np.arange(200) % 3
  stored = RNG.normal(50, 20, (200, 200)).astype(np.float32)
  np.save(path, stored)
  x = np.load(path, mmap_mode="c")
  x -= 50
  x /= 20
  expected = (stored - np.float32(50)) / np.float32(20)
  dataset = clients.from_arrays(x, y, x[:40], y[:40])
  assert (dataset.mean, dataset.std) == (0, 1)
  np.testing.assert_array_equal(dataset.x_train, expected)
  np.testing.assert_array_equal(x, expected)
