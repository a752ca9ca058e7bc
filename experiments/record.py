"""The rounds of a run, or of several runs side by side, and what they leave in files."""

import contextlib
import math
import pathlib
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import flags, processes
from experiments.build import Experiment, everywhere
from experiments.environment import describe_environment
from experiments.plots import plot_curves
from experiments.programs import Inputs, Programs
from experiments.signals import catch_signals
from experiments.terminal import Update
from sparsyfed_jax.fed.devices import put
from sparsyfed_jax.io import checkpoint
from sparsyfed_jax.io.writers import JSONL_NAME, MetricsWriter, read_metrics, write_json
from sparsyfed_jax.metrics.cost import dense_bytes
from sparsyfed_jax.metrics.sparsity import layer_densities

SUMMARY_NAME = "summary.json"


class Member(NamedTuple):
  """A run among those side by side."""

  config: flags.Config  # resolved
  experiment: Experiment
  directory: pathlib.Path


class Start(NamedTuple):
  """Where runs are when they start or go on."""

  state: Any  # of the server; of several runs with a leading axis
  done: int  # rounds


class StoppedError(RuntimeError):
  """A signal ended the run after the rounds under way."""

  def __init__(self, number: int, rounds_done: int, is_saved: bool) -> None:
    how = (
      "--resume goes on from there" if is_saved else "without --checkpoint_every it cannot go on"
    )
    super().__init__(f"interrupted after round {rounds_done}; {how}")
    self.code = 128 + number


class DivergedError(RuntimeError):
  """Training left the finite numbers; the message names the round and what would help."""


def begin(
  member: Member, programs: Programs, inputs: Inputs, checkpoints: pathlib.Path, resume: bool
) -> Start:
  """Makes the state before round 1, or reads the last checkpoint.

  Args:
    member: the run, or one of those side by side.
    programs: compiled for it or for them.
    inputs: of the programs.
    checkpoints: the directory in which they are.
    resume: whether to go on from a checkpoint; without one the run starts anew all the same.
  """
  state = _restore(programs, checkpoints) if resume else None
  if processes.largest(int(state is not None)) == 0:
    state, done = programs.init(inputs), 0
  else:
    if state is None:  # not the first process, which has read it
      state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), programs.shapes)
    state = processes.from_first(state)
    done = int(np.ravel(state.round)[0])
    print(f"going on after round {done}", flush=True)
  return Start(put(state, everywhere(member.experiment.mesh)), done)


def _restore(programs: Programs, checkpoints: pathlib.Path) -> Any:
  if not processes.is_first():
    return None
  with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always", checkpoint.DamagedWarning)
    state = checkpoint.restore(checkpoints, programs.shapes)
  for warning in found:
    print(f"warning: {warning.message}", file=sys.stderr)
  return state


def record(
  members: Sequence[Member],
  programs: Programs,
  inputs: Inputs,
  start: Start,
  checkpoints: pathlib.Path,
  update: Update,
) -> list[dict[str, Any] | DivergedError]:
  """Trains, evaluates and writes the files of runs.

  In a job of several processes all of them call it, and the first one writes.

  Args:
    members: one run, or several side by side: all of as many rounds, between as many of which they
      are evaluated and saved.
    programs: compiled for one run, or for as many side by side.
    inputs: what the programs are run on.
    start: where the runs are, as `begin` makes it; its state is donated.
    checkpoints: directory in which checkpoints are written.
    update: called with the number of rounds done and the latest row of the first run.

  Returns:
    For each run the contents of its summary.json, or why it ended before.

  Raises:
    DivergedError: training failed in all runs; the rounds up to there are recorded.
    StoppedError: after a signal.
  """
  config = members[0].config
  is_alone = len(members) == 1
  state, done = start.state, start.done
  writers = members if processes.is_first() else []
  run_seconds = 0.0
  rows = [_earlier_rows(member, done) for member in writers]
  # Beside others a run may have ended before the checkpoint that all go on from.
  failures = {i: failure for i, kept in enumerate(rows) if (failure := _failure(kept))}
  with contextlib.ExitStack() as stack:
    files = [stack.enter_context(MetricsWriter(member.directory, done)) for member in writers]
    caught = stack.enter_context(catch_signals())
    while done < config.rounds:
      ends = [_next(done, every) for every in (config.eval_every, config.checkpoint_every) if every]
      count = min(*ends, config.rounds) - done
      started = time.perf_counter()
      state, columns = programs.run(state, inputs, count)
      run_seconds += time.perf_counter() - started
      done += count
      is_last = done == config.rounds
      is_evaluated = done % config.eval_every == 0 or is_last
      scores = programs.evaluate(state, inputs) if is_evaluated else {}
      for number in range(len(members)):
        mine, my_scores = (
          values if is_alone else {name: leaf[number] for name, leaf in values.items()}
          for values in (columns, scores)
        )
        new = _new_rows(mine, my_scores, count)
        if number in failures:
          continue
        if writers:
          for row in new:
            files[number].write(row)
          rows[number] += new
        if number == 0:
          update(done, new[-1])
        failure = _failure(new)
        if failure:
          failures[number] = failure
      if len(failures) == len(members):
        raise failures[0]
      signal = processes.largest(caught.signal)
      is_due = done % config.checkpoint_every == 0 if config.checkpoint_every else False
      if writers and config.checkpoint_every and (is_due or is_last or signal):
        checkpoint.save(checkpoints, done, state)
      if signal and not is_last:
        raise StoppedError(signal, done, config.checkpoint_every > 0)
  # Of the rounds of this process; a run that went on may have none left.
  rounds_here = (config.rounds - start.done) * len(members)
  cost = {
    "seconds_per_round": run_seconds / rounds_here if rounds_here else None,
    "compile_seconds": programs.seconds,
  }
  results: list[dict[str, Any] | DivergedError] = []
  for number, member in enumerate(writers):
    if number in failures:
      results.append(failures[number])
      continue
    own = state if is_alone else jax.tree.map(lambda leaf, i=number: leaf[i], state)
    summary = _summarise(member, rows[number], own) | cost | describe_environment()
    write_json(member.directory / SUMMARY_NAME, summary)
    plot_curves(rows[number], summary, member.directory / "curves.png")
    results.append(summary)
  return results


