"""Prepared sets: what is written by tensorflow_datasets is read back, and one error per mistake.

The sets are made by tensorflow_datasets itself, in a temporary directory.
"""

import json
import socket
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from sparsyfed_jax.data import prepared, sources

tfds = pytest.importorskip("tensorflow_datasets", reason="needs pip install '.[tfds]'")

KEY = jax.random.key(0)
RGB = (4, 5, 3)


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
  """The data directory; no test may reach the network."""

  def refuse(*_):
    raise AssertionError("the network was used")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  return tmp_path


@pytest.fixture
def prepare(data_dir):
  """A function that prepares a set as tensorflow_datasets does."""

  def prepare(
    features, splits, supervised=None, name="toy", config=None, version="1.0.0", top=None
  ):
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
      VERSION = tfds.core.Version(version)
      BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          features=top or tfds.features.FeaturesDict(features),
          supervised_keys=supervised,
          disable_shuffling=True,
        )

      def _split_generators(self, dl_manager):
        return {split: enumerate(examples) for split, examples in splits.items()}

      def _generate_examples(self):
        raise NotImplementedError  # the base class wants the method; splits bring their examples

    Builder.name = name
    Builder.__module__ = "toy"  # not in a package, whose files it would look up for checksums
    builder = Builder(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path

  return prepare


def image(i, shape=RGB):
  """An image whose every pixel is i."""
  array = np.full(shape, i, np.uint8)
  return PIL.Image.fromarray(array[..., 0] if shape[-1] == 1 else array)


def images(n, start=0, shape=RGB, **extra):
  """n labelled examples numbered from start, with extra features made from the number."""
  return [
    {"image": image(i, shape), "label": i % 3, **{k: make(i) for k, make in extra.items()}}
    for i in range(start, start + n)
  ]


def image_features(shape=RGB, **extra):
  return {
    "image": tfds.features.Image(shape=shape),
    "label": tfds.features.ClassLabel(num_classes=3),
    **extra,
  }


def audio_features(**changes):
  settings = {"sample_rate": 16000, "dtype": np.int16, **changes}
  with prepared.without_tensorflow():
    audio = tfds.features.Audio(**settings)
  audio.dtype = audio.np_dtype  # what is written down; TensorFlow is asked for it otherwise
  return {"audio": audio, "label": tfds.features.ClassLabel(num_classes=3)}


def clips(*waveforms, dtype=np.int16):
  return [{"audio": np.asarray(w, dtype), "label": i % 3} for i, w in enumerate(waveforms)]


def follow(x):
  """The numbers of the examples made by `image`."""
  return x[:, 0, 0, 0].tolist()


class TestImages:
  @pytest.mark.parametrize("shape", [RGB, (6, 6, 1)])
  def test_train_and_test_are_read_back(self, prepare, shape):
    prepare(
      image_features(shape),
      {"train": images(7, shape=shape), "test": images(4, 100, shape=shape)},
      supervised=("image", "label"),
    )
    data = sources.load("tfds:toy", KEY)
    assert data.name == "toy"
    assert data.x_train.shape == (7, *shape) and data.x_test.shape == (4, *shape)
    assert data.x_train.dtype == data.x_test.dtype == np.uint8
    assert follow(data.x_train) == list(range(7))
    assert (data.x_train == data.x_train[:, :1, :1, :1]).all()
    assert follow(data.x_test) == [100, 101, 102, 103]
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2, 0] and data.y_test.tolist() == [1, 2, 0, 1]
    assert data.y_train.dtype == data.y_test.dtype == np.int32
    assert (data.num_classes, data.classes) == (3, (0, 1, 2))
    assert (data.mean, data.std) == (3.0, 3.0)  # from 0 to 6
    assert data.num_clients == 0 and data.client_train.shape == (0,)
    assert data.client_train.dtype == np.int32
    assert "tensorflow" not in sys.modules

  def test_channels_are_in_the_order_of_the_set(self, prepare):
    pixels = np.random.default_rng(0).integers(0, 256, RGB, np.uint8)
    train, test = ([{"image": PIL.Image.fromarray(pixels), "label": i}] for i in (1, 2))
    prepare(image_features(), {"train": train, "test": test})
    data = prepared.load("toy", KEY)
    np.testing.assert_array_equal(data.x_train[0], pixels)
    assert data.mean == data.std == 127.5  # though no pixel may be 0 or 255

  def test_supervised_keys_choose_among_several(self, prepare):
    features = image_features(
      coarse=tfds.features.ClassLabel(num_classes=9), mask=tfds.features.Image(shape=(2, 2, 1))
    )
    examples = images(5, coarse=lambda i: 7 + i % 2, mask=lambda i: image(50, (2, 2, 1)))
    prepare(features, {"train": examples, "test": examples}, supervised=("image", "coarse"))
    data = prepared.load("toy", KEY)
    assert follow(data.x_train) == list(range(5))
    assert data.y_train.tolist() == [0, 1, 0, 1, 0] and data.classes == (7, 8)

  def test_letters_numbered_from_one_are_as_many_classes_as_occur(self, prepare):
    # As emnist/letters: numbers up to 36, of which 1 to 26 occur.
    features = image_features() | {"label": tfds.features.ClassLabel(num_classes=37)}
    examples = [example | {"label": 1 + i % 26} for i, example in enumerate(images(52))]
    prepare(features, {"train": examples[:40], "test": examples[40:]})
    data = prepared.load("toy", KEY)
    assert data.num_classes == 26 and data.classes == tuple(range(1, 27))
    assert data.y_test.tolist() == [i % 26 for i in range(40, 52)]

  def test_names_of_the_set_are_its_classes_even_those_that_never_occur(self, prepare):
    names = ["cat", "dog", "owl"]
    features = image_features() | {"label": tfds.features.ClassLabel(names=names)}
    examples = [example | {"label": i % 2} for i, example in enumerate(images(4))]
    prepare(features, {"train": examples, "test": examples})
    data = prepared.load("toy", KEY)
    assert (data.num_classes, data.classes) == (3, ("cat", "dog", "owl"))
    assert data.y_train.tolist() == [0, 1, 0, 1]

  def test_images_of_unstated_but_equal_size(self, prepare):
    prepare(image_features((None, None, 3)), {"train": images(5), "test": images(2)})
    assert prepared.load("toy", KEY).x_train.shape == (5, *RGB)


