"""TensorFlow Federated's HDF5 and SQLite: clients to the last example; one line for a bad file."""

import sqlite3

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import sources
from sparsyfed_jax.data.readers import READERS, open_with, tf_example
from tests.data.readers.places import check_in_place
from tests.data.readers.protos import serialised

KEY = jax.random.key(0)
# What tf.train.Example of TensorFlow 2.21 serialises: {"label": [7, -1], "pixels": [1.0, 0.5],
# "word": [b"yes"]}.
REAL = (
  "0a430a180a056c6162656c120f1a0d0a0b07ffffffffffffffffff010a160a06706978656c73"
  "120c120a0a080000803f0000003f0a0f0a04776f726412070a050a03796573"
)
SIZES = {"train": {"f0001_10": 2, "f0000_14": 3, "f2": 1}, "test": {"f0001_10": 1, "f9": 2}}


def digits(split):
  """Clients with their pixels and labels."""
  rng = np.random.default_rng(len(split))
  return {
    name: (rng.random((n, 28, 28), np.float32), rng.integers(0, 10, n))
    for name, n in SIZES[split].items()
  }


def save_sqlite(path, sets=("digits_only_", "all_"), example=None):
  """Writes the tables as TensorFlow Federated's files have them."""
  link = sqlite3.connect(path)
  link.execute(
    "CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL,"
    " serialized_example_proto BLOB NOT NULL)"
  )
  link.execute(
    "CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL,"
    " num_examples INTEGER NOT NULL)"
  )
  for prefix in sets:
    for part in SIZES:
      for name, (x, y) in digits(part).items():
        split = f"{prefix}{part}"
        link.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", (name, split, len(y)))
        for image, label in zip(x, y.tolist(), strict=True):
          row = serialised(label=[label], pixels=image.ravel().tolist())
          link.execute("INSERT INTO examples VALUES (?, ?, ?)", (split, name, row))
  link.commit()
  link.close()


def save_hdf5(folder, content=digits, name="fed_emnist_digitsonly", key="pixels"):
  h5py = pytest.importorskip("h5py", reason="needs pip install '.[readers]'")
  for part in SIZES:
    with h5py.File(folder / f"{name}_{part}.h5", "w") as file:
      for client, (x, y) in content(part).items():
        file[f"examples/{client}/{key}"] = x
        if y is not None:
          file[f"examples/{client}/label"] = y.astype(np.int32)


def check_digits(opened):
  data = opened.dataset
  assert opened.clients == ("f0000_14", "f0001_10", "f2", "f9") and data.num_clients == 3
  assert data.x_train.shape == (6, 28, 28, 1) and data.x_test.shape == (3, 28, 28, 1)
  for part, x, y, owners in (
    ("train", data.x_train, data.y_train, data.client_train),
    ("test", data.x_test, data.y_test, data.client_test),
  ):
    for client, (pixels, labels) in digits(part).items():
      mine = owners == opened.clients.index(client)
      np.testing.assert_array_equal(x[mine][..., 0], pixels)
      assert [data.classes[i] for i in y[mine]] == labels.tolist()
    assert len(y) == sum(SIZES[part].values())


def test_sqlite_is_read_to_the_last_example(tmp_path):
  path = tmp_path / "emnist_all.sqlite"
  save_sqlite(path)
  opened = open_with(READERS["tff"], f"{path}:digits_only", KEY)
  check_digits(opened)
  check_in_place(opened, "tff", f"{path}:digits_only")
  assert opened.dataset.name == "emnist_all_digits_only"
  with pytest.raises(sources.DataError, match=f"must name one of its sets: {path}:digits_only, "):
    sources.load(f"tff:{path}", KEY)
  save_sqlite(tmp_path / "cifar.sqlite", sets=("",))
  check_digits(open_with(READERS["tff"], str(tmp_path / "cifar.sqlite"), KEY))


def test_hdf5_is_read_to_the_last_example(tmp_path):
  save_hdf5(tmp_path)
  for path in (tmp_path, tmp_path / "fed_emnist_digitsonly_train.h5"):
    opened = open_with(READERS["tff"], str(path), KEY)
    check_digits(opened)
    check_in_place(opened, "tff", path)


def test_snippets_become_sequences_of_their_clients(tmp_path):
  texts = {"HAMLET": [b"To be, or not", b"To die"], "OPHELIA": ["My lörd".encode()]}
  as_objects = {name: (np.array(own, object), None) for name, own in texts.items()}
  save_hdf5(tmp_path, lambda part: as_objects, "shakespeare", "snippets")
  reading = sources.READING._replace(sequence_length=4)
  data = sources.load(f"tff:{tmp_path}", KEY, reading=reading)
  assert data.kind == "next_token" and data.num_clients == 2
  pieces = []
  for x, y in zip(data.x_train, data.y_train, strict=True):
    pieces.append("".join(data.classes[i] for i in x[y >= 0]))
  assert pieces == ["To b", "e, o", "r no", "To d", "i", "My l", "ör"]
  assert data.client_train.tolist() == data.client_test.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_test_clients_of_cifar100_are_others_though_they_bear_the_same_ids(tmp_path):
  save_hdf5(tmp_path, name="fed_cifar100")
  h5py = pytest.importorskip("h5py")
  for part in SIZES:
    with h5py.File(tmp_path / f"fed_cifar100_{part}.h5", "a") as file:
      for client, (_, y) in digits(part).items():
        file[f"examples/{client}/coarse_label"] = y
  opened = open_with(READERS["tff"], str(tmp_path), KEY)
  assert opened.clients == ("f0000_14", "f0001_10", "f2", "test f0001_10", "test f9")
  assert set(opened.dataset.client_test.tolist()) == {3, 4}
  check_in_place(opened, "tff", tmp_path)


