"""Data sets that tensorflow_datasets has prepared on this machine, as plain arrays.

They are read from array_record files, without TensorFlow and without the network: what is not there
yet is an error whose message holds the command that prepares it.
"""

import contextlib
import difflib
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsyfed_jax.data import audio, scaling
from sparsyfed_jax.data.dataset import DataError, Dataset, Part, dataset_of, split_80_20
from sparsyfed_jax.data.labels import Label, number

AUDIO_RATE = 8000  # samples a second; a clip is kept for one second

# Features that hold the natural client of an example, the first that there is.
_CLIENTS = (
  *("client_id", "user_id", "speaker_id", "writer_id"),
  *("client", "user", "speaker", "writer"),
)
_NAME = re.compile(r"(?P<path>\w+(/[\w.-]+)?)(:(?P<version>\d+\.\d+\.\d+))?")


def load(name: str, key: jax.Array) -> Dataset:
  """Loads an image or audio classification set that tensorflow_datasets has prepared.

  Train and test are the set's splits of these names; without `test`, `validation` if there is no
  other, and otherwise the key splits `train` 80/20. Further splits are not used, so speech_commands
  leaves its `validation` out.

  The examples are the set's image or audio and the labels its ClassLabel: those that its
  supervised_keys name, or else the only ones. Where the set has names for its classes, all of these
  are classes; where it only numbers them, those that occur. A feature client_id, user_id,
  speaker_id or writer_id, with or without _id, gives the natural clients, numbered in sorted order.

  Images are uint8 NHWC of one size and are kept as they are; those of emnist are stored transposed.
  Audio must be mono and say its sample rate; each clip is resampled to 8 kHz and cut or filled with
  zeros at its end to one second.

  Args:
    name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION; the latest version by default.
      The set lies in the directory $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    key: a JAX PRNG key; not used where the set has a test or validation split.

  Returns:
    The data set; x is (n, height, width, channels) uint8, scaled as `scaling.find_range` finds
    right for the training images, or (n, 8000) int16, whose whole range is scaled to [-1, 1].

  Raises:
    DataError: tensorflow_datasets is not installed, or the set is unknown, not prepared as
      array_record or not of this kind.
  """
  where = f"tfds:{name}"
  tfds = _import(where)
  directory = _find(where, name, tfds)
  builder = _open(where, directory, tfds)
  formats = {file_format.value for file_format in builder.info.available_file_formats()}
  if "array_record" not in formats:
    raise DataError(
      f"{where}: is prepared as {', '.join(sorted(formats))} in {directory}, must be array_record;"
      f" remove that directory or choose another TFDS_DATA_DIR, then {_how_to_prepare(name)}"
    )
  reader = _reader(where, builder.info, tfds)
  train, test = _splits(where, list(builder.info.splits))
  kept, clients = _read(where, builder, train, reader)
  num_clients = 0
  if reader.client:
    names, numbers = np.unique(np.array(clients), return_inverse=True)
    kept, num_clients = kept._replace(clients=numbers.astype(np.int32)), len(names)
  if test:
    tested, testers = _read(where, builder, test, reader, kept.x.shape[1:])
    # Clients of whom there is no training example are nobody's: the test set is then the center's.
    if reader.client and set(testers) <= set(names):
      numbers = np.searchsorted(names, np.array(testers))
      tested = tested._replace(clients=numbers.astype(np.int32))
  else:
    kept, tested = split_80_20(kept, key, where)
  classes: tuple[Label, ...] = reader.class_names
  if not classes:
    labels, classes = number(kept.y, tested.y)
    kept, tested = kept._replace(y=labels[0]), tested._replace(y=labels[1])
  if len(classes) < 2:
    raise DataError(f"{where}: labels: are all {classes[0]}, must be of 2 or more classes")
  limits = reader.limits or scaling.find_range(kept.x)
  return dataset_of(name, kept, tested, classes, num_clients, limits)


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
  """Lets an audio feature be made without TensorFlow, which it only asks for the name of a dtype.

  See https://github.com/tensorflow/datasets/issues/11233; no other feature needs this.
  """
  from tensorflow_datasets.core.features import audio_feature

  original = getattr(audio_feature, "tf", None)
  audio_feature.tf = SimpleNamespace(dtypes=SimpleNamespace(as_dtype=np.dtype))
  try:
    yield
  finally:
    audio_feature.tf = original