class TestSplits:
  def test_train_alone_is_split_80_20_by_the_key(self, prepare):
    prepare(image_features(), {"train": images(20)})
    first, again, other = (prepared.load("toy", jax.random.key(seed)) for seed in (0, 0, 1))
    train, test = follow(first.x_train), follow(first.x_test)
    assert (len(train), len(test)) == (16, 4) and sorted(train + test) == list(range(20))
    assert first.y_train.tolist() == [i % 3 for i in train]
    assert first.y_test.tolist() == [i % 3 for i in test]
    assert follow(again.x_test) == test != follow(other.x_test)

  @pytest.mark.parametrize(
    "others, expected",
    [
      (["validation"], "validation"),
      (["test", "validation"], "test"),
      (["unlabelled", "validation"], None),
      (["extra"], None),
    ],
  )
  def test_which_is_the_test_set(self, prepare, others, expected):
    starts = {name: 100 * (i + 1) for i, name in enumerate(others)}
    splits = {name: images(2, start) for name, start in starts.items()}
    prepare(image_features(), {"train": images(10), **splits})
    data = prepared.load("toy", KEY)
    if expected:
      assert follow(data.x_test) == [starts[expected], starts[expected] + 1]
      assert len(data.x_train) == 10
    else:
      assert sorted(follow(data.x_train) + follow(data.x_test)) == list(range(10))

  def test_without_train(self, prepare):
    prepare(image_features(), {"test": images(3), "validation": images(3)})
    check("toy", "has the splits test, validation, must have one called train")

  def test_one_example(self, prepare):
    prepare(image_features(), {"train": images(1)})
    check("toy", "holds 1 example, must be 2 or more to be split 80/20")


