"""What is predicted of examples, checked: classes, labels or numbers."""

import numpy as np

from sparsyfed_jax.data.dataset import TASKS, DataError
from sparsyfed_jax.data.labels import Label, number, problem


def targets(
  path: str,
  names: tuple[str, ...],
  arrays: dict[str, np.ndarray],
  sizes: tuple[int, ...],
  task: str,
) -> tuple[list[np.ndarray], tuple[Label, ...], int]:
  """Checks the arrays of what a task predicts.

  Classification takes (n,) integers, booleans or strings, which are numbered; multi_label (n,
  labels) of 0 and 1; regression (n,) or (n, numbers), finite in float32.

  Args:
    path: where they come from, for messages.
    names: of the arrays, of the training set first.
    arrays: by name.
    sizes: the number of examples of each.
    task: one of `TASKS`; "" for classification.

  Returns:
    The arrays, as a `Dataset` has them; the labels of the classes, () of regression; and how many
    outputs a model needs.

  Raises:
    DataError: one cannot be used.
  """
  if task in ("", "classification"):
    found, classes = numbered(path, names, arrays, "labels", sizes)
    if len(classes) < 2:
      raise DataError(f"{path}: labels: are all {classes[0]}, must be of 2 or more classes")
    return found, classes, len(classes)
  if task not in ("multi_label", "regression"):
    right = ", ".join(name for name in TASKS if name != "next_token")
    raise DataError(f"--task={task}: must be one of {right} for the examples of {path}")
  is_regression = task == "regression"
  check = _numbers if is_regression else _labels
  found = [check(f"{path}: {name}", arrays[name]) for name in names]
  for name, y, size in zip(names, found, sizes, strict=True):
    if len(y) != size:
      like = name.replace("y", "x", 1)
      raise DataError(f"{path}: {name}: holds {len(y)} targets, must be {size} like {like}")
    if y.shape[1:] != found[0].shape[1:]:
      raise DataError(
        f"{path}: {name}: has shape {y.shape}, must be like {names[0]}'s, {found[0].shape}"
      )
  num_outputs = int(np.prod(found[0].shape[1:]))
  return found, () if is_regression else tuple(range(num_outputs)), num_outputs


def _labels(where: str, y: np.ndarray) -> np.ndarray:
  is_table = y.ndim == 2 and y.size and y.dtype.kind in "biuf"
  if not is_table or not np.isin(y, (0, 1)).all():
    raise DataError(
      f"{where}: is {y.dtype} of shape {y.shape}, must be (n, labels) of 0 and 1 with"
      " --task=multi_label"
    )
  return y.astype(bool)


def _numbers(where: str, y: np.ndarray) -> np.ndarray:
  if y.ndim not in (1, 2) or not y.size or y.dtype.kind not in "biuf":
    raise DataError(
      f"{where}: is {y.dtype} of shape {y.shape}, must be (n,) or (n, numbers) with"
      " --task=regression"
    )
  with np.errstate(over="ignore"):
    y = y.astype(np.float32)
  bad = np.flatnonzero(~np.isfinite(y).reshape(len(y), -1).all(1))
  if len(bad):
    raise DataError(
      f"{where}: holds NaN or infinity in {len(bad)} of {len(y)} examples, the first at index"
      f" {bad[0]}; must be finite in float32"
    )
  return y


def numbered(
  path: str,
  names: tuple[str, ...],
  arrays: dict[str, np.ndarray],
  noun: str,
  sizes: tuple[int, ...],
) -> tuple[list[np.ndarray], tuple[Label, ...]]:
  """Checks vectors of labels or client ids and numbers their values; see `number`."""
  found = [arrays[name] for name in names]
  for name, ids, size in zip(names, found, sizes, strict=False):
    reason = problem(ids, name, noun)
    if reason:
      raise DataError(f"{path}: {name}: {reason}")
    if len(ids) != size:
      like = name.replace("y", "x", 1).replace("client", "x", 1)
      raise DataError(f"{path}: {name}: holds {len(ids)} {noun}, must be {size} like {like}")
    kinds = [{"u": "i", "S": "U"}.get(part.dtype.kind, part.dtype.kind) for part in (ids, found[0])]
    if kinds[0] != kinds[1]:
      raise DataError(
        f"{path}: {name}: is {ids.dtype}, must be like {names[0]}, which is {found[0].dtype}"
      )
  return number(*found)