class _Reader(NamedTuple):
  """Which features of an example to read, and how."""

  x: str
  y: str
  client: str | None
  convert: Callable[[np.ndarray], np.ndarray]  # from what is stored of x to the array to keep
  num_classes: int
  class_names: tuple[str, ...]  # () where the set only numbers its classes
  limits: scaling.Range | None  # None to be found in the examples


def _import(where: str) -> ModuleType:
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise DataError(
      f"{where}: needs tensorflow_datasets, which cannot be imported ({error});"
      " pip install '.[tfds]'"
    ) from None
  return tensorflow_datasets


def _find(where: str, name: str, tfds: ModuleType) -> pathlib.Path:
  """Finds the directory of a prepared set, DATA_DIR/NAME[/CONFIG]/VERSION."""
  match = _NAME.fullmatch(name)
  if not match:
    raise DataError(f"{where}: must be tfds:NAME[/CONFIG][:VERSION], such as tfds:emnist/byclass")
  data_dir = pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
  path, version = match["path"], match["version"]
  versions = _versions(data_dir / path)
  if versions and version in (None, *versions):
    return data_dir / path / (version or versions[-1])
  if versions:
    raise DataError(
      f"{where}: is prepared in {data_dir / path} in version {', '.join(versions)}, must be one of"
      " these or left out"
    )
  if "/" not in path and (data_dir / path).is_dir():
    configs = sorted(child.name for child in (data_dir / path).iterdir() if _versions(child))
    if configs:
      choices = ", ".join(f"tfds:{path}/{config}" for config in configs)
      raise DataError(f"{where}: has configurations, must name one; prepared are {choices}")
  known = tfds.list_builders(with_community_datasets=False)
  base = path.partition("/")[0]
  if base not in known:
    close = difflib.get_close_matches(base.lower(), known)
    hint = f"; did you mean {' or '.join(f'tfds:{other}' for other in close)}?" if close else ""
    raise DataError(
      f"{where}: is unknown to tensorflow_datasets {tfds.__version__} and not in {data_dir}{hint}"
    )
  raise DataError(
    f"{where}: is not prepared in {data_dir} (TFDS_DATA_DIR names another directory);"
    f" {_how_to_prepare(name)}"
  )


def _versions(folder: pathlib.Path) -> list[str]:
  """Returns the prepared versions in a folder, the latest last."""
  found = [child.parent.name for child in folder.glob("*/dataset_info.json")]
  found = [version for version in found if re.fullmatch(r"\d+\.\d+\.\d+", version)]
  return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def _how_to_prepare(name: str) -> str:
  return (
    "prepare it once, in an environment that has TensorFlow (pip install tensorflow-datasets"
    ' tensorflow importlib_resources pydub): python -c "import tensorflow_datasets as tfds;'
    f" tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
  )


def _open(where: str, directory: pathlib.Path, tfds: ModuleType) -> Any:
  """Makes a builder from the files alone: the one from the set's code may ask the network."""
  try:
    with without_tensorflow():
      return tfds.builder_from_directory(directory)
  except Exception as error:
    raise _unreadable(where, directory, error) from None


def _unreadable(where: str, directory: pathlib.Path | str, error: Exception) -> DataError:
  reason = " ".join(f"{type(error).__name__}: {error}".split())
  return DataError(
    f"{where}: {directory} is damaged or cannot be read without TensorFlow ({reason})"
  )


def _reader(where: str, info: Any, tfds: ModuleType) -> _Reader:
  """Chooses the features to read and checks that they are of a kind that can be used."""
  if not isinstance(info.features, tfds.features.FeaturesDict):
    raise DataError(f"{where}: holds a {type(info.features).__name__}, must be a FeaturesDict")
  features = dict(sorted(info.features.items()))  # read back in any order
  supervised = info.supervised_keys or ()
  kinds = (tfds.features.Image, tfds.features.Audio)
  x = _choose(where, features, kinds, supervised, "image or audio")
  y = _choose(where, features, tfds.features.ClassLabel, supervised, "ClassLabel")
  num_classes = features[y].num_classes
  if not num_classes or num_classes < 2:
    raise DataError(f"{where}: {y}: is of {num_classes} classes, must be of 2 or more")
  scalars = [name for name, feature in features.items() if feature.shape == ()]
  client = next((name for name in _CLIENTS if name in scalars), None)
  is_image = isinstance(features[x], tfds.features.Image)
  convert = (_image if is_image else _audio)(f"{where}: {x}", features[x])
  names = tuple(features[y].names)
  if names == tuple(map(str, range(num_classes))):  # what it says without names of its own
    names = ()
  return _Reader(x, y, client, convert, num_classes, names, None if is_image else scaling.AUDIO)


