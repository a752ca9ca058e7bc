"""Counts of training examples by client and class, for the picture of a split."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.flags import Config
from experiments.run.choices import FILE

_MOST_CELLS = 10**7  # of a table of counts; of more clients every second, third, ... is counted
_LONGEST_NAME = 40


class Split(NamedTuple):
  """The split of one phase of a run."""

  title: str
  counts: np.ndarray  # (counted clients, classes) int64, examples
  every: int  # one client in so many is counted
  classes: tuple[Any, ...] = ()  # names


def count_split(
  title: str, parts: Sequence[np.ndarray], labels: np.ndarray, num_classes: int
) -> Split:
  """Counts the examples of each class that clients have.

  Args:
    title: what to call it.
    parts: indices of the examples of each client.
    labels: (n,) integer classes, from 0.
    num_classes: their number.
  """
  every = -(-len(parts) * num_classes // _MOST_CELLS)
  counted = parts[::every]
  owners = np.repeat(np.arange(len(counted)), [len(part) for part in counted])
  cells = owners * num_classes + labels[np.concatenate(counted)]
  counts = np.bincount(cells, minlength=len(counted) * num_classes)
  return Split(title, counts.reshape(len(counted), num_classes), every)


def count_phases(
  config: Config, parts: Sequence[Sequence[np.ndarray]], labels: np.ndarray, classes: Sequence[Any]
) -> tuple[Split, ...]:
  """Counts the split of a run, or those before and after --shift_round.

  Args:
    config: resolved flags.
    parts: indices of the examples of each client in each phase, of which the second may be empty.
    labels: (n,) integer classes, from 0.
    classes: their names.
  """
  kind, _, path = config.dataset.partition(":")
  is_path = kind not in ("digits", "tfds")
  name = pathlib.PurePath(path).name if is_path else config.dataset
  titles = [f"{name[:_LONGEST_NAME]}  ·  {_rule(config, config.dirichlet_alpha)}"]
  if config.shift_round is not None:
    alpha = config.shift_dirichlet_alpha or config.dirichlet_alpha
    titles.append(
      f"After round {config.shift_round}  ·  {config.shift_kind}  ·  {_rule(config, alpha)}"
    )
  return tuple(
    count_split(title, own, labels, len(classes))._replace(classes=tuple(classes))
    for title, own in zip(titles, parts, strict=False)
  )


def _rule(config: Config, alpha: float) -> str:
  assert config.partition is not None  # told by the data
  if config.partition.startswith(FILE):
    return pathlib.PurePath(config.partition).name
  if config.partition.startswith("dirichlet"):
    return f"{config.partition}, alpha {alpha:g}"
  if config.partition == "shards":
    return f"shards, {config.shards_per_client} a client"
  if config.partition == "power_law":
    return f"power_law, exponent {config.power_law_exponent:g}"
  return config.partition
