"""PFLlib's folders: read to the last example; any other pickle is a line, and runs nothing."""

import io
import json
import pickle
import zipfile

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import sources
from sparsyfed_jax.data.readers import READERS, open_with
from tests.data.readers.places import check_in_place

KEY = jax.random.key(0)
SIZES = {"train": (3, 2, 4), "test": (1, 1, 2)}


@pytest.fixture
def written(tmp_path):
  """Three clients of channels-first images, as the generators of PFLlib save them."""
  rng = np.random.default_rng(0)
  content = {}
  counts = [[] for _ in SIZES["train"]]
  for part, sizes in SIZES.items():
    (tmp_path / "toy" / part).mkdir(parents=True)
    for client, n in enumerate(sizes):
      x, y = rng.normal(size=(n, 3, 6, 6)).astype(np.float32), rng.integers(0, 5, n)
      content[part, client] = x, y
      counts[client] += [[int(label), 1] for label in y]
      with open(tmp_path / "toy" / part / f"{client}.npz", "wb") as file:
        np.savez_compressed(file, data={"x": x, "y": y})
  told = {
    "num_clients": 3,
    "num_classes": 5,
    "non_iid": True,
    "Size of samples for labels in clients": counts,
  }
  (tmp_path / "toy" / "config.json").write_text(json.dumps(told))
  return tmp_path / "toy", content


def test_clients_are_read_to_the_last_example(written):
  path, content = written
  opened = open_with(READERS["pfllib"], str(path), KEY)
  data = opened.dataset
  assert opened.clients == (0, 1, 2) and data.name == "toy"
  for part, x, y, owners in (
    ("train", data.x_train, data.y_train, data.client_train),
    ("test", data.x_test, data.y_test, data.client_test),
  ):
    assert len(y) == sum(SIZES[part])
    for client, size in enumerate(SIZES[part]):
      images, labels = content[part, client]
      assert (owners == client).sum() == size
      np.testing.assert_array_equal(x[owners == client], images.transpose(0, 2, 3, 1))
      assert [data.classes[i] for i in y[owners == client]] == labels.tolist()
  check_in_place(opened, "pfllib", path)


@pytest.mark.parametrize("form", ["fortran", ">f8", "int64 rows"])
def test_arrays_in_other_orders_and_dtypes(written, form):
  path, content = written
  x, y = content["train", 0]
  forms = {"fortran": np.asfortranarray(x), ">f8": x.astype(">f8"), "int64 rows": x.astype(int)}
  with open(path / "train" / "0.npz", "wb") as file:
    np.savez_compressed(file, data={"x": forms[form], "y": y})
  data = sources.load(f"pfllib:{path}", KEY)
  expected = forms[form].transpose(0, 2, 3, 1).astype(np.float32)
  np.testing.assert_array_equal(data.x_train[data.client_train == 0], expected)
  check_in_place(open_with(READERS["pfllib"], str(path), KEY), "pfllib", path)


class Harmless:
  """Would leave a file if it were unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def put(part="train", **changes):
  def broken(path):
    with np.load(path / part / "1.npz", allow_pickle=True) as file:
      content = file["data"].item() | changes
    content = {key: value for key, value in content.items() if value is not None}
    np.savez_compressed(path / part / "1.npz", data=content)

  return broken


def tell(**changes):
  def broken(path):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))

  return broken


def save_raw(path, content):
  """Writes bytes in the place of the pickle behind a header."""
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
  with zipfile.ZipFile(path / "train" / "1.npz", "w") as file:
    file.writestr("data.npy", header.getvalue() + content)


def cut(path):
  file = path / "train" / "1.npz"
  file.write_bytes(file.read_bytes()[:200])


X = np.zeros((2, 3, 6, 6), np.float32)
BROKEN = {
  "no train": (lambda path: (path / "train").rename(path / "x"), "train: no such folder"),
  "no files": (
    lambda path: [file.unlink() for file in (path / "test").iterdir()],
    "test: holds no <client>.npz such as 0.npz",
  ),
  "truncated": (cut, "train/1.npz: cannot be read .*must be a file of PFLlib"),
  "plain": (
    lambda path: np.savez(path / "train" / "1.npz", data=X),
    "train/1.npz: data: is of float32, must be a pickled dict",
  ),
  "other entries": (
    lambda path: np.savez(path / "train" / "1.npz", x=X),
    "train/1.npz: cannot be read .*data.npy",
  ),
  "a list": (
    lambda path: save_raw(path, pickle.dumps([1, 2])),
    "train/1.npz: data: holds a list, must be a dict of x and y",
  ),
  "code": (
    lambda path: save_raw(path, pickle.dumps({"x": Harmless(path / "ran"), "y": 0})),
    "train/1.npz: cannot be read .*holds (_?io).open, must hold NumPy arrays and dicts alone",
  ),
  "another function of numpy": (
    lambda path: save_raw(path, pickle.dumps({"x": np.fromfile})),
    "train/1.npz: cannot be read .*holds numpy.fromfile, must hold",
  ),
  "sizes that lie": (
    lambda path: save_raw(path, pickle.dumps({"x": X}).replace(b"K\x02K\x03", b"K\xffK\x03")),
    "train/1.npz: cannot be read .*cannot reshape",
  ),
  "no y": (put(y=None), "train/1.npz: client 1: y is missing"),
  "labels": (put(y=np.zeros(3, int)), "train/1.npz: client 1: y: holds 3 labels, must be 2"),
  "objects": (
    put(x=np.array([{}, {}])),
    "train/1.npz: client 1: x: must be a list of examples of one size",
  ),
  "other size": (
    put(x=X[:, :, :3]),
    r"client 1: x: holds examples of shape \(3, 3, 6\) and those before have \(3, 6, 6\)",
  ),
  "infinite": (put(x=X + np.inf), "client 1: x: holds NaN or infinity in example 0"),
  "empty": (put(x=X[:0], y=np.zeros(0, int)), "train/1.npz: client 1: has no examples"),
  "clients": (tell(num_clients=4), "config.json: num_clients is 4, must be 3"),
  "classes": (tell(num_classes=2), "num_classes is 2: y: holds the label . in example"),
  "counts": (
    tell(**{"Size of samples for labels in clients": [[[0, 9]]]}),
    "config.json: client 0: Size of samples .* add up to 9, must be 4",
  ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_for_a_bad_file_and_nothing_runs(written, name):
  path, _ = written
  break_it, message = BROKEN[name]
  break_it(path)
  with pytest.raises(sources.DataError, match=message) as caught:
    sources.load(f"pfllib:{path}", KEY)
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)
  assert not (path / "ran").exists()
