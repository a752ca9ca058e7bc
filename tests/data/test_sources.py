"""Sources: what a data set holds, both file layouts, and one clear error per mistake in a file."""

import zipfile

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import sources

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
  def test_digits(self):
    np.testing.assert_array_equal(sources.load("digits", KEY).x_test, sources.digits(KEY).x_test)

  def test_npz(self, save):
    assert sources.load(f"npz:{save(whole())}", KEY).x_train.shape == (16, 4, 4, 3)

  @pytest.mark.parametrize("name", ["mnist", "", "npz", "npz:", "digits:8", "toy.npz"])
  def test_unknown(self, name):
    with pytest.raises(sources.DataError, match=f"--dataset={name}: .*'digits' or 'npz:PATH'"):
      sources.load(name, KEY)


class TestLayoutSplit:
  def test_is_taken_as_it_is(self, save):
    arrays = split(client_train=np.array([0, 2, 2, 0, 4, 4], np.int64))
    data = sources.npz(save(arrays), KEY)
    assert data.name == "toy"
    np.testing.assert_array_equal(data.x_train, arrays["x_train"])
    np.testing.assert_array_equal(data.x_test, arrays["x_test"])
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2] and data.y_test.tolist() == [0, 1, 2]
    assert data.y_train.dtype == data.y_test.dtype == data.client_train.dtype == np.int32
    assert data.client_train.tolist() == [0, 2, 2, 0, 4, 4]
    assert (data.num_clients, data.num_classes) == (5, 3)  # clients 1 and 3 are empty

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
    assert sources.npz(save(split(y_test=np.array([0, 7, 1]))), KEY).num_classes == 8

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
    "dtype, stored, mean, std",
    [
      (np.uint8, np.uint8, 127.5, 127.5),
      (np.int16, np.int16, 0.0, 32768.0),
      (">i2", np.int16, 0.0, 32768.0),
      (np.float16, np.float32, 0.0, 1.0),
      (np.float32, np.float32, 0.0, 1.0),
      (np.float64, np.float32, 0.0, 1.0),
      (">f8", np.float32, 0.0, 1.0),
    ],
  )
  def test_dtypes(self, save, dtype, stored, mean, std):
    data = sources.npz(save(split(x_train=images(6, dtype), x_test=images(3, dtype))), KEY)
    assert data.x_train.dtype == data.x_test.dtype == stored
    assert data.x_train.dtype.isnative
    assert (data.mean, data.std) == (mean, std)
    assert follow(data)[0].tolist() == list(range(6))

  @pytest.mark.parametrize(
    "shape, stored",
    [((7,), (7,)), ((4, 5), (4, 5, 1)), ((4, 5, 3), (4, 5, 3)), ((2,) * 4, (2,) * 4)],
  )
  def test_ranks(self, save, shape, stored):
    assert sources.npz(save(whole(x=images(20, shape=shape))), KEY).x_train.shape == (16, *stored)

  def test_grey_images_with_and_without_channel_agree(self, save):
    arrays = split(x_train=images(6, shape=(4, 4)), x_test=images(3, shape=(4, 4, 1)))
    assert sources.npz(save(arrays), KEY).x_train.shape == (6, 4, 4, 1)


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
  "int32 pixels": (whole(x=images(20, np.int32)), "x: is int32, must be uint8, int16"),
  "int64 pixels": (split(x_test=images(3, np.int64)), "x_test: is int64, must be uint8"),
  "bool pixels": (whole(x=images(20, bool)), "x: is bool, must be uint8"),
  "text": (whole(x=np.array([["a"]] * 20)), "x: is <U1, must be uint8"),
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
    "y: is float64, must be integer labels; cast whole numbers to int32",
  ),
  "bool labels": (whole(y=Y > 0), "y: is bool, must be integer"),
  "one-hot": (whole(y=np.eye(3)[Y]), r"y: has shape \(20, 3\), .* y.argmax\(1\)"),
  "column": (split(y_train=Y[:6, None]), r"y_train: has shape \(6, 1\), .* y_train.ravel\(\)"),
  "scalar label": (whole(y=np.int32(1)), r"y: has shape \(\), must be a vector"),
  "negative label": (whole(y=Y - 1), "y: holds -1 at index 0, must be labels counted from 0"),
  "huge label": (
    whole(y=Y.astype(np.uint64) + 2**40),
    f"y: holds {2**40} at index 0, must be labels",
  ),
  "one class": (whole(y=Y * 0), "labels: are all 0, must be of 2 or more classes"),
  "shapes": (split(x_test=images(3, shape=(4, 5, 3))), r"x_test: .*\(4, 5, 3\).*x_train"),
  "ranks": (split(x_test=images(3, shape=(16,))), r"x_test: .*\(16,\).*\(4, 4, 3\)"),
  "dtypes": (split(x_test=images(3, np.float32)), "x_test: .*float32.*x_train.*uint8"),
  "client floats": (whole(client=C * 1.0), "client: is float64, must be integer client ids"),
  "client text": (
    whole(client=C.astype(str)),
    r"client: is <U.*np.unique\(client, return_inverse=True\)\[1\]$",
  ),
  "client negative": (whole(client=C - 1), "client: holds -1 at index 0, must be client ids"),
  "client length": (whole(client=C[:7]), "client: holds 7 client ids, must be 20"),
  "client empty": (whole(client=C[:0]), "client: holds 0 client ids, must be 20"),
  "client rank": (whole(client=C[:, None]), r"client: has shape \(20, 1\)"),
  "client sparse": (whole(client=C * 50), "client: holds client id 150 .*np.unique"),
  "client_train length": (split(client_train=C[:3]), "client_train: holds 3 client ids, must be 6"),
  "client_train sparse": (
    split(client_train=C[:6] * 2),
    "client_train: holds client id 6 for 6 exam",
  ),
}


class TestBadFiles:
  @pytest.mark.parametrize("name", BAD_FILES)
  def test_array(self, save, name):
    arrays, message = BAD_FILES[name]
    self.check(save(arrays), message)

  def test_missing(self, tmp_path):
    self.check(str(tmp_path / "gone.npz"), "no such file")

  def test_directory(self, tmp_path):
    self.check(str(tmp_path), "is a directory")

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
