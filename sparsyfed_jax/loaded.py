"""Trained models read back from what a run has left."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sparsyfed_jax import trees
from sparsyfed_jax.data.dataset import TASKS, Dataset, Signature
from sparsyfed_jax.data.mapped import ends
from sparsyfed_jax.data.scaling import as_range
from sparsyfed_jax.fed.task import Task, classification
from sparsyfed_jax.fed.tasks import multi_label, next_token, regression
from sparsyfed_jax.io import model_file
from sparsyfed_jax.io.model_file import ModelFileError, PathLike
from sparsyfed_jax.io.model_places import find_file
from sparsyfed_jax.models import CNN, LSTM, MLP, ResNet18, Transformer, ViT, functions_of
from sparsyfed_jax.types import Batch, Variables

BATCH_SIZE = 256
_OURS: dict[str, Any] = {
  kind.__name__: kind for kind in (CNN, LSTM, MLP, ResNet18, Transformer, ViT)
}
# Fields of a linen module that are no arguments of the network.
_NO_ARGUMENTS = ("ops", "parent", "name")
_MAKERS = {"next_token": next_token, "multi_label": multi_label, "regression": regression}


class Loaded(NamedTuple):
  """A trained model, as `load_model` reads it.

  Example:
    >>> import jax, tempfile
    >>> import numpy as np
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> model = sf.models.MLP(10)
    >>> variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))
    >>> path = tempfile.mkdtemp() + "/model.sfed"
    >>> size = sf.save_model(path, model, variables, data)
    >>> sf.load_model(path).predict(data.x_test[:2]).shape
    (2, 10)
  """

  model: Any  # the plain network, of whichever library
  variables: Any  # what that library predicts with: `params`, and `batch_stats` if any, of flax
  # (n, *input_shape) as stored -> logits, or of a regression the numbers in their own units
  predict: Callable[[Any], jax.Array]
  trained: Variables  # `variables` as methods and masks have them, nested dicts; see `models.Form`
  # (trained, (n, *input_shape) as stored) -> what the network makes of them, in one jitted call:
  # logits, or of a regression the numbers in standard deviations from their mean
  compute: Callable[[Variables, Any], jax.Array]
  signature: Signature  # of the data: shape, scale, the number of classes
  input_range: tuple[float, float] | None  # values that it sees as -1 and 1; None: as they are
  seen_range: tuple[float, float] | None  # least and largest value of the training examples
  classes: tuple[Any, ...]  # the labels as the source has them; () where they are not known
  round: int  # after which it was read out
  description: dict[str, Any]  # all that the file says of it

  @property
  def task(self) -> str:
    """What is predicted: classification, next_token, multi_label or regression."""
    return self.signature.kind

  @property
  def input_shape(self) -> tuple[int, ...]:
    """The shape of one example."""
    return self.signature.input_shape


def describe(model: Any, known: Signature, prunable: str = "", **others: Any) -> dict[str, Any]:
  """Describes a model for its file, so that `load_model` can build it without the data.

  Args:
    model: the module; of one that is ours its arguments are told, of others the class alone.
    known: of the data that it was trained on.
    prunable: which parameters are, as its task was told.
    **others: what else is to be known of it.

  Example:
    >>> import sparsyfed_jax as sf
    >>> describe(sf.models.MLP(10, hidden=(8,)), sf.data.digits().signature)["model"]
    {'class': 'MLP', 'arguments': {'num_classes': 10, 'hidden': (8,)}}
  """
  kind = type(model)
  told: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__qualname__}", "arguments": {}}
  if _OURS.get(kind.__name__) is kind:
    names = [field.name for field in dataclasses.fields(kind)]
    arguments = {name: getattr(model, name) for name in names if name not in _NO_ARGUMENTS}
    told = {"class": kind.__name__, "arguments": arguments}
  signature = known._asdict() | {"task": known.kind, "dataset": known.name}
  for name in ("kind", "name", "told"):
    del signature[name]
  values = {"model": told, **signature, "prunable": prunable, **others}
  return {name: value for name, value in values.items() if not _is_empty(value)}


def _is_empty(value: Any) -> bool:
  return value is None or (isinstance(value, str | tuple) and not value)


def save_model(
  path: PathLike,
  model: Any,
  variables: Variables,
  data: Dataset,
  value_dtype: Any = None,
  compression: str | None = None,
  prunable: str = "",
  **others: Any,
) -> int:
  """Writes a trained model as `load_model` and `python -m experiments.export` read it.

  Args:
    path: the file, by custom `*.sfed`; replaced if it exists.
    model: the plain module that the task was made of.
    variables: with which it predicts, as `Run.model` gives them.
    data: that it was trained on; its shape, scale and labels are kept.
    value_dtype: None is lossless; float32, bfloat16 or float16 rounds, and no weight to 0.
    compression: None, or "zstd", for which the package zstandard is needed.
    prunable: as the task was given it.
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
  is_scaled = data.kind != "next_token"
  told = describe(
    model,
    data.signature,
    prunable,
    input_range=as_range(data.mean, data.std) if is_scaled else None,
    seen_range=ends(data.x_train),
    classes=data.classes,
  )
  return model_file.write(path, told | others, variables, value_dtype, compression)


