"""The task of a run: what its model learns of its data, and what stands for the data's classes."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.run.config import Config, ConfigError
from experiments.run.frozen import frozen_costs
from experiments.run.learning import task_of
from experiments.run.models import make_model
from experiments.run.settings import DEFAULTS
from experiments.run.weight_files import start_from
from sparsyfed_jax.data import scaling
from sparsyfed_jax.data.dataset import Dataset, Signature
from sparsyfed_jax.fed.task import Task, classification
from sparsyfed_jax.fed.tasks import multi_label, next_token, regression
from sparsyfed_jax.metrics.flops import LayerCost, product_costs

_MAKERS = {"next_token": next_token, "multi_label": multi_label, "regression": regression}


# Flags, besides --task, that the task of a run depends on.
_OF_TASK = ("model", "norm", "prunable", "dataset", "compute_dtype", "task")


def make_task(config: Config, dataset: Dataset) -> Task:
  """Makes the task of a run; the layers of a model are looked for once, whatever others say.

  Raises:
    ConfigError: the model does not fit the data, or the weights it starts from do not fit it.
  """
  return start_from(config, _whole_task(config, dataset))


def _whole_task(config: Config, dataset: Dataset) -> Task:
  """Makes the task whose weights are drawn, and all trained."""
  chosen = {name: getattr(config, name) for name in _OF_TASK}
  return _make(DEFAULTS._replace(**chosen), dataset.signature)


@functools.lru_cache(maxsize=8)
def _make(config: Config, known: Signature) -> Task:
  model = make_model(config, known.input_shape, known.num_classes)
  dtype = jnp.bfloat16 if config.compute_dtype == "bfloat16" else jnp.float32
  try:
    if known.kind != "classification":
      return _MAKERS[known.kind](model, known, dtype, config.prunable)
    return classification(
      model,
      known.input_shape,
      known.mean,
      known.std,
      dtype,
      known.num_classes,
      config.prunable,
    )
  except ValueError as error:
    flag = "prunable" if str(error).startswith("prunable=") else "model"
    raise ConfigError(f"--{flag}={getattr(config, flag)}: {error}") from error


def costs_of(config: Config, dataset: Dataset, task: Task) -> tuple[LayerCost, ...]:
  """Counts what the layers of a run's model take."""
  costs = product_costs(task.products)
  if not task.frozen:
    return costs
  free = config._replace(prunable="")  # the layers of others are left alone, and seen by nobody
  whole = _whole_task(free, dataset)
  return frozen_costs(costs, whole, start_from(free, whole), dataset)


def scale_facts(dataset: Dataset) -> dict[str, Any]:
  """Makes what config.json has of the scale of inputs, and of that of targets where it counts."""
  is_scaled = dataset.kind != "next_token"
  facts: dict[str, Any] = {
    "input_range": scaling.as_range(dataset.mean, dataset.std) if is_scaled else None
  }
  if dataset.kind == "regression":
    known = dataset.signature
    facts["target_scale"] = known.target_means, known.target_stds
  return facts


def classes_of(dataset: Dataset) -> tuple[np.ndarray, tuple[Any, ...]]:
  """Finds what examples are counted by: their classes, or where they have none, all as one.

  Returns:
    (n,) int32 of the training examples, and the names of the classes.
  """
  if dataset.kind == "classification":
    return dataset.y_train, dataset.classes
  return np.zeros(len(dataset.y_train), np.int32), ("examples",)


def describe_data(config: Config, facts: dict[str, Any]) -> str:
  """Writes what the training data is, for the first line of a run."""
  count, outputs, shape = facts["train_examples"], facts["num_classes"], facts["input_shape"]
  if task_of(config) == "next_token":
    return f"next_token, {count} sequences of {shape[0]} tokens out of {outputs}"
  nouns = {
    "classification": ("class", "classes"),
    "multi_label": ("label", "labels"),
    "regression": ("number", "numbers"),
  }
  noun = nouns[task_of(config)][outputs != 1]
  limits = facts["input_range"]
  scale = f"inputs {limits[0]:g} to {limits[1]:g} as [-1, 1]" if limits else "inputs as they are"
  return f"{count} examples of {outputs} {noun}, {scale}"