def _choose(where: str, features: dict[str, Any], kind: Any, supervised: Any, noun: str) -> str:
  """Returns the name of the only feature of a kind, or of the one among the supervised keys."""
  found = [name for name, feature in features.items() if isinstance(feature, kind)]
  chosen = [name for name in found if name in supervised] or found
  if len(chosen) == 1:
    return chosen[0]
  listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
  raise DataError(f"{where}: has {len(chosen)} {noun} features, must have one; its are {listed}")


def _image(where: str, feature: Any) -> Callable[[np.ndarray], np.ndarray]:
  if feature.np_dtype != np.uint8 or len(feature.shape) != 3:
    raise DataError(
      f"{where}: is {np.dtype(feature.np_dtype)} of shape {feature.shape}, must be uint8 of shape"
      " (height, width, channels)"
    )
  return lambda image: image


def _audio(where: str, feature: Any) -> Callable[[np.ndarray], np.ndarray]:
  dtype = np.dtype(feature.np_dtype)
  if dtype.kind not in "iu" or feature.shape[1:] not in ((), (1,)):
    raise DataError(f"{where}: is {dtype} of shape {feature.shape}, must be integer and mono")
  if not feature.sample_rate:
    raise DataError(
      f"{where}: does not say its sample rate, must be known to be resampled to {AUDIO_RATE} Hz;"
      " save the clips as an .npz file instead"
    )

  def convert(clip: np.ndarray) -> np.ndarray:
    if len(clip) and (clip.min() < -(2**15) or clip.max() >= 2**15):
      raise DataError(f"{where}: holds {clip.min()} to {clip.max()}, must be in the range of int16")
    waveform = clip.ravel().astype(np.int16)
    return audio.pad_or_cut(audio.resample(waveform, feature.sample_rate, AUDIO_RATE), AUDIO_RATE)

  return convert


def _splits(where: str, splits: list[str]) -> tuple[str, str | None]:
  """Returns the names of the splits to train and to test on; None if train is to be split."""
  if "train" not in splits:
    raise DataError(f"{where}: has the splits {', '.join(splits)}, must have one called train")
  if "test" in splits:
    return "train", "test"
  return "train", "validation" if sorted(splits) == ["train", "validation"] else None


def _read(
  where: str, builder: Any, split: str, reader: _Reader, shape: tuple[int, ...] | None = None
) -> tuple[Part, list[Any]]:
  """Reads a split, example by example into arrays made for all of them.

  Args:
    where: how to begin an error message.
    builder: a builder of the set.
    split: name of the split.
    reader: what to read of an example.
    shape: the shape that examples must have; the shape of the first by default.

  Returns:
    The examples (n, *shape) with their labels (n,) int32 and, if the reader reads them, the n
    clients.
  """
  where = f"{where}: {split}"
  x: np.ndarray | None = None
  clients: list[Any] = []
  try:
    source = builder.as_data_source(split)
    y = np.empty(len(source), np.int32)
    for i, example in enumerate(source):
      one = reader.convert(example[reader.x])
      shape = shape or one.shape
      if one.shape != shape:
        raise DataError(
          f"{where}: example {i} has shape {one.shape} and those before {shape}, must be of one"
          " size; save them resized as an .npz file instead"
        )
      x = np.empty((len(source), *shape), one.dtype) if x is None else x
      x[i], y[i] = one, example[reader.y]
      if reader.client:
        clients.append(example[reader.client])
  except DataError:
    raise
  except Exception as error:  # array_record, protobuf and image decoders each have their own
    raise _unreadable(where, builder.data_dir, error) from None
  if x is None:
    raise DataError(f"{where}: is empty, must hold at least one example")
  bad = np.flatnonzero((y < 0) | (y >= reader.num_classes))
  if len(bad):
    raise DataError(
      f"{where}: holds the label {y[bad[0]]} in example {bad[0]}, must be 0 to"
      f" {reader.num_classes - 1}; splits without labels cannot be used"
    )
  return Part(x, y), clients
