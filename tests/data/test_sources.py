"""Sources: what a data set holds, both file layouts, and one clear error per mistake in a file."""

import os
import socket
import zipfile

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import sources
from sparsyfed_jax.data.remarks import remarks

KEY = jax.random.key(0)


def images(n, dtype=np.uint8, shape=(4, 4, 3)):
  """Images whose every pixel is the index of the example, so that one can be followed."""
  return np.broadcast_to(np.arange(n).reshape(n, *[1] * len(shape)), (n, *shape)).astype(dtype)


def whole(n=20, **changes):
  """A valid file of layout x, y[, client], with changes; a change to None leaves the array out."""
  arrays = {"x": images(n), "y": np.arange(n) % 3, **changes}
  return {name: array for name, array in arrays.items() if array is not None}


def split(n=6, m=3, **changes):
  """A valid file of layout x_train, ..., with changes."""
  arrays = {
    "x_train": images(n),
    "y_train": np.arange(n) % 3,
    "x_test": images(m),
    "y_test": np.arange(m) % 3,
    **changes,
  }
  return {name: array for name, array in arrays.items() if array is not None}


@pytest.fixture
def save(tmp_path):
  def write(arrays):
    path = tmp_path / "toy.npz"
    np.savez(path, **arrays)
    return str(path)

  return write


def follow(data):
  """The original indices of the training and test examples made by `images`."""
  return tuple(x.reshape(len(x), -1)[:, 0].astype(int) for x in (data.x_train, data.x_test))


