"""Trained models read back from what a run has left."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sparsyfed_jax import models, trees
from sparsyfed_jax.data.dataset import TASKS, Dataset
from sparsyfed_jax.data.scaling import as_range
from sparsyfed_jax.io import model_file
from sparsyfed_jax.io.model_file import SUFFIX, ModelFileError
from sparsyfed_jax.types import Variables

PathLike: TypeAlias = str | os.PathLike[str]

LAST_NAME = f"model{SUFFIX}"
BEST_DIRECTORY = "best"
WHICH = ("last", "best")
CLASSIFICATION, NEXT_TOKEN, REGRESSION = "classification", "next_token", "regression"
BATCH_SIZE = 256
_BEST = re.compile(rf"(\d{{8,}}){re.escape(SUFFIX)}")
_OURS = {name: getattr(models, name) for name in models.__all__}
# Fields of a linen module that are no arguments of the network.
_NO_ARGUMENTS = ("ops", "parent", "name")


class Loaded(NamedTuple):
  """A trained model, as `load_model` reads it.

  Example:
    >>> import jax, tempfile
    >>> import numpy as np
    >>> import sparsyfed_jax as sf
    >>> from sparsyfed_jax.io import model_file
    >>> model = sf.models.MLP(10)
    >>> variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))
    >>> path = tempfile.mkdtemp() + "/model.sfed"
    >>> size = model_file.write(path, describe(model, (8, 8, 1), 8.0, 8.0), variables)
    >>> loaded = sf.load_model(path)
    >>> loaded.predict(np.zeros((2, 8, 8, 1), np.uint8)).shape
    (2, 10)
  """

  model: Any  # the plain network, a flax module
  variables: Variables  # with which it predicts: `params`, and `batch_stats` if any
  # (n, *input_shape) as stored -> (n, num_classes) logits; of tokens (n, length, num_classes); of
  # regression (n, numbers) on the scale of the targets.
  predict: Callable[[Any], jax.Array]
  input_shape: tuple[int, ...]  # of one example
  mean: float  # the network sees (x - mean) / std, which `predict` computes
  std: float
  input_range: tuple[float, float] | None  # values that it sees as -1 and 1; None: as they are
  seen_range: tuple[float, float] | None  # least and largest value of the training examples
  classes: tuple[Any, ...]  # the labels as the source has them; () where they are not known
  task: str
  round: int  # after which it was read out
  description: dict[str, Any]  # all that the file says of it


def describe(
  model: Any,
  input_shape: tuple[int, ...],
  mean: float = 0.0,
  std: float = 1.0,
  task: str = CLASSIFICATION,
  **others: Any,
) -> dict[str, Any]:
  """Describes a model for its file, so that `load_model` can build it without the data.

  Args:
    model: the flax module; of one that is ours its arguments are told, of others the class alone.
    input_shape: shape of one example.
    mean: the model sees (x - mean) / std.
    std: see `mean`.
    task: that it was trained for.
    **others: what else is to be known of it; of regression `target_means` and `target_stds`, the
      scale of its outputs.

  Example:
    >>> import sparsyfed_jax as sf
    >>> describe(sf.models.MLP(3, hidden=(8,)), (4,))["model"]
    {'class': 'MLP', 'arguments': {'num_classes': 3, 'hidden': (8,)}}
  """
  kind = type(model)
  told: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__qualname__}", "arguments": {}}
  if _OURS.get(kind.__name__) is kind:
    names = [field.name for field in dataclasses.fields(kind)]
    arguments = {name: getattr(model, name) for name in names if name not in _NO_ARGUMENTS}
    told = {"class": kind.__name__, "arguments": arguments}
  shape = tuple(input_shape)
  return dict(model=told, task=task, input_shape=shape, mean=float(mean), std=float(std), **others)


def save_model(
  path: PathLike,
  model: nn.Module,
  variables: Variables,
  data: Dataset,
  value_dtype: Any = None,
  compression: str | None = None,
  **others: Any,
) -> int:
  """Writes a trained model as `load_model` and `python -m experiments.export` read it.

  Args:
    path: the file, by custom `*.sfed`; replaced if it exists.
    model: the plain flax module.
    variables: with which it predicts, as `Run.model` gives them.
    data: that it was trained on; its shape, scale and labels are kept.
    value_dtype: None is lossless; float32, bfloat16 or float16 rounds, and no weight to 0.
    compression: None, or "zstd", for which the package zstandard is needed.
    **others: what else is to be known of it, of what JSON knows, such as `round=100`.

  Returns:
    How many bytes the file has.

  Raises:
    ValueError: `value_dtype` or `compression` cannot be.
    OSError: the file cannot be written.

  Example:
    >>> import tempfile
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> model = sf.models.MLP(10)
    >>> run = sf.simulate(sf.sparsyfed(), sf.classification(model, data), sf.data.iid(data))
    >>> path = tempfile.mkdtemp() + "/model.sfed"
    >>> save_model(path, model, run.model(run.init(seed=0)), data) > 60_000
    True
    >>> sf.load_model(path).input_range
    (0.0, 16.0)
  """
  known = data.signature
  told = describe(
    model,
    known.input_shape,
    data.mean,
    data.std,
    known.kind,
    input_range=None if known.kind == NEXT_TOKEN else as_range(data.mean, data.std),
    target_means=known.target_means,
    target_stds=known.target_stds,
    seen_range=(float(data.x_train.min()), float(data.x_train.max())),
    classes=data.classes,
    dataset=data.name,
  )
  return model_file.write(path, told | others, variables, value_dtype, compression)


def load_model(path: PathLike, which: str = "last", model: Any = None) -> Loaded:
  """Reads the model that a run has trained: the weights with which it predicts.

  The data set is not needed, and nothing that a file names is run.

  Args:
    path: the folder of a run, ended or not, or a model file such as `experiments.export` writes.
    which: of a run's folder "last", the model of its last checkpoint or end, or "best", that of the
      evaluation which `--keep_best` has kept.
    model: the flax module, where it is not one of `sparsyfed_jax.models`.

  Returns:
    The model; its layers compute in float32, whatever they were trained in.

  Raises:
    ValueError: there is no such model, it is damaged, or it is of a class that is not ours and
      `model` is not given; the message is one line and names the file.
    OSError: the file cannot be read.

  Example:
    >>> import sparsyfed_jax as sf
    >>> sf.load_model("runs/none")
    Traceback (most recent call last):
    sparsyfed_jax.io.model_file.ModelFileError: runs/none: no such file or folder, must be ...
  """
  place = find_file(path, which)
  description, variables = model_file.read(place)
  known = _Description(place, description)
  input_shape = known.shape("input_shape")
  network = _build(place, known.mapping("model")) if model is None else model
  task = known.get("task")
  if task not in TASKS:
    raise ModelFileError(f"{place}: is of the task {task!r}, must be one of {', '.join(TASKS)}")
  _check_variables(place, network, input_shape, _dtype_of(task), variables)
  mean, std = known.number("mean"), known.number("std")
  if std <= 0:
    raise ModelFileError(f"{place}: std is {std}, must be above 0")
  classes = known.get("classes") or ()
  if not isinstance(classes, list | tuple):
    raise ModelFileError(f"{place}: classes must be a list, is {str(classes)[:60]}")
  return Loaded(
    model=network,
    variables=jax.tree.map(jnp.asarray, variables),
    predict=_predictor(network, variables, input_shape, _scales(known, mean, std)),
    input_shape=input_shape,
    mean=mean,
    std=std,
    input_range=known.limits("input_range"),
    seen_range=known.limits("seen_range"),
    classes=tuple(classes),
    task=task,
    round=int(known.number("round")) if "round" in description else 0,
    description=description,
  )


def find_file(path: PathLike, which: str = "last") -> pathlib.Path:
  """Finds the model file that `load_model` reads; raises ModelFileError where there is none."""
  if which not in WHICH:
    raise ModelFileError(f"which={which!r}: must be one of {', '.join(WHICH)}")
  place = pathlib.Path(path)
  if place.is_file():
    return place
  if not place.is_dir():
    raise ModelFileError(f"{place}: no such file or folder, must be that of a run or a {SUFFIX}")
  if which == "best":
    rounds = best_rounds(place)
    if not rounds:
      raise ModelFileError(
        f"{place / BEST_DIRECTORY}: holds no model; a run with --keep_best keeps its best there"
      )
    return best_path(place, rounds[-1])
  if not (place / LAST_NAME).is_file():
    raise ModelFileError(
      f"{place / LAST_NAME}: no such file; a run writes it with its checkpoints and at its end, and"
      " one of an earlier version when it is gone on with (--resume)"
    )
  return place / LAST_NAME


def best_rounds(directory: PathLike) -> list[int]:
  """Lists the rounds of which a run keeps models of good evaluations, in order."""
  folder = pathlib.Path(directory) / BEST_DIRECTORY
  names = os.listdir(folder) if folder.is_dir() else []
  return sorted(int(found[1]) for name in names if (found := _BEST.fullmatch(name)))


def best_path(directory: PathLike, round_number: int) -> pathlib.Path:
  """Names the file of the model of a good evaluation."""
  return pathlib.Path(directory) / BEST_DIRECTORY / f"{round_number:08d}{SUFFIX}"


class _Description(NamedTuple):
  """What a file says of its model, which may be anything."""

  place: pathlib.Path
  values: Mapping[str, Any]

  def get(self, name: str) -> Any:
    return self.values.get(name)

  def mapping(self, name: str) -> Mapping[str, Any]:
    found = self.get(name)
    return found if isinstance(found, dict) else self._refuse(name, "an object")

  def number(self, name: str) -> float:
    found = self.get(name)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if is_number else self._refuse(name, "a number")

  def shape(self, name: str) -> tuple[int, ...]:
    found = self.get(name)
    is_shape = isinstance(found, list) and all(type(side) is int and side > 0 for side in found)
    return tuple(found) if is_shape else self._refuse(name, "a list of sides")

  def limits(self, name: str) -> tuple[float, float] | None:
    found = self.get(name)
    if found is None:
      return None
    is_pair = isinstance(found, list) and [type(end) in (int, float) for end in found] == [True] * 2
    return (float(found[0]), float(found[1])) if is_pair else self._refuse(name, "two numbers")

  def _refuse(self, name: str, right: str) -> Any:
    shown = repr(self.get(name))[:60]
    raise ModelFileError(f"{self.place}: {name} must be {right}, is {shown}")


def _build(place: pathlib.Path, told: Mapping[str, Any]) -> nn.Module:
  name, arguments = told.get("class"), told.get("arguments")
  kind = _OURS.get(name) if isinstance(name, str) else None
  if kind is None or not isinstance(kind, type):
    raise ModelFileError(
      f"{place}: is a model of the class {name!r}, which is not one of sparsyfed_jax.models; pass"
      " the module as model="
    )
  known = {field.name for field in dataclasses.fields(kind)} - set(_NO_ARGUMENTS)
  if not isinstance(arguments, dict) or not set(arguments) <= known:
    raise ModelFileError(
      f"{place}: the arguments of {name} must be among {', '.join(sorted(known))}, are"
      f" {str(arguments)[:60]}"
    )
  plain = {
    key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
  }
  return kind(**plain)


def _check_variables(
  place: pathlib.Path,
  network: Any,
  input_shape: tuple[int, ...],
  dtype: Any,
  variables: Variables,
) -> None:
  """Refuses weights that are not those of the network; raises ModelFileError."""
  x = jax.ShapeDtypeStruct((1, *input_shape), dtype)
  try:
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), x)
  except Exception as error:  # arguments that make no network
    line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ModelFileError(
      f"{place}: {type(network).__name__} does not take examples of shape {input_shape} ({line})"
    ) from error
  expected, found = _shapes_of(shapes), _shapes_of(variables)
  for name in dict.fromkeys([*expected, *found]):
    if expected.get(name) != found.get(name):
      raise ModelFileError(
        f"{place}: {name} is {found.get(name, 'missing')}, must be"
        f" {expected.get(name, 'left out')} in {type(network).__name__}"
      )


def _shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {trees.path_name(path): leaf.shape for path, leaf in flat}


def _dtype_of(task: str) -> Any:
  return jnp.int32 if task == NEXT_TOKEN else jnp.float32


class _Scales(NamedTuple):
  """What lies between the numbers of the data and those of a network."""

  dtype: Any
  mean: float
  std: float
  target_means: np.ndarray  # (1, numbers) of regression, or (1, 1) of 0
  target_stds: np.ndarray


def _scales(known: _Description, mean: float, std: float) -> _Scales:
  task, targets = str(known.get("task")), []
  for name, plain in (("target_means", 0.0), ("target_stds", 1.0)):
    found = known.get(name) if task == REGRESSION else [plain]
    is_list = isinstance(found, list) and all(type(one) in (int, float) for one in found)
    if not found or not is_list:
      raise ModelFileError(f"{known.place}: {name} must list numbers, is {str(found)[:60]}")
    targets.append(np.array([found], np.float32))
  return _Scales(_dtype_of(task), mean, std, *targets)


def _predictor(
  network: Any, variables: Variables, input_shape: tuple[int, ...], scales: _Scales
) -> Callable[[Any], jax.Array]:
  is_of_tokens = scales.dtype == jnp.int32

  @jax.jit
  def outputs_of(variables: Variables, x: jax.Array) -> jax.Array:
    if is_of_tokens:
      return network.apply(variables, x, train=False)
    inputs = (x.astype(jnp.float32) - scales.mean) / scales.std
    outputs = network.apply(variables, inputs, train=False)
    return outputs * scales.target_stds + scales.target_means if is_scaled else outputs

  is_scaled = bool(np.any(scales.target_stds != 1) or np.any(scales.target_means != 0))

  held = jax.tree.map(jnp.asarray, variables)

  def predict(x: Any) -> jax.Array:
    """Computes logits, or what else the network predicts, BATCH_SIZE examples at a time.

    Args:
      x: (n, *input_shape) numbers, scaled as those of the data set the model was trained on; or
        tokens, which are whole numbers.

    Raises:
      ValueError: x has another shape, or is not of numbers.
    """
    x = np.asarray(x)
    if x.shape[1:] != input_shape or x.ndim == 0 or not len(x):
      raise ValueError(f"x has shape {x.shape}, must be (n, {', '.join(map(str, input_shape))})")
    if x.dtype.kind not in "buif":
      raise ValueError(f"x is of {x.dtype}, must be numbers")
    if is_of_tokens:
      if x.dtype.kind not in "ui":
        raise ValueError(f"x is of {x.dtype}, must be tokens, which are integers")
      x = x.astype(np.int32)
    elif x.dtype not in (np.uint8, np.int16):
      x = x.astype(np.float32)
    size = min(len(x), BATCH_SIZE)
    parts = []
    for start in range(0, len(x), size):
      part = x[start : start + size]
      rest = np.zeros((size - len(part), *input_shape), x.dtype)
      parts.append(outputs_of(held, jnp.asarray(np.concatenate([part, rest])))[: len(part)])
    return jnp.concatenate(parts)

  return predict