def load_model(path: PathLike, which: str = "last", model: Any = None) -> Loaded:
  """Reads the model that a run has trained: the weights with which it predicts.

  The data set is not needed, and nothing that a file names is run.

  Args:
    path: the folder of a run, ended or not, or a model file such as `experiments.export` writes.
    which: of a run's folder "last", the model of its last checkpoint or end, or "best", that of the
      evaluation which `--keep_best` has kept.
    model: what the run's model was, where it is not one of `sparsyfed_jax.models`; of a factory
      that was a flag what it returns, such as `factory(10)`.

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
  description, trained = model_file.read(place)
  known = _Description(place, description)
  signature = known.signature()
  network = _build(place, known.mapping("model")) if model is None else model
  task = _make_task(place, network, signature, str(known.get("prunable") or ""))
  _check_variables(place, task, trained, type(network).__name__)
  classes = known.get("classes") or ()
  if not isinstance(classes, list | tuple):
    raise ModelFileError(f"{place}: classes must be a list, is {str(classes)[:60]}")
  held = jax.tree.map(jnp.asarray, trained)
  compute = _function_of(network, task, signature)
  return Loaded(
    model=network,
    variables=task.to_model(held),
    predict=_predictor(compute, held, signature),
    trained=held,
    compute=compute,
    signature=signature,
    input_range=known.limits("input_range"),
    seen_range=known.limits("seen_range"),
    classes=tuple(classes),
    round=int(known.number("round")) if "round" in description else 0,
    description=description,
  )


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

  def numbers(self, name: str) -> tuple[float, ...]:
    found = self.get(name) or []
    is_list = isinstance(found, list) and all(type(one) in (int, float) for one in found)
    return tuple(map(float, found)) if is_list else self._refuse(name, "a list of numbers")

  def signature(self) -> Signature:
    kind = self.get("task")
    if kind not in TASKS:
      self._refuse("task", f"one of {', '.join(TASKS)}")
    signature = Signature(
      name=str(self.get("dataset")),
      kind=kind,
      input_shape=self.shape("input_shape"),
      num_classes=int(self.number("num_classes")),
      mean=self.number("mean"),
      std=self.number("std"),
      target_means=self.numbers("target_means"),
      target_stds=self.numbers("target_stds"),
    )
    if signature.std <= 0:
      self._refuse("std", "above 0")
    return signature

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
  if kind is None:
    raise ModelFileError(
      f"{place}: is a model of the class {name!r}, which is not one of sparsyfed_jax.models; pass"
      " the module as model= (to a command --model=./file.py:factory)"
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


def _make_task(place: pathlib.Path, network: Any, known: Signature, prunable: str) -> Task:
  try:
    if known.kind != "classification":
      return _MAKERS[known.kind](network, known, prunable=prunable)
    return classification(
      network,
      known.input_shape,
      known.mean,
      known.std,
      num_classes=known.num_classes,
      prunable=prunable,
    )
  except Exception as error:  # arguments that make no network, or examples that it does not take
    line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    raise ModelFileError(
      f"{place}: {type(network).__name__} does not fit its data ({line})"
    ) from error


def _check_variables(place: pathlib.Path, task: Task, trained: Variables, name: str) -> None:
  """Refuses weights that are not those of the network; raises ModelFileError."""
  expected = _shapes_of(jax.eval_shape(task.init, jax.eval_shape(lambda: jax.random.key(0))))
  found = _shapes_of(trained)
  for path in dict.fromkeys([*expected, *found]):
    if expected.get(path) != found.get(path):
      raise ModelFileError(
        f"{place}: {path} is {found.get(path, 'missing')}, must be"
        f" {expected.get(path, 'left out')} in {name}"
      )


def _shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {trees.path_name(path): leaf.shape for path, leaf in flat}


def _function_of(
  network: Any, task: Task, known: Signature
) -> Callable[[Variables, jax.Array], jax.Array]:
  is_of_tokens = known.kind == "next_token"
  if not isinstance(network, nn.Module):

    def compute(trained: Variables, x: jax.Array) -> jax.Array:
      assert task.predict is not None
      y = jnp.zeros(x.shape if is_of_tokens else x.shape[:1], jnp.int32)  # counts for nothing
      return task.predict(trained, Batch(x, y, jnp.ones(x.shape[:1], bool)))

    return jax.jit(compute)
  # Layers are tuned to training: to predict, ResNet-18 took up to four times as long with them.
  dtype = jnp.int32 if is_of_tokens else jnp.float32
  apply = functions_of(network, known.input_shape, dtype).apply

  def compute_plainly(trained: Variables, x: jax.Array) -> jax.Array:
    own = task.to_model(trained)
    state = {name: part for name, part in own.items() if name != "params"}
    scaled = x if is_of_tokens else (x.astype(jnp.float32) - known.mean) / known.std
    valid, key = jnp.ones(1, bool), jax.random.key(0)  # of which a prediction takes nothing
    return apply(own["params"], state, scaled, valid, key, train=False)[0]

  return jax.jit(compute_plainly)


def _predictor(
  compute: Callable[[Variables, jax.Array], jax.Array], trained: Variables, known: Signature
) -> Callable[[Any], jax.Array]:
  def predict(x: Any) -> jax.Array:
    """Computes logits, or the numbers of a regression, BATCH_SIZE examples at a time.

    Args:
      x: (n, *input_shape) numbers, scaled as those of the data set the model was trained on.

    Raises:
      ValueError: x has another shape, or is not of numbers, or holds no tokens.
    """
    x = _checked(np.asarray(x), known)
    size, parts = min(len(x), BATCH_SIZE), []
    for start in range(0, len(x), size):
      part = x[start : start + size]
      rest = np.zeros((size - len(part), *known.input_shape), x.dtype)
      parts.append(compute(trained, jnp.asarray(np.concatenate([part, rest])))[: len(part)])
    found = jnp.concatenate(parts)
    if known.kind != "regression":
      return found
    scales = known.target_means, known.target_stds
    mean, std = (jnp.asarray([scale], jnp.float32) for scale in scales)
    return found * std + mean

  return predict


def _checked(x: np.ndarray, known: Signature) -> np.ndarray:
  """Makes what is stored of examples; raises ValueError where they cannot be some."""
  is_of_tokens = known.kind == "next_token"
  if x.shape[1:] != known.input_shape or x.ndim == 0 or not len(x):
    shape = ", ".join(map(str, known.input_shape))
    raise ValueError(f"x has shape {x.shape}, must be (n, {shape})")
  if x.dtype.kind not in ("bui" if is_of_tokens else "buif"):
    raise ValueError(f"x is of {x.dtype}, must be {'tokens' if is_of_tokens else 'numbers'}")
  if is_of_tokens:
    if x.min() < 0 or x.max() >= known.num_classes:
      right = f"tokens from 0 to {known.num_classes - 1}"
      raise ValueError(f"x holds {x.min()} to {x.max()}, must hold {right}")
    return x.astype(np.int32)
  return x if x.dtype in (np.uint8, np.int16) else x.astype(np.float32)
