"""The task of a run: what its model learns of its data, and what stands for the data's classes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.run.config import Config, ConfigError
from experiments.run.learning import task_of
from sparsyfed_jax.data import scaling
from sparsyfed_jax.data.dataset import Dataset
from sparsyfed_jax.fed.task import Task, classification, trace_layers
from sparsyfed_jax.fed.tasks import multi_label, next_token, regression
from sparsyfed_jax.fed.tasks.numbers import target_scale

_MAKERS = {"next_token": next_token, "multi_label": multi_label, "regression": regression}


def make_task(config: Config, model: nn.Module, dataset: Dataset, dtype: Any) -> Task:
  """Makes the task of a run; raises ConfigError where the model has other outputs."""
  task, shape = task_of(config), dataset.x_train.shape[1:]
  if task == "classification":
    return classification(model, shape, dataset.mean, dataset.std, dtype)
  try:
    return _MAKERS[task](model, dataset, dtype)
  except ValueError as error:
    raise ConfigError(f"--model={config.model}: {error}") from error


@functools.lru_cache(maxsize=8)
def layer_names(model: nn.Module, input_shape: tuple[int, ...], dtype: Any) -> tuple[str, ...]:
  """Names the layers of a model in the order of computing."""
  return trace_layers(model, jax.ShapeDtypeStruct((1, *input_shape), dtype))[1]


def input_dtype(dataset: Dataset) -> Any:
  """Finds the dtype of what a model takes."""
  return jnp.int32 if dataset.kind == "next_token" else jnp.float32


def scale_facts(dataset: Dataset) -> dict[str, Any]:
  """Makes what config.json has of the scale of inputs, and of that of targets where it counts."""
  is_scaled = dataset.kind != "next_token"
  facts: dict[str, Any] = {
    "input_range": scaling.as_range(dataset.mean, dataset.std) if is_scaled else None
  }
  if dataset.kind == "regression":
    facts["target_scale"] = target_scale(dataset)
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
    return f"{count} sequences of {shape[0]} tokens out of {outputs}"
  nouns = {"classification": "classes", "multi_label": "labels", "regression": "numbers"}
  limits = facts["input_range"]
  scale = f"inputs {limits[0]:g} to {limits[1]:g} as [-1, 1]" if limits else "inputs as they are"
  return f"{count} examples of {outputs} {nouns[task_of(config)]}, {scale}"