class TestClients:
  @pytest.mark.parametrize(
    "name, feature, ids",
    [
      ("user_id", "int64", [40, 7, 40, 12, 7]),
      ("speaker", "text", ["ann", "bob", "ann", "eve", "bob"]),
    ],
  )
  def test_are_numbered_in_sorted_order(self, prepare, name, feature, ids):
    feature = tfds.features.Text() if feature == "text" else np.int64
    examples = images(5, **{name: lambda i: ids[i]})
    prepare(image_features(**{name: feature}), {"train": examples, "test": examples})
    data = prepared.load("toy", KEY)
    assert data.client_train.tolist() == np.unique(ids, return_inverse=True)[1].tolist()
    assert data.client_train.dtype == np.int32 and data.num_clients == 3

  def test_stay_aligned_where_train_is_split(self, prepare):
    examples = images(20, client_id=lambda i: 19 - i)
    prepare(image_features(client_id=np.int64), {"train": examples})
    data = prepared.load("toy", KEY)
    assert data.client_train.tolist() == [19 - i for i in follow(data.x_train)]
    assert data.num_clients == 20


class TestAudio:
  def test_is_resampled_and_of_one_length(self, prepare):
    time = np.arange(20000) / 16000
    low, high = (8000 * np.sin(2 * np.pi * f * time) for f in (500, 6000))
    waveforms = clips(low, low[:8000], low[:16000] + high[:16000], [])
    prepare(audio_features(), {"train": waveforms, "test": waveforms[:2]})
    data = sources.load("tfds:toy", KEY)
    assert data.x_train.shape == (4, 8000) and data.x_test.shape == (2, 8000)
    assert data.x_train.dtype == data.x_test.dtype == np.int16
    assert (data.num_classes, data.mean, data.std) == (3, 0.0, 32768.0)
    assert data.y_train.tolist() == [0, 1, 2, 0]
    expected = 8000 * np.sin(2 * np.pi * 500 * np.arange(8000) / 8000)
    long, half, mixed, empty = data.x_train  # off their ends, where the filter meets silence:
    np.testing.assert_allclose(long[100:], expected[100:], atol=80)
    np.testing.assert_allclose(half[100:3900], expected[100:3900], atol=80)
    np.testing.assert_allclose(mixed[100:7900], expected[100:7900], atol=80)
    assert not half[4000:].any() and not empty.any()
    assert "tensorflow" not in sys.modules

  @pytest.mark.parametrize("changes", [{"dtype": np.int64}, {"shape": (None, 1)}])
  def test_other_ways_to_store_it(self, prepare, changes):
    features = audio_features(sample_rate=8000, **changes)
    shape = (-1, 1) if "shape" in changes else (-1,)
    waveforms = [np.arange(9000).reshape(shape)] * 2
    examples = clips(*waveforms, dtype=changes.get("dtype", np.int16))
    prepare(features, {"train": examples, "test": examples})
    assert prepared.load("toy", KEY).x_train[0].tolist() == list(range(8000))

  def test_without_a_sample_rate(self, prepare):
    prepare(audio_features(sample_rate=None), {"train": clips([1])})
    check("toy", "audio: does not say its sample rate, .* 8000 Hz")

  def test_beyond_int16(self, prepare):
    prepare(audio_features(dtype=np.int64), {"train": clips([1, 40000], dtype=np.int64)})
    check("toy", "audio: holds 1 to 40000, must be in the range of int16")

  @pytest.mark.parametrize(
    "changes, example, message",
    [
      ({"shape": (None, 2)}, [[1, 2]], r"is int16 of shape \(None, 2\), must be integer and mono"),
      ({"dtype": np.float32}, [0.5], r"is float32 of shape \(None,\), must be integer and mono"),
    ],
  )
  def test_of_another_kind(self, prepare, changes, example, message):
    examples = clips(example, dtype=changes.get("dtype", np.int16))
    prepare(audio_features(**changes), {"train": examples})
    check("toy", f"audio: {message}")

  def test_compressed(self, prepare):
    path = prepare(audio_features(), {"train": clips([1])}) / "features.json"
    path.write_text(path.read_text().replace('"encoding"', '"lazyDecode": true, "encoding"'))
    check("toy", "damaged or cannot be read without TensorFlow")


