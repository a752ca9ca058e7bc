"""LEAF: files as its scripts write them are read to the last example; one line for a bad one."""

import json
import shutil

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import clients, sources
from sparsyfed_jax.data.readers import READERS, open_with
from tests.data.readers.places import check_in_place

KEY = jax.random.key(0)


def femnist(names, rng, sizes=(3, 1, 2)):
  """A file of FEMNIST: 784 floats with a background of 1, labels below 62."""
  data = {
    name: {"x": rng.random((n, 784)).round(4).tolist(), "y": rng.integers(0, 62, n).tolist()}
    for name, n in zip(names, sizes, strict=False)
  }
  counts = [len(own["y"]) for own in data.values()]
  return {"users": list(data), "num_samples": counts, "user_data": data}


def save(place, name, content):
  place.mkdir(parents=True, exist_ok=True)
  (place / name).write_text(json.dumps(content))


@pytest.fixture
def written(tmp_path):
  """By user: two files of training users, one of others, in the folders of LEAF."""
  rng = np.random.default_rng(0)
  files = {
    ("train", "all_data_0_train_9.json"): femnist(["f2_11", "f0_01"], rng),
    ("train", "all_data_1_train_9.json"): femnist(["f1_42"], rng),
    ("test", "all_data_0_test_9.json"): femnist(["f1_42", "f7_07", "f3_05"], rng),
  }
  for (part, name), content in files.items():
    save(tmp_path / "femnist" / "data" / part, name, content)
  return tmp_path / "femnist", files


def test_images_are_read_to_the_last_example(written):
  path, files = written
  opened = open_with(READERS["leaf"], str(path), KEY)
  data = opened.dataset
  assert opened.clients == ("f0_01", "f1_42", "f2_11", "f3_05", "f7_07")
  assert (data.name, data.num_clients, data.x_train.dtype) == ("femnist", 3, np.float32)
  assert data.x_train.shape == (7, 28, 28, 1) and data.x_test.shape == (6, 28, 28, 1)
  assert (data.mean, data.std) == (0, 1)
  counted = 0
  for part, x, y, owners in (
    ("train", data.x_train, data.y_train, data.client_train),
    ("test", data.x_test, data.y_test, data.client_test),
  ):
    for (where, _), content in files.items():
      for user, own in content["user_data"].items() if where == part else ():
        mine = owners == opened.clients.index(user)
        np.testing.assert_array_equal(x[mine].reshape(-1, 784), np.array(own["x"], np.float32))
        assert [data.classes[i] for i in y[mine]] == own["y"]
        counted += len(own["y"])
  assert counted == len(data.y_train) + len(data.y_test) == 13
  assert clients.natural(data).sizes.tolist() == [1, 3, 3]
  check_in_place(opened, "leaf", path)


def test_a_user_of_one_example_whom_the_splitter_empties_is_no_client(written):
  path, _ = written
  expected = sources.load(f"leaf:{path}", KEY)
  edit(lambda content: content["user_data"].update(f5_55={"x": [], "y": []}))(path)
  found = sources.load(f"leaf:{path}", KEY)
  assert found.num_clients == expected.num_clients
  np.testing.assert_array_equal(found.client_test, expected.client_test)


def test_windows_of_text_predict_the_character_behind_them(tmp_path):
  rows = {"HAMLET": ["to be or", "o be or ", " be or n"], "OPHELIA": ["my lord,"]}
  for part in ("train", "test"):
    data = {user: {"x": x, "y": ["n", "o", "o"][: len(x)]} for user, x in rows.items()}
    counts = [len(x) for x in rows.values()]
    content = {"users": list(rows), "num_samples": counts, "user_data": data}
    save(tmp_path / "play" / part, "all.json", content)
  data = sources.load(f"leaf:{tmp_path}/play", KEY, task="next_token")
  assert data.kind == "next_token" and data.x_train.shape == data.y_train.shape == (4, 8)
  decode = lambda tokens: "".join(data.classes[i] for i in tokens)  # noqa: E731
  assert [decode(x) for x in data.x_train] == [*rows["HAMLET"], *rows["OPHELIA"]]
  assert (data.y_train[:, :-1] == -1).all() and decode(data.y_train[:, -1]) == "noon"
  assert data.client_train.tolist() == data.client_test.tolist() == [0, 0, 0, 1]
  with pytest.raises(sources.DataError, match="--task=classification: must be next_token"):
    sources.load(f"leaf:{tmp_path}/play", KEY, task="classification")


def edit(change):
  def broken(path):
    file = path / "data" / "train" / "all_data_0_train_9.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))

  return broken


def set_x(value):
  return edit(lambda content: content["user_data"]["f0_01"].__setitem__("x", value))


FIRST = "all_data_0_train_9.json"
BROKEN = {
  "truncated": (
    lambda path: (path / "data/train" / FIRST).write_text('{"users": ["f2'),
    f"{FIRST}: cannot be read .*must be a file of LEAF",
  ),
  "a list": (
    lambda path: (path / "data/train" / FIRST).write_text("[]"),
    f"{FIRST}: holds a list, must be",
  ),
  "no users": (edit(lambda c: c.pop("users")), f"{FIRST}: users is missing"),
  "no x": (edit(lambda c: c["user_data"]["f0_01"].pop("x")), "client 'f0_01': x is missing"),
  "unknown user": (edit(lambda c: c["users"].append("f9")), "num_samples: holds 2 .* must be 3"),
  "other users": (
    edit(lambda c: c.update(users=["f2_11", "f9"])),
    "users: must be in user_data, each once; differs in f9",
  ),
  "not a user": (
    edit(lambda c: (c["users"].pop(), c["num_samples"].pop())),
    "client 'f0_01': must be among users, as it has examples",
  ),
  "a user twice": (
    edit(lambda c: c.update(users=["f2_11", "f2_11"])),
    "users: must be in user_data, each once; differs in one twice",
  ),
  "counts": (
    edit(lambda c: c.update(num_samples=[3, 4])),
    "client 'f0_01': num_samples is 4, must be 1",
  ),
  "labels": (
    edit(lambda c: c["user_data"]["f2_11"]["y"].pop()),
    "client 'f2_11': y: holds 2 labels, must be 3",
  ),
  "empty": (
    edit(lambda c: (c["user_data"].update(f0_01={"x": [], "y": []}), c.update(num_samples=[3, 0]))),
    "client 'f0_01': has no examples",
  ),
  "other size": (set_x([[0.5] * 3]), r"client 'f0_01': x: holds examples of shape \(3,\) and"),
  "ragged": (
    edit(lambda c: c["user_data"]["f2_11"]["x"][1].pop()),
    "client 'f2_11': x: must be a list of examples of one size",
  ),
  "NaN": (set_x([[float("nan")] * 784]), "client 'f0_01': x: holds NaN or infinity in example 0"),
  "twice": (
    lambda path: shutil.copy(path / "data/train" / FIRST, path / "data/train/b.json"),
    f"b.json: client 'f2_11': is in {FIRST} too",
  ),
  "no test": (
    lambda path: [file.unlink() for file in (path / "data/test").iterdir()],
    "test: holds no .json file",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_for_a_bad_file(written, name):
  path, _ = written
  break_it, message = BROKEN[name]
  break_it(path)
  with pytest.raises(sources.DataError, match=message) as caught:
    sources.load(f"leaf:{path}", KEY)
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)