def test_the_bytes_of_tensorflow_are_parsed():
  found = tf_example.parse(bytes.fromhex(REAL))
  assert {key: np.asarray(value).tolist() for key, value in found.items()} == {
    "label": [7, -1],
    "pixels": [1.0, 0.5],
    "word": [b"yes"],
  }
  assert found["pixels"].dtype == np.float32 and found["label"].dtype == np.int64


@pytest.mark.parametrize("end", range(1, 60, 7))
def test_bytes_that_are_cut_short_are_no_example(end):
  whole = serialised(label=[300, -5], pixels=[0.25] * 9, word=[b"yes"])
  assert np.asarray(tf_example.parse(whole)["label"]).tolist() == [300, -5]
  with pytest.raises(ValueError, match="cut short"):
    tf_example.parse(whole[:-end])


def sql(*commands):
  def broken(path):
    link = sqlite3.connect(path)
    for command in commands:
      link.execute(*command) if isinstance(command, tuple) else link.execute(command)
    link.commit()
    link.close()

  return broken


def put(**features):
  return sql(
    (
      "UPDATE examples SET serialized_example_proto = ? WHERE rowid = 2",
      (serialised(**features),),
    )
  )


PIXELS = [0.5] * 784
BROKEN = {
  "no file": (lambda path: path.unlink(), "no such file, must be a file of TensorFlow Federated"),
  "truncated": (
    lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "cannot be read .*must be",
  ),
  "another file": (lambda path: path.write_bytes(b"x" * 999), "cannot be read .*not a database"),
  "no table": (sql("DROP TABLE examples"), "cannot be read .*no such table: examples"),
  "no test": (
    sql("DELETE FROM client_metadata WHERE split_name = 'test'"),
    "has no split test, must have one beside train",
  ),
  "counts": (
    sql("UPDATE client_metadata SET num_examples = 9 WHERE client_id = 'f2'"),
    "train: client 'f2': has 1 examples, must be 9 by client_metadata",
  ),
  "bytes": (
    sql("UPDATE examples SET serialized_example_proto = x'0affff' WHERE rowid = 2"),
    "train: client 'f0001_10': cannot be read .*cut short",
  ),
  "no pixels": (
    put(label=[1]),
    "client 'f0001_10': pixels is missing in example 1",
  ),
  "fewer": (
    put(label=[1], pixels=PIXELS[1:]),
    "client 'f0001_10': pixels: has 783 values in example 1, must be 784",
  ),
  "two labels": (put(label=[1, 2], pixels=PIXELS), "label: has 2 values in example 1, must be 1"),
  "NaN": (
    put(label=[1], pixels=[float("nan"), *PIXELS[1:]]),
    "client 'f0001_10': pixels: holds NaN or infinity in example 1",
  ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_for_a_bad_file(tmp_path, name):
  path = tmp_path / "emnist.sqlite"
  save_sqlite(path, sets=("",))
  break_it, message = BROKEN[name]
  break_it(path)
  with pytest.raises(sources.DataError, match=message) as caught:
    sources.load(f"tff:{path}", KEY)
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)


BROKEN_HDF5 = {
  "truncated": (
    lambda path: path.write_bytes(path.read_bytes()[:999]),
    "train.h5: cannot be read .*must be a file of TensorFlow Federated",
  ),
  "no test": (
    lambda path: path.with_name("fed_emnist_digitsonly_test.h5").unlink(),
    "test.h5: no such file, must be a file of",
  ),
  "no examples": (lambda path: save_h5(path, {"x": np.zeros(3)}), "examples is missing, must be"),
  "no label": (
    lambda path: save_h5(path, {"examples/f1/pixels": np.zeros((2, 28, 28))}),
    "client 'f1': label is missing, must be there",
  ),
  "counts": (
    lambda path: save_h5(
      path, {"examples/f1/pixels": np.zeros((2, 28, 28)), "examples/f1/label": np.zeros(3, int)}
    ),
    "client 'f1': label: holds 3 labels, must be 2 like pixels",
  ),
  "empty": (
    lambda path: save_h5(
      path, {"examples/f1/pixels": np.zeros((0, 28, 28)), "examples/f1/label": np.zeros(0, int)}
    ),
    "client 'f1': has no examples",
  ),
  "sizes": (
    lambda path: save_h5(
      path,
      {
        "examples/f1/pixels": np.zeros((2, 28, 28)),
        "examples/f1/label": np.zeros(2, int),
        "examples/f2/pixels": np.zeros((2, 14, 14)),
        "examples/f2/label": np.zeros(2, int),
      },
    ),
    r"client 'f2': pixels: holds examples of shape \(14, 14\) and those before have \(28, 28\)",
  ),
}


def save_h5(path, content):
  import h5py

  with h5py.File(path, "w") as file:
    for name, values in content.items():
      file[name] = values


@pytest.mark.parametrize("name", BROKEN_HDF5)
def test_one_line_for_a_bad_hdf5(tmp_path, name):
  save_hdf5(tmp_path)
  break_it, message = BROKEN_HDF5[name]
  break_it(tmp_path / "fed_emnist_digitsonly_train.h5")
  with pytest.raises(sources.DataError, match=message) as caught:
    sources.load(f"tff:{tmp_path}", KEY)
  assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
