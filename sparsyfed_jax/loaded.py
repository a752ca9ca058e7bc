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
from sparsyfed_jax.io import model_file
from sparsyfed_jax.io.model_file import SUFFIX, ModelFileError
from sparsyfed_jax.types import Variables

PathLike: TypeAlias = str | os.PathLike[str]

LAST_NAME = f"model{SUFFIX}"
BEST_DIRECTORY = "best"
WHICH = ("last", "best")
CLASSIFICATION = "classification"
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
  predict: Callable[[Any], jax.Array]  # (n, *input_shape) as stored -> (n, num_classes) logits
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
  model: nn.Module,
  input_shape: tuple[int, ...],
  mean: float = 0.0,
  std: float = 1.0,
  **others: Any,
) -> dict[str, Any]:
  """Describes a model for its file, so that `load_model` can build it without the data.

  Args:
    model: a flax module whose arguments are plain values; what it computes with does not count.
    input_shape: shape of one example.
    mean: the model sees (x - mean) / std.
    std: see `mean`.
    **others: what else is to be known of it.

  Example:
    >>> import sparsyfed_jax as sf
    >>> describe(sf.models.MLP(3, hidden=(8,)), (4,))["model"]
    {'class': 'MLP', 'arguments': {'num_classes': 3, 'hidden': (8,)}}
  """
  kind = type(model)
  arguments = {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(kind)
    if field.name not in _NO_ARGUMENTS
  }
  is_ours = _OURS.get(kind.__name__) is kind
  name = kind.__name__ if is_ours else f"{kind.__module__}.{kind.__qualname__}"
  told = {"class": name, "arguments": arguments if is_ours else {}}
  shape = tuple(input_shape)
  return dict(
    model=told, task=CLASSIFICATION, input_shape=shape, mean=float(mean), std=float(std), **others
  )


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
  _check_variables(place, network, input_shape, variables)
  mean, std = known.number("mean"), known.number("std")
  if std <= 0:
    raise ModelFileError(f"{place}: std is {std}, must be above 0")
  task = known.get("task")
  if task != CLASSIFICATION:
    raise ModelFileError(f"{place}: is of the task {task!r}, must be {CLASSIFICATION!r}")
  classes = known.get("classes") or ()
  if not isinstance(classes, list | tuple):
    raise ModelFileError(f"{place}: classes must be a list, is {str(classes)[:60]}")
  return Loaded(
    model=network,
    variables=jax.tree.map(jnp.asarray, variables),
    predict=_predictor(network, variables, input_shape, mean, std),
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
  place: pathlib.Path, network: Any, input_shape: tuple[int, ...], variables: Variables
) -> None:
  """Refuses weights that are not those of the network; raises ModelFileError."""
  x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
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


def _predictor(
  network: Any, variables: Variables, input_shape: tuple[int, ...], mean: float, std: float
) -> Callable[[Any], jax.Array]:
  @jax.jit
  def logits_of(variables: Variables, x: jax.Array) -> jax.Array:
    return network.apply(variables, (x.astype(jnp.float32) - mean) / std, train=False)

  held = jax.tree.map(jnp.asarray, variables)

  def predict(x: Any) -> jax.Array:
    """Computes logits, BATCH_SIZE examples at a time.

    Args:
      x: (n, *input_shape) numbers, scaled as those of the data set the model was trained on.

    Raises:
      ValueError: x has another shape, or is not of numbers.
    """
    x = np.asarray(x)
    if x.shape[1:] != input_shape or x.ndim == 0 or not len(x):
      raise ValueError(f"x has shape {x.shape}, must be (n, {', '.join(map(str, input_shape))})")
    if x.dtype.kind not in "buif":
      raise ValueError(f"x is of {x.dtype}, must be numbers")
    if x.dtype not in (np.uint8, np.int16):
      x = x.astype(np.float32)
    size = min(len(x), BATCH_SIZE)
    parts = []
    for start in range(0, len(x), size):
      part = x[start : start + size]
      rest = np.zeros((size - len(part), *input_shape), x.dtype)
      parts.append(logits_of(held, jnp.asarray(np.concatenate([part, rest])))[: len(part)])
    return jnp.concatenate(parts)

  return predict
