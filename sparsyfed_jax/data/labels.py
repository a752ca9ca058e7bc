"""Labels and client ids as they come: any integers, booleans or strings, numbered from 0."""

from typing import Any, TypeAlias

import numpy as np

Label: TypeAlias = int | bool | str
KINDS = "biuUS"  # of NumPy dtypes


def number(*parts: np.ndarray) -> tuple[list[np.ndarray], tuple[Label, ...]]:
  """Numbers the values that occur in sorted order, from 0.

  Args:
    parts: vectors of labels: integers, booleans or strings, of one of these in all parts.

  Returns:
    For each part its numbers, int32; and the values, that of number 0 first, as Python objects.
  """
  found = [np.unique(part, return_inverse=True) for part in map(_decoded, parts)]
  values = sorted({value for own, _ in found for value in own.tolist()})
  numbers = {value: i for i, value in enumerate(values)}
  return [
    np.array([numbers[value] for value in own.tolist()], np.int32)[inverse.reshape(-1)]
    for own, inverse in found
  ], tuple(values)


def problem(y: np.ndarray, name: str, noun: str) -> str:
  """Says why an array holds no labels, or "".

  Args:
    y: the array.
    name: what the file calls it, for the advice.
    noun: "labels" or "client ids".

  Returns:
    The end of a one-line message that begins with the name of the array.
  """
  right = f"must be integer or string {noun}"
  if y.ndim == 1:
    if y.dtype.kind in KINDS:
      return ""
    if y.dtype.kind != "f":
      return f"is {y.dtype}, {right}"
    broken = np.flatnonzero(~(y == np.rint(y)))  # NaN too
    if not len(broken):
      return f"is {y.dtype}, {right}; cast whole numbers with {name}.astype(int)"
    only = "; a regression of numbers needs --task=regression" if noun == "labels" else ""
    return f"is {y.dtype} and holds {y[broken[0]]:g} at index {broken[0]}, {right}{only}"
  shape = f"has shape {y.shape}, must be a vector of {noun}"
  if y.ndim != 2 or not y.size:
    return shape
  if y.shape[1] == 1:
    return f"{shape}; for a column save {name}.ravel()"
  if noun != "labels":
    return shape
  if y.dtype.kind not in "biuf" or not np.isin(y, (0, 1)).all():
    return (
      f"{shape}: each example needs one class; a regression of several numbers needs"
      " --task=regression"
    )
  totals = y.sum(1, dtype=np.int64)
  others = np.flatnonzero(totals != 1)
  if not len(others):
    return f"{shape}; for one-hot rows save {name}.argmax(1)"
  return (
    f"{shape}; each example needs one class, but {len(others)} of {len(y)} have none or several,"
    f" the first at index {others[0]}: multi-label examples need --task=multi_label"
  )


def outsiders(values: tuple[Label, ...]) -> list[int]:
  """Finds integer labels that stand apart from a run of others, as a mark for "no label" does.

  Such are -1 beside 0, 1, 2 and 255 beside 0 to 20.

  Args:
    values: sorted labels.

  Returns:
    Those apart, at most two; [] where labels have no such order.
  """
  if not all(type(value) is int for value in values):
    return []
  whole: list[Any] = list(values)
  if whole[0] == -whole[-1]:  # -1 and 1 are two classes
    return []
  positive = [value for value in whole if value >= 0]
  runs = np.split(positive, np.flatnonzero(np.diff(positive) > 1) + 1) if positive else []
  longest = max(map(len, runs), default=0)
  if longest < 2:
    return []
  run = next(run for run in runs if len(run) == longest)
  apart = [value for value in whole if not run[0] <= value <= run[-1]]
  return apart if len(apart) <= 2 and run[0] <= 1 else []


def _decoded(part: np.ndarray) -> np.ndarray:
  if part.dtype.kind == "S":
    return np.char.decode(part, "utf-8", "backslashreplace")
  return part
