"""Where a run goes on: at the newest checkpoint that is whole, if the rows up to it are.

Rows of later rounds are what a killed run has left: they stay, and are computed again to the same
bits. Whatever else is missing is not made up for in silence.
"""

import math
import pathlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import flags
from experiments.run import processes
from experiments.run.failures import has_failed
from experiments.run.learning import judgement_of
from experiments.run.member import Member
from experiments.run.rows import columns_of
from sparsyfed_jax.fed.tasks import TASKS, Judgement
from sparsyfed_jax.io import checkpoint
from sparsyfed_jax.io.writers import (
  JSONL_NAME,
  SUMS_NAME,
  find_changed,
  read_whole_rows,
  set_aside,
)

_COUNTS = ("clients", "examples", "dropped_clients", "excluded_clients", "cumulative_bytes")


class Recorded(NamedTuple):
  """The rows that a run has left."""

  rows: list[dict[str, Any]]  # of rounds 1, 2, and so on, without a gap
  fault: str  # a line on why there are no more; "" where all of the file is so


def read_recorded(
  directory: pathlib.Path, has_metrics: bool, judgement: Judgement = TASKS["classification"]
) -> Recorded:
  """Reads the rows of a run up to the first that is damaged or missing.

  Args:
    directory: of the run.
    has_metrics: the flag --metrics.
    judgement: of the task.

  Raises:
    ConfigError: the file cannot be read.
  """
  path = directory / JSONL_NAME
  try:
    rows, fault = read_whole_rows(path)
  except FileNotFoundError:
    return Recorded([], "")
  except OSError as error:
    raise flags.ConfigError(f"--resume: {path}: cannot be read: {error.strerror}") from error
  for i, row in enumerate(rows):
    reason = _fault_of(row, i + 1, columns_of(has_metrics, judgement))
    if reason:
      return Recorded(rows[:i], f"{path}, line {i + 1}: {reason}")
  changed = find_changed(directory, rows)
  if changed is not None:
    reason = f"is not as it was written: it does not fit its checksum in {SUMS_NAME}"
    return Recorded(rows[:changed], f"{path}, line {changed + 1}: {reason}")
  return Recorded(rows, fault)


def restore(members: Sequence[Member], shapes: Any, checkpoints: pathlib.Path) -> Any:
  """Reads the state from which runs go on; in a job of several processes all of them call it.

  Args:
    members: the run, or those side by side.
    shapes: of the state.
    checkpoints: the directory in which the checkpoints are.

  Returns:
    The state, as NumPy arrays and keys; None where the runs start at round 1.

  Raises:
    ConfigError: rows or checkpoints are damaged or missing, and --discard_rounds is not given.
    CheckpointError: the checkpoints cannot be read.
  """
  state: Any = None
  refusal: Exception | None = None
  if processes.is_first():
    try:
      state = _find(members, shapes, checkpoints)
    except (flags.ConfigError, OSError) as error:
      refusal = error
  if processes.largest(int(refusal is not None)):
    raise refusal or flags.ConfigError("another process cannot go on with the run")
  if processes.largest(int(state is not None)) == 0:
    return None
  if state is None:  # not the first process, which has read it
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  return processes.from_first(state)


def rounds_of(state: Any) -> int:
  """Reads how many rounds a state has behind it; 0 of None."""
  return 0 if state is None else int(np.ravel(state.server.round)[0])


def _find(members: Sequence[Member], shapes: Any, checkpoints: pathlib.Path) -> Any:
  recorded = [
    read_recorded(member.directory, member.config.metrics, judgement_of(member.config))
    for member in members
  ]
  state = _newest(checkpoints, shapes)
  problem, num_intact = "", math.inf
  for member, own in zip(members, recorded, strict=True):
    # Beside others a run may have ended before the checkpoint that all go on from.
    if not own.fault and has_failed(own.rows):
      continue
    count = len(own.rows)
    num_intact = min(num_intact, count)
    fault = own.fault
    if rounds_of(state) > count and not fault:
      path = member.directory / JSONL_NAME
      fault = f"{path}: ends after round {count}, but the checkpoint is of round {rounds_of(state)}"
    problem = problem or fault
  if state is None and not problem:
    problem = _lost_checkpoints(members[0].config, recorded, checkpoints)
  if not problem:
    return state
  if rounds_of(state) > num_intact:
    state = _newest(checkpoints, shapes, num_intact)
  goes_on = "from round 1" if state is None else f"after round {rounds_of(state)}"
  if not members[0].config.discard_rounds:
    raise flags.ConfigError(
      f"--resume: {problem}; nothing was changed. --discard_rounds goes on {goes_on}, and keeps"
      " what is there now under names with `discarded`"
    )
  aside = checkpoint.set_aside(checkpoints, rounds_of(state))
  for member, own in zip(members, recorded, strict=True):
    if (member.directory / JSONL_NAME).exists():
      aside.append(set_aside(member.directory, len(own.rows)))
  kept = ", ".join(map(str, aside))
  print(
    f"warning: {problem}; going on {goes_on}; what was there is kept in {kept}", file=sys.stderr
  )
  return state


def _newest(checkpoints: pathlib.Path, shapes: Any, last_round: float = math.inf) -> Any:
  with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always", checkpoint.DamagedWarning)
    state = checkpoint.restore(checkpoints, shapes, last_round)
  for warning in found:
    print(f"warning: {warning.message}", file=sys.stderr)
  return state


def _lost_checkpoints(
  config: flags.Config, recorded: Sequence[Recorded], checkpoints: pathlib.Path
) -> str:
  """Says that a run has more behind it than a start at round 1 would tell; "" if it has not."""
  count = max(len(own.rows) for own in recorded)
  places = checkpoint.rounds(checkpoints)
  folder = checkpoints / checkpoint.DIRECTORY
  if count and places:
    return f"{folder}: no checkpoint can be used, and rounds 1 to {count} are recorded"
  # A run that is killed before its first checkpoint is whole has none, and as many rows as that.
  # That of a sweep may have run in the other mode, whose checkpoints are elsewhere.
  if config.resume and 0 < config.checkpoint_every < count:
    return f"{folder}: holds no checkpoint, and rounds 1 to {count} are recorded"
  return ""


def _fault_of(row: Mapping[str, Any], number: int, columns: Sequence[str]) -> str:
  found = row.get("round")
  if type(found) is int and found > number:
    which = f"round {number} is" if found == number + 1 else f"rounds {number} to {found - 1} are"
    return f"{which} missing"
  if type(found) is not int or found != number:
    return f"must be round {number}, is {_short(found)}"
  for name in columns:
    if name not in row:
      return f"the column {name} is missing"
  for name, value in row.items():
    is_number = _is_number(value) and (value is not None or name not in _COUNTS)  # never null
    if not is_number and not (isinstance(value, list) and all(map(_is_number, value))):
      return f"{name} must be a number, is {_short(value)}"
  return ""


def _is_number(value: Any) -> bool:
  return value is None or type(value) in (int, float)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:60]}..."