class TestDigits:
  def test_is_whole_and_split_80_20(self):
    data = sources.digits(KEY)
    assert data.name == "digits"
    assert data.x_train.shape == (1438, 8, 8, 1) and data.x_test.shape == (359, 8, 8, 1)
    assert data.x_train.dtype == np.uint8 and data.y_train.dtype == data.y_test.dtype == np.int32
    assert (data.x_train.min(), data.x_train.max()) == (0, 16)
    assert (data.num_classes, data.mean, data.std) == (10, 8.0, 8.0)
    assert data.client_train.shape == (0,) and data.num_clients == 0
    both = np.concatenate([data.y_train, data.y_test])
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn documents them
    assert np.bincount(both).tolist() == counts

  def test_split_depends_on_the_key(self):
    first, again, other = (sources.digits(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x_test, again.x_test)
    assert not np.array_equal(first.y_test, other.y_test)


class TestLoad:
  def test_digits_are_those_of_scikit_learn_with_and_without_its_file(self, monkeypatch):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    expected = np.column_stack([bunch.data, bunch.target])
    np.testing.assert_array_equal(sources._read_digits(), expected)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    np.testing.assert_array_equal(sources._read_digits(), expected)

  def test_digits(self):
    np.testing.assert_array_equal(sources.load("digits", KEY).x_test, sources.digits(KEY).x_test)

  def test_npz(self, save):
    assert sources.load(f"npz:{save(whole())}", KEY).x_train.shape == (16, 4, 4, 3)

  @pytest.mark.parametrize("name", ["mnist", "", "npz", "npz:", "digits:8", "toy.npz", "leaf:"])
  def test_unknown(self, name):
    with pytest.raises(sources.DataError, match=f"--dataset={name}: .*'digits' or 'npz:PATH'"):
      sources.load(name, KEY)


class TestReadersOfOnesOwn:
  CODE = """
import numpy as np
from sparsyfed_jax.data.readers import Found, Part, Reader

def read(path, reading, task):
  table = np.loadtxt(path)
  return Found(path.stem, Part(table[:, :-1], table[:, -1].astype(int)))

OWN = Reader("rows", read)
"""

  def test_a_file_is_named_before_the_path(self, tmp_path):
    (tmp_path / "own.py").write_text(self.CODE)
    np.savetxt(tmp_path / "rows.txt", np.arange(20).reshape(5, 4) % 3)
    data = sources.load(f"{tmp_path}/own.py:OWN:{tmp_path}/rows.txt", KEY)
    assert (data.name, data.x_train.shape, data.classes) == ("rows", (4, 3), (0, 1, 2))

  @pytest.mark.parametrize(
    "name, message",
    [
      ("own.py:OWN", "--dataset=own.py:OWN: must be own.py:READER:PATH, of a Reader"),
      ("math:tau", "--dataset=math:tau: unknown data set"),
      ("os.path:sep:x", "--dataset=os.path:sep:x: sep is a str, must be a Reader"),
      ("./no.py:OWN:x", "--dataset=./no.py:OWN:x: cannot be loaded .FileNotFoundError"),
    ],
  )
  def test_what_is_no_reader(self, name, message):
    with pytest.raises(sources.DataError, match=message) as caught:
      sources.load(name, KEY)
    assert "\n" not in str(caught.value)


class TestLayoutSplit:
  def test_is_taken_as_it_is(self, save):
    arrays = split(client_train=np.array([0, 2, 2, 0, 4, 4], np.int64))
    data = sources.npz(save(arrays), KEY)
    assert data.name == "toy"
    np.testing.assert_array_equal(data.x_train, arrays["x_train"])
    np.testing.assert_array_equal(data.x_test, arrays["x_test"])
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2] and data.y_test.tolist() == [0, 1, 2]
    assert data.y_train.dtype == data.y_test.dtype == data.client_train.dtype == np.int32
    assert data.client_train.tolist() == [0, 1, 1, 0, 2, 2]
    assert (data.num_clients, data.num_classes, data.classes) == (3, 3, (0, 1, 2))

  @pytest.mark.parametrize("dtype", [np.int8, np.uint8, ">i4", np.uint64])
  def test_labels_of_any_integer_dtype(self, save, dtype):
    data = sources.npz(save(split(y_train=np.arange(6).astype(dtype))), KEY)
    assert data.y_train.tolist() == list(range(6)) and data.y_train.dtype == np.int32

  def test_in_the_home_directory(self, save, tmp_path, monkeypatch):
    save(split())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.load("npz:~/toy.npz", KEY).name == "toy"

  def test_does_not_use_the_key(self, save):
    path = save(split())
    a, b = (sources.npz(path, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(a.x_train, b.x_train)

  def test_a_class_only_in_the_test_set_counts(self, save):
    data = sources.npz(save(split(y_test=np.array([0, 7, 1]))), KEY)
    assert (data.num_classes, data.classes) == (4, (0, 1, 2, 7))
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2] and data.y_test.tolist() == [0, 3, 1]

  def test_without_natural_clients(self, save):
    data = sources.npz(save(split()), KEY)
    assert data.num_clients == 0 and data.client_train.shape == (0,)
    assert data.client_train.dtype == np.int32


class TestLayoutWhole:
  def test_is_split_80_20_and_stays_aligned(self, save):
    client = np.arange(20) // 2
    data = sources.npz(save(whole(client=client)), KEY)
    train, test = follow(data)
    assert (len(train), len(test)) == (16, 4)
    assert sorted([*train, *test]) == list(range(20))
    np.testing.assert_array_equal(data.y_train, train % 3)
    np.testing.assert_array_equal(data.y_test, test % 3)
    np.testing.assert_array_equal(data.client_train, client[train])

  def test_split_depends_on_the_key(self, save):
    path = save(whole())
    tests = [follow(sources.npz(path, jax.random.key(seed)))[1].tolist() for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]

  def test_a_client_left_without_training_examples_is_counted(self, save):
    path = save(whole(5, client=np.arange(5)))
    data = sources.npz(path, KEY)
    assert len(set(data.client_train.tolist())) == 4 and data.num_clients == 5

  @pytest.mark.parametrize("n, num_test", [(2, 1), (4, 1), (5, 1), (9, 1), (10, 2)])
  def test_never_without_a_test_example(self, save, n, num_test):
    data = sources.npz(save(whole(n, y=np.arange(n) % 2)), KEY)
    assert (len(data.y_train), len(data.y_test)) == (n - num_test, num_test)

  def test_other_arrays_are_ignored(self, save):
    path = save(whole(classes=np.array(["a", "b", "c"]), notes=np.array([{}], object)))
    assert sources.npz(path, KEY).num_classes == 3


class TestPixels:
  @pytest.mark.parametrize(
    "dtype, stored",
    [
      (bool, np.uint8),
      (np.uint8, np.uint8),
      (np.int8, np.uint8),
      (np.uint16, np.uint8),
      (np.int16, np.int16),
      (">i2", np.int16),
      (np.int64, np.uint8),
      (">u8", np.uint8),
      (np.float16, np.float32),
      (np.float32, np.float32),
      (np.float64, np.float32),
      (">f8", np.float32),
    ],
  )
  def test_dtypes(self, save, dtype, stored):
    data = sources.npz(save(split(x_train=images(6, dtype), x_test=images(3, dtype))), KEY)
    assert data.x_train.dtype == data.x_test.dtype == stored
    assert data.x_train.dtype.isnative
    expected = [0, 1, 1, 1, 1, 1] if dtype is bool else list(range(6))
    assert follow(data)[0].tolist() == expected
    assert (data.mean, data.std) == ((0.5, 0.5) if dtype is bool else (2.5, 2.5))

  def test_the_test_set_is_scaled_by_the_range_of_the_training_set(self, save):
    data = sources.npz(save(split(x_train=images(6), x_test=images(3) + 250)), KEY)
    assert (data.mean, data.std) == (2.5, 2.5)
    whole = sources.npz(save({"x": np.arange(20)[:, None] * 5, "y": Y}), KEY)
    assert whole.mean + whole.std == float(whole.x_train.max())

  def test_a_flag_sets_the_range(self, save):
    path = "npz:" + save(whole())
    read = [sources.load(path, KEY, chosen) for chosen in ((0.0, 255.0), (-1.0, 3.0), None)]
    assert [(data.mean, data.std) for data in read] == [(127.5, 127.5), (1.0, 2.0), (0.0, 1.0)]
    assert sources.load("digits", KEY, (0.0, 255.0)).std == 127.5

  @pytest.mark.parametrize(
    "shape, stored",
    [((7,), (7,)), ((4, 5), (4, 5, 1)), ((4, 5, 3), (4, 5, 3)), ((2,) * 4, (2,) * 4)],
  )
  def test_ranks(self, save, shape, stored):
    assert sources.npz(save(whole(x=images(20, shape=shape))), KEY).x_train.shape == (16, *stored)

  def test_grey_images_with_and_without_channel_agree(self, save):
    arrays = split(x_train=images(6, shape=(4, 4)), x_test=images(3, shape=(4, 4, 1)))
    assert sources.npz(save(arrays), KEY).x_train.shape == (6, 4, 4, 1)


class TestLabels:
  @pytest.mark.parametrize(
    "labels",
    [
      np.arange(1, 11),
      np.array([0, 3, 17, 400, 5000, 60_000, 70_001, 800_000, 850_000, 900_007]),
      np.append(np.arange(9), 2_000_000_000),
      np.arange(10) - 5,
      np.arange(10, dtype=np.uint64) + 2**63,
      np.array(list("qwertyuiop")),
      np.array(list("qwertyuiop"), "S"),
      np.array([f"0{i}" for i in range(10)]),
    ],
  )
  def test_ten_labels_are_ten_classes(self, save, labels):
    picked = np.arange(40) % 10
    data = sources.npz(save(whole(40, y=labels[picked])), KEY)
    expected = sorted(label.decode() if labels.dtype.kind == "S" else label for label in labels)
    assert data.num_classes == 10 and list(data.classes) == expected
    assert {type(label) for label in data.classes} == {str if labels.dtype.kind in "US" else int}
    train, test = follow(data)
    for numbers, indices in ((data.y_train, train), (data.y_test, test)):
      assert numbers.dtype == np.int32
      found = [data.classes[i] for i in numbers]
      wanted = [labels[i] for i in picked[indices]]
      assert found == [w.decode() if isinstance(w, bytes) else w for w in wanted]

  def test_labels_from_nought_stay_as_they_are(self, save):
    y = np.random.default_rng(0).permutation(np.arange(20) % 4)
    data = sources.npz(save(whole(y=y)), KEY)
    train, test = follow(data)
    assert data.y_train.tolist() == y[train].tolist() and data.y_test.tolist() == y[test].tolist()
    assert data.classes == (0, 1, 2, 3)

  def test_truth_values_are_two_classes(self, save):
    data = sources.npz(save(whole(y=Y > 0)), KEY)
    assert data.classes == (False, True) and set(data.y_train.tolist()) == {0, 1}

  def test_training_and_test_labels_of_two_dtypes(self, save):
    arrays = split(y_train=np.arange(-3, 3, dtype=np.int8), y_test=np.array([2, 5, 0], np.uint64))
    data = sources.npz(save(arrays), KEY)
    assert data.classes == (-3, -2, -1, 0, 1, 2, 5)
    assert data.y_test.tolist() == [5, 6, 3]


class TestClients:
  @pytest.mark.parametrize(
    "ids", [[7, 1_999_999_999, 12], [-1, 5, 0], ["eve", "ann", "bob"], [b"eve", b"ann", b"bob"]]
  )
  def test_ids_are_numbered_in_sorted_order(self, save, ids):
    ids = np.array(ids)
    data = sources.npz(save(split(client_train=ids[[0, 1, 2, 2, 1, 0]])), KEY)
    order = np.argsort(np.argsort(ids))
    assert data.num_clients == 3 and data.client_train.dtype == np.int32
    assert data.client_train.tolist() == order[[0, 1, 2, 2, 1, 0]].tolist()

  def test_a_client_with_test_examples_alone_is_one_more(self, save):
    arrays = split(client_train=np.array([40, 7, 40, 12, 7, 7]), client_test=np.array([7, 9, 40]))
    data = sources.npz(save(arrays), KEY)
    assert data.num_clients == 4
    assert data.client_train.tolist() == [3, 0, 3, 2, 0, 0]
    assert data.client_test.tolist() == [0, 1, 3]
    assert any("1 of the 4 clients" in line for line in remarks(data))

  @pytest.mark.parametrize("kind", [int, str, bytes])
  def test_a_client_may_be_told_to_test_alone(self, save, kind):
    both = [np.array(own).astype(kind) for own in ([40, 70, 40, 12, 70, 70], [70, 39, 40])]
    arrays = split(client_train=both[0], client_test=both[1])
    data = sources.npz(save(arrays | {"client_test_only": both[1][1:2]}), KEY)
    assert data.num_clients == 3
    assert data.client_train.tolist() == [1, 2, 1, 0, 2, 2]
    assert data.client_test.tolist() == [2, 3, 1]
    assert any("test examples alone: 1; they take part in no" in line for line in remarks(data))


def poisoned(value, dtype=np.float32):
  x = images(20, dtype)
  x[[3, 11], 0, 1] = value
  return x


Y = np.arange(20) % 3
C = np.arange(20) % 4
BAD_FILES = {
  "no layout": ({"pixels": Y, "target": Y}, r"pixels, target; must hold x_train, .* or x, y\["),
  "no array": ({}, "holds no array; must hold x_train"),
  "half a layout": (split(x_test=None), "holds x_train, y_train, y_test; must hold x_train"),
  "no labels": (whole(y=None), "no labels, y missing"),
  "no split labels": (split(y_train=None, y_test=None), "no labels, y_train and y_test missing"),
  "no test labels": (split(y_test=None), "no labels, y_test missing"),
  "mixed": ({**split(), **whole()}, "mixes two layouts, x_train, .* with x, y;"),
  "mixed client": (whole(client_train=C), "mixes two layouts, client_train with x, y;"),
  "objects": (whole(x=np.array([{}] * 20, object)), "x: is an array of Python objects"),
  "no examples": (whole(0), r"x: has shape \(0, 4, 4, 3\), is empty"),
  "no training examples": (split(n=0), r"x_train: has shape \(0, 4, 4, 3\), is empty"),
  "no test examples": (split(m=0), r"x_test: has shape \(0, 4, 4, 3\), is empty"),
  "no pixels": (whole(x=np.zeros((20, 0))), r"x: has shape \(20, 0\), is empty"),
  "one example": (whole(1), "x: holds 1 example, must be 2 or more"),
  "rank 1": (whole(x=Y), r"x: has shape \(20,\), must be \(n, features\)"),
  "rank 0": (whole(x=np.float32(1)), r"x: has shape \(\), must be"),
  "text": (whole(x=np.array([["a"]] * 20)), "x: is <U1, must be booleans, integers or floats"),
  "complex": (whole(x=images(20, complex)), "x: is complex128, must be booleans"),
  "channels first": (
    whole(x=images(20, shape=(3, 32, 32))),
    r"x: has shape \(20, 3, 32, 32\), .*NCHW.*NHWC; save x.transpose\(0, 2, 3, 1\)",
  ),
  "grey channels first": (
    split(x_train=images(6, shape=(1, 28, 28))),
    "x_train: .*NHWC; save x_tr",
  ),
  "nan": (whole(x=poisoned(np.nan)), "x: holds NaN or infinity in 2 of 20 .* index 3;"),
  "infinity": (whole(x=poisoned(-np.inf, np.float16)), "x: .* in 2 of 20 .* index 3;"),
  "float64 overflow": (
    whole(x=poisoned(1e300, np.float64)),
    "x: .* index 3; must be finite in float32",
  ),
  "nan in test": (
    split(x_train=images(6, float), x_test=images(3, float) * np.nan),
    "x_test: .* 3 of 3",
  ),
  "labels short": (whole(y=Y[:19]), "y: holds 19 labels, must be 20 like x$"),
  "test labels long": (split(y_test=Y[:4]), "y_test: holds 4 labels, must be 3 like x_test$"),
  "float labels": (
    whole(y=Y * 1.0),
    r"y: is float64, must be integer or string labels; cast whole numbers with y.astype\(int\)$",
  ),
  "regression": (
    whole(y=Y + 0.25),
    "y: is float64 and holds 0.25 at index 0, .*a regression of numbers needs --task=regression$",
  ),
  "regression of several": (
    whole(y=np.ones((20, 3)) / 3),
    r"y: has shape \(20, 3\), .* needs one class; a regression .* needs --task=regression$",
  ),
  "multi-hot": (
    whole(y=np.arange(60).reshape(20, 3) % 2),
    "y: .* one class, but 10 of 20 have none or several, the first at index 1: multi-label .* need"
    " --task=multi_label$",
  ),
  "no class at all": (
    whole(y=np.zeros((20, 3), bool)),
    "y: .* 20 of 20 .* first at index 0: multi-",
  ),
  "label dates": (whole(y=Y.astype("M8[D]")), r"y: is datetime64\[D\], must be integer or string"),
  "labels of two kinds": (
    split(y_test=np.array(["0", "1", "2"])),
    "y_test: is <U1, must be like y_train, which is int64",
  ),
  "label objects": (
    whole(y=np.array(["a"] * 20, object)),
    "y: .*Python objects, .* strings; .*asty",
  ),
  "one-hot": (whole(y=np.eye(3)[Y]), r"y: has shape \(20, 3\), .* y.argmax\(1\)"),
  "column": (split(y_train=Y[:6, None]), r"y_train: has shape \(6, 1\), .* y_train.ravel\(\)"),
  "scalar label": (whole(y=np.int32(1)), r"y: has shape \(\), must be a vector"),
  "one class": (whole(y=Y * 0), "labels: are all 0, must be of 2 or more classes"),
  "shapes": (split(x_test=images(3, shape=(4, 5, 3))), r"x_test: .*\(4, 5, 3\).*x_train"),
  "ranks": (split(x_test=images(3, shape=(16,))), r"x_test: .*\(16,\).*\(4, 4, 3\)"),
  "dtypes": (split(x_test=images(3, np.float32)), "x_test: .*float32.*x_train.*uint8"),
  "client floats": (whole(client=C * 1.0), "client: is float64, must be integer or string client"),
  "client length": (whole(client=C[:7]), "client: holds 7 client ids, must be 20"),
  "client empty": (whole(client=C[:0]), "client: holds 0 client ids, must be 20"),
  "client rank": (whole(client=C[:, None]), r"client: has shape \(20, 1\), .*client.ravel"),
  "client_test_only": (
    split(client_train=C[:6], client_test=C[:3], client_test_only=C[:1]),
    "client_test_only: holds .*, must be in client_test and not in client_train",
  ),
  "client_test_only of floats": (
    split(client_train=C[:6], client_test=C[:3], client_test_only=np.array([0.5])),
    "client_test_only: is float64 and holds 0.5",
  ),
  "client_test alone": (split(client_test=C[:3]), "client_test: must come with client_train"),
  "client_train length": (split(client_train=C[:3]), "client_train: holds 3 client ids, must be 6"),
}


class TestBadFiles:
  @pytest.mark.parametrize("name", BAD_FILES)
  def test_array(self, save, name):
    arrays, message = BAD_FILES[name]
    self.check(save(arrays), message)

  def test_missing(self, tmp_path):
    self.check(str(tmp_path / "gone.npz"), "no such file")

  def test_directory(self, tmp_path):
    self.check(str(tmp_path), "is a directory, must be an .npz file")

  @pytest.mark.parametrize("is_linked", [False, True])
  def test_fifo_is_refused_at_once(self, tmp_path, is_linked):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    path = tmp_path / ("link" if is_linked else "fifo")
    self.check(str(path), "is a FIFO, must be an .npz file")

  def test_socket_and_device(self, tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
      server.bind(str(tmp_path / "socket"))
      self.check(str(tmp_path / "socket"), "is a socket, must be an .npz file")
    self.check("/dev/zero", "is a device, must be an .npz file")

  def test_under_a_file(self, save):
    self.check(save(whole()) + "/x.npz", "cannot be opened: Not a directory")

  @pytest.mark.parametrize(
    "content", [b"", b"label,pixel\n0,1\n", b"PK\x03\x04 and no more", b"\x80\x04N."]
  )
  def test_not_an_npz(self, tmp_path, content):
    path = tmp_path / "toy.npz"
    path.write_bytes(content)
    self.check(str(path), "is not an .npz file or was cut short")

  def test_npy(self, tmp_path):
    np.save(tmp_path / "toy.npy", np.arange(3))
    self.check(str(tmp_path / "toy.npy"), "is not an .npz file")

  def test_cut_short(self, save):
    path = save(whole())
    with open(path, "r+b") as file:
      file.truncate(700)
    self.check(path, "is not an .npz file or was cut short")

  def test_cut_member(self, save):
    path = save(whole())
    with zipfile.ZipFile(path) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("x.npy", members["x.npy"][:-100])
      archive.writestr("y.npy", members["y.npy"])
    self.check(path, "x: cannot be read, is damaged or cut short")

  def test_damaged_member(self, save):
    path = save(whole())
    with open(path, "r+b") as file:
      file.seek(500)
      file.write(b"damage")
    self.check(path, "x: cannot be read, .*BadZipFile")

  def test_member_of_another_kind(self, tmp_path):
    path = tmp_path / "toy.npz"
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("x", "1 2 3")
      archive.writestr("y", "0 1 0")
    self.check(str(path), "x: is not a NumPy array")

  def check(self, path, message):
    with pytest.raises(sources.DataError, match=message) as caught:
      sources.npz(path, KEY)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