def check(name, message):
  with pytest.raises(sources.DataError, match=message) as caught:
    sources.load(f"tfds:{name}", KEY)
  assert str(caught.value).startswith(f"tfds:{name}: ")
  assert "\n" not in str(caught.value)


def command(name):
  return rf"python -c .*builder\('{name}', file_format='array_record'\).download_and_prepare\(\)\"$"


class TestFinding:
  def test_version(self, prepare):
    for version, n in [("1.9.0", 5), ("1.10.0", 6), ("1.2.0", 7)]:
      prepare(image_features(), {"train": images(n), "test": images(1)}, version=version)
    assert len(prepared.load("toy", KEY).x_train) == 6
    assert len(prepared.load("toy:1.2.0", KEY).x_train) == 7
    check("toy:2.0.0", "in version 1.2.0, 1.9.0, 1.10.0, must be one of these or left out")

  def test_configuration(self, prepare):
    for config, n in [("letters", 5), ("digits-all.2", 6)]:
      prepare(image_features(), {"train": images(n), "test": images(1)}, config=config)
    assert len(prepared.load("toy/letters", KEY).x_train) == 5
    assert len(prepared.load("toy/digits-all.2:1.0.0", KEY).x_train) == 6
    check("toy", "must name one; prepared are tfds:toy/digits-all.2, tfds:toy/letters$")

  def test_in_the_home_directory(self, prepare, data_dir, monkeypatch):
    prepare(image_features(), {"train": images(5)})
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(data_dir / "home"))
    (data_dir / "home").mkdir()
    (data_dir / "home/tensorflow_datasets").symlink_to(data_dir)
    assert prepared.load("toy", KEY).name == "toy"

  @pytest.mark.parametrize("name", ["cifar10", "emnist/byclass", "speech_commands"])
  def test_not_prepared(self, data_dir, name):
    check(name, f"is not prepared in {data_dir} .*TFDS_DATA_DIR.*TensorFlow.*{command(name)}")

  def test_unfinished(self, prepare, data_dir):
    path = prepare(image_features(), {"train": images(5)}, name="mnist")
    path.rename(path.parent / "incomplete.ABC_1.0.0")
    check("mnist", f"is not prepared in {data_dir}")

  def test_unknown(self, data_dir):
    check("nosuch", f"is unknown to tensorflow_datasets {tfds.__version__} and not in {data_dir}$")

  def test_misspelt(self):
    check("Cifar_10", "is unknown .*; did you mean tfds:cifar10 or ")

  @pytest.mark.parametrize("name", ["a b", "../toy", "a/b/c", "toy:1", "/tmp", "toy/", "gs://a"])
  def test_not_a_name(self, name):
    check(name, r"must be tfds:NAME\[/CONFIG\]\[:VERSION\]")

  @pytest.mark.parametrize("name", ["tfds", "tfds:"])
  def test_no_name(self, name):
    with pytest.raises(sources.DataError, match=f"--dataset={name}: unknown .*'tfds:NAME'"):
      sources.load(name, KEY)

  def test_not_installed(self, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    check("cifar10", r"needs tensorflow_datasets, .*; pip install '.\[tfds\]'$")

  def test_tfrecord(self, prepare):
    path = prepare(image_features(), {"train": images(5)})
    info = json.loads((path / "dataset_info.json").read_text())
    (path / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    check(
      "toy",
      f"is prepared as tfrecord in {path}, must be array_record; remove that .*{command('toy')}",
    )


class TestBadSets:
  def test_two_images(self, prepare):
    examples = images(5, other=lambda i: image(i))
    prepare(image_features(other=tfds.features.Image(shape=RGB)), {"train": examples})
    listed = r"image \(Image\), label \(ClassLabel\), other \(Image\)$"
    check("toy", f"has 2 image or audio features, must have one; its are {listed}")

  def test_two_labels(self, prepare):
    examples = images(5, fine=lambda i: 0)
    prepare(image_features(fine=tfds.features.ClassLabel(num_classes=2)), {"train": examples})
    check("toy", r"has 2 ClassLabel features, .* fine \(ClassLabel\)")

  def test_no_image(self, prepare):
    label = tfds.features.ClassLabel(num_classes=3)
    prepare({"label": label, "text": tfds.features.Text()}, {"train": [{"label": 0, "text": "a"}]})
    check("toy", r"has 0 image or audio features, .* text \(Text\)")

  def test_no_label(self, prepare):
    prepare({"image": tfds.features.Image(shape=RGB)}, {"train": [{"image": image(0)}]})
    check("toy", r"has 0 ClassLabel features, must have one; its are image \(Image\)$")

  def test_one_class(self, prepare):
    features = image_features() | {"label": tfds.features.ClassLabel(num_classes=1)}
    prepare(features, {"train": [{"image": image(0), "label": 0}]})
    check("toy", "label: is of 1 classes, must be of 2 or more")

  def test_not_a_dictionary(self, prepare):
    top = tfds.features.Dataset(image_features())
    prepare(None, {"train": [images(2)]}, top=top)
    check("toy", "holds a Dataset, must be a FeaturesDict")

  def test_unlabelled(self, prepare):
    examples = [{"image": image(i), "label": label} for i, label in enumerate([0, -1])]
    prepare(image_features(), {"train": images(3), "test": examples})
    check("toy", "test: holds the label -1 in example 1, must be 0 to 2")

  @pytest.mark.parametrize("split, index", [("train", 2), ("test", 0)])
  def test_images_of_several_sizes(self, prepare, split, index):
    splits = {"train": images(4), "test": images(4)}
    splits[split][index]["image"] = image(0, (4, 6, 3))
    prepare(image_features((None, None, 3)), splits)
    check("toy", rf"{split}: example {index} has shape \(4, 6, 3\) and those before \(4, 5, 3\)")

  def test_images_of_another_dtype(self, prepare):
    features = image_features() | {"image": tfds.features.Image(shape=(2, 2, 1), dtype=np.uint16)}
    pixels = PIL.Image.fromarray(np.zeros((2, 2), np.uint16))
    prepare(features, {"train": [{"image": pixels, "label": 0}]})
    check("toy", r"image: is uint16 of shape \(2, 2, 1\), must be uint8")

  def test_missing_file(self, prepare):
    path = prepare(image_features(), {"train": images(5)})
    next(path.glob("*array_record*")).unlink()
    check("toy", f"train: {path} is damaged .*No such file")

  def test_cut_short(self, prepare):
    path = prepare(image_features(), {"train": images(5)})
    file = next(path.glob("*array_record*"))
    file.write_bytes(file.read_bytes()[:-100])
    check("toy", f"train: {path} is damaged")

  def test_one_class_occurs(self, prepare):
    examples = [{"image": image(i), "label": 1} for i in range(4)]
    prepare(image_features(), {"train": examples})
    check("toy", "labels: are all 1, must be of 2 or more classes")

  def test_damaged_description(self, prepare):
    path = prepare(image_features(), {"train": images(5)})
    (path / "features.json").write_text("{")
    check("toy", f"{path} is damaged .*JSONDecodeError")
