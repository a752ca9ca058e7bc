"""Warnings about data that is valid but often a mistake."""

import numpy as np

from sparsyfed_jax.data.dataset import Dataset
from sparsyfed_jax.data.labels import Label, outsiders
from sparsyfed_jax.data.mapped import blocks, ends, every
from sparsyfed_jax.data.rows import Examples
from sparsyfed_jax.data.scaling import as_range

_SPREAD = 100.0  # times as wide as others is another unit
_SCALES_APART = 8.0  # times as wide as the training values are the test values of another scale
_SAMPLE = 2**18  # values looked at for the share of outliers
_LISTED = 5


def remarks(dataset: Dataset) -> list[str]:
  """Returns a line for each thing that is allowed and yet often a mistake."""
  return [*_of_labels(dataset), *_of_clients(dataset), *_of_values(dataset)]


def _of_labels(dataset: Dataset) -> list[str]:
  if dataset.kind == "next_token":
    return _of_tokens(dataset)
  if dataset.kind != "classification":
    return []
  lines = []
  counts = np.bincount(dataset.y_train, minlength=dataset.num_classes)
  in_test = np.bincount(dataset.y_test, minlength=dataset.num_classes)
  for label in outsiders(dataset.classes):
    number = dataset.classes.index(label)
    lines.append(
      f"the label {label} stands apart from the others and is learned as a class of its own"
      f" ({counts[number] + in_test[number]} examples); if it marks examples without a label, leave"
      f" those out before saving: keep y != {label}"
    )
  unseen = np.flatnonzero((counts == 0) & (in_test > 0))
  if len(unseen):
    lines.append(
      f"{_listed([dataset.classes[i] for i in unseen])} of the {dataset.num_classes} classes"
      f" {_occur(unseen)} in the test set alone ({in_test[unseen].sum()} of {len(dataset.y_test)}"
      " examples) and cannot be learned"
    )
  if dataset.num_classes > max(2, len(dataset.y_train) / 2):
    lines.append(
      f"there are {dataset.num_classes} classes for {len(dataset.y_train)} training examples; are"
      " the labels numbers to be predicted (--task=regression), or ids?"
    )
  return lines


def _of_tokens(dataset: Dataset) -> list[str]:
  known = dataset.y_test[dataset.y_test >= 0]
  unknown = int(np.sum(known == 0))
  if not unknown:
    return []
  return [
    f"{unknown} of the {known.size} characters of the test part are of kinds that the training part"
    " does not have, and count as mistakes"
  ]


def _of_clients(dataset: Dataset) -> list[str]:
  if not len(dataset.client_test):
    return []
  absent = np.setdiff1d(dataset.client_test, dataset.client_train)
  strangers = np.count_nonzero(absent >= dataset.num_clients)
  told = [
    f"clients with test examples alone: {strangers}; they take part in no round, and with"
    " --partition=natural, --client_eval tells how good the model is for each"
  ]
  absent = absent[absent < dataset.num_clients]
  if not len(absent):
    return told if strangers else []
  return told[: bool(strangers)] + [
    f"{len(absent)} of the {dataset.num_clients} clients of the data have test examples alone; with"
    " --partition=natural they are empty clients"
  ]


def _of_values(dataset: Dataset) -> list[str]:
  if dataset.kind == "next_token":
    return []
  train, test = dataset.x_train, dataset.x_test
  lines = []
  shape = train.shape[1:]
  if len(shape) == 3 and shape[0] <= 4 < min(shape[1:]):
    lines.append(
      f"examples of shape {shape} are read as images {shape[0]} high and {shape[1]} wide with"
      f" {shape[2]} channels; if the channels come first, save x.transpose(0, 2, 3, 1)"
    )
  (low, high), (test_low, test_high) = ends(train), ends(test)
  ratio = (test_high - test_low) / ((high - low) or 1.0)
  if high > low and not 1 / _SCALES_APART <= ratio <= _SCALES_APART:
    lines.append(
      f"x_train holds {low:g} to {high:g} and x_test {test_low:g} to {test_high:g}, both are scaled"
      " alike; were they saved in different scales?"
    )
  if train.ndim == 2 and _has_columns_of_many_scales(train):
    lines.append(
      "the features of x_train differ in width by more than a hundred times, and one range is"
      " applied to all; standardise each feature before saving"
    )
  else:
    lines += _of_range(dataset, low)
  return lines


def _of_range(dataset: Dataset, least: float) -> list[str]:
  limits = as_range(dataset.mean, dataset.std)
  values = every(dataset.x_train, 1 + dataset.x_train.size // _SAMPLE)
  values = values[values != least]  # masks and strokes are nearly all background
  if limits is None or not len(values):
    return []
  low, high = (float(end) for end in np.quantile(values, (0.001, 0.999)))
  low = min(low, least) if least >= 0 else low
  if high - low >= (limits[1] - limits[0]) / _SPREAD:
    return []
  return [
    f"nearly all values of x_train lie between {low:g} and {high:g}, a small part of"
    f" {limits[0]:g} to {limits[1]:g}; --input_range={low:g},{high:g} would scale those to [-1, 1]"
  ]


def _has_columns_of_many_scales(x: Examples) -> bool:
  extremes = [(block.max(0), block.min(0)) for block in blocks(x)]
  highs, lows = map(np.array, zip(*extremes, strict=True))
  widths = highs.max(0).astype(np.float64) - lows.min(0)
  widths = widths[widths > 0]
  # Flattened images have a few dark corners; in a table a quarter of the features and more differ.
  return len(widths) > 1 and widths.max() > _SPREAD * np.quantile(widths, 0.25)


def _listed(values: list[Label]) -> str:
  text = ", ".join(map(str, values[:_LISTED]))
  return text if len(values) <= _LISTED else f"{text} and {len(values) - _LISTED} more"


def _occur(values: np.ndarray) -> str:
  return "occurs" if len(values) == 1 else "occur"