def _earlier_rows(member: Member, done: int) -> list[dict[str, Any]]:
  return read_metrics(member.directory / JSONL_NAME)[:done] if done else []


def _next(done: int, every: int) -> int:
  return (done // every + 1) * every


def _new_rows(
  columns: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray], count: int
) -> list[dict[str, Any]]:
  first = ("round", "train_loss", "train_accuracy")
  names = [*first, *(name for name in columns if name not in first)]
  rows: list[dict[str, Any]] = [
    {name: columns[name][i].item() for name in names} | {"test_accuracy": None, "test_loss": None}
    for i in range(count)
  ]
  rows[-1] |= {name: score.item() for name, score in scores.items()}
  return rows


def _failure(rows: Sequence[Mapping[str, Any]]) -> DivergedError | None:
  for row in rows:
    lost, excluded = int(row["dropped_clients"]), int(row["excluded_clients"])
    if row["clients"] == 0 and lost + excluded > 0:
      return DivergedError(
        f"round {row['round']}: nobody is left: {lost} of the clients vanished (--client_dropout),"
        f" {excluded} sent what is not finite (a smaller --client_lr may help); the rounds so far"
        " are in metrics.jsonl"
      )
    loss = row["train_loss"]
    if row["examples"] > 0 and (loss is None or not math.isfinite(loss)):  # None where read back
      return DivergedError(
        f"round {row['round']}: train_loss is {loss}; training diverged, a smaller"
        " --client_lr may help (the rounds so far are in metrics.jsonl)"
      )
  return None


def _summarise(member: Member, rows: Sequence[Mapping[str, Any]], state: Any) -> dict[str, Any]:
  config, last = member.config, rows[-1]
  model = member.experiment.algorithm.broadcast(state).variables
  # Over all rounds: what is sent on the way to the target sparsity counts too. A round whose
  # clients are all empty sends nothing.
  sent = [row for row in rows if row["clients"] > 0]

  def mean_bytes(way: str) -> float | None:
    clients = [row["clients"] for row in sent]
    return float(np.average([row[way] for row in sent], weights=clients)) if sent else None

  return {
    "algorithm": config.algorithm,
    "dataset": config.dataset,
    "model": config.model,
    "rounds": config.rounds,
    "seed": config.seed,
    **{name: last[name] for name in ("test_accuracy", "test_loss")},
    **{name: last[name] for name in ("global_sparsity", "prunable_sparsity")},
    "uplink_bytes_per_client_round": mean_bytes("uplink_bytes"),
    "downlink_bytes_per_client_round": mean_bytes("downlink_bytes"),
    "output_dir": str(member.directory),
    "dense_bytes": dense_bytes(model),
    "empty_clients": member.experiment.facts["empty_clients"],
    "layer_densities": layer_densities(model["params"]),
  }
