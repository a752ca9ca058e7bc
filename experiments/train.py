"""Runs one method on one data set: `python -m experiments.train --algorithm=sparsyfed`.

Writes config.json, metrics.jsonl (and .csv), summary.json and curves.png into --output_dir.
"""

import datetime
import json
import math
import os
import pathlib
import re
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from absl import app, logging
from absl import flags as absl_flags
from jax.stages import Compiled

from experiments import flags
from experiments.build import Experiment, build
from experiments.environment import describe_environment
from experiments.plots import plot_curves
from experiments.signals import catch_signals, leave_on_signal
from experiments.terminal import Update, closing_table, progress
from sparsyfed_jax.data.sources import DataError
from sparsyfed_jax.io import checkpoint
from sparsyfed_jax.io.writers import (
  JSONL_NAME,
  MetricsWriter,
  create_run_dir,
  read_metrics,
  write_json,
)
from sparsyfed_jax.metrics.cost import dense_bytes
from sparsyfed_jax.metrics.sparsity import layer_densities

CONFIG_NAME = "config.json"
# Flags that a resumed run may change: they change no result.
_MAY_CHANGE = ("output_dir", "resume", "checkpoint_every", "clients_per_chunk", "num_devices")


class Programs(NamedTuple):
  """The compiled functions of a run."""

  init: Compiled
  run: Compiled
  evaluate: Compiled
  seconds: float  # that compiling them took


class Start(NamedTuple):
  """Where a run is when it starts or goes on."""

  state: Any  # of the server
  rows: list[dict[str, Any]]  # of metrics.jsonl, one for each round done


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


def main(argv: Sequence[str]) -> None:
  """Runs what the flags say."""
  del argv  # flags.parse refuses what is not a flag
  try:
    config = flags.resolve(flags.read())
    directory = pathlib.Path(config.output_dir or "")
    if config.resume:
      check_resumable(config, directory)
    experiment = build(config)
    if not config.resume:
      directory = _create_directory(config)
  except (flags.ConfigError, DataError, FileExistsError) as error:
    flags.fail(error)
  for note in flags.notes(config):
    print(note)
  leave_on_signal(lambda number: _leave_interrupted(directory, 128 + number))
  try:
    run(config, experiment, directory)
  except StoppedError as error:
    print(f"\n{error}", file=sys.stderr)
    sys.exit(error.code)
  except DivergedError as error:
    flags.fail(error, code=1)
  except BrokenPipeError:
    # Whoever read the output is gone; nothing more can be said, not even by the interpreter.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except OSError as error:
    flags.fail(OSError(f"--output_dir={directory}: {error}"), code=1)


def run(config: flags.Config, experiment: Experiment, directory: pathlib.Path) -> dict[str, Any]:
  """Trains, evaluates and records, and says so on the terminal.

  Args:
    config: resolved flags.
    experiment: what `build` made of them.
    directory: where the files go.

  Returns:
    The contents of summary.json.

  Raises:
    DivergedError: the training loss is not finite any more; the rounds up to there are recorded.
  """
  write_json(directory / CONFIG_NAME, describe(config, experiment))
  _print_setup(config, experiment)
  programs = compile_programs(experiment)
  start = begin(experiment, programs, directory, config.resume)
  with progress(config.rounds, len(start.rows)) as update:
    summary = record(config, experiment, programs, directory, start, update)
  closing_table(summary)
  return summary


def compile_programs(experiment: Experiment) -> Programs:
  """Compiles what a run calls, ahead of time, so that it can be timed and shared by runs."""
  started = time.perf_counter()
  simulation, federation, keys = experiment.simulation, experiment.federation, experiment.keys
  shapes = jax.eval_shape(simulation.init, experiment.hyper, keys.init)
  state = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=experiment.everywhere),
    shapes,
  )
  zero = np.int32(0)
  return Programs(
    init=simulation.init.lower(experiment.hyper, keys.init).compile(),
    run=simulation.run.lower(state, federation, keys.rounds, zero).compile(),
    evaluate=simulation.evaluate.lower(state, experiment.x_test, experiment.y_test).compile(),
    seconds=time.perf_counter() - started,
  )


def begin(
  experiment: Experiment, programs: Programs, directory: pathlib.Path, resume: bool
) -> Start:
  """Makes the state before round 1, or reads the last checkpoint and the rows up to it.

  Args:
    experiment: what `build` made of the flags.
    programs: compiled for it.
    directory: of the run.
    resume: whether to go on from a checkpoint; without one the run starts anew all the same.
  """
  state = None
  if resume:
    like = jax.eval_shape(experiment.simulation.init, experiment.hyper, experiment.keys.init)
    with warnings.catch_warnings(record=True) as found:
      warnings.simplefilter("always", checkpoint.DamagedWarning)
      state = checkpoint.restore(directory, like)
    for warning in found:
      print(f"warning: {warning.message}", file=sys.stderr)
  if state is None:
    state = programs.init(experiment.hyper, experiment.keys.init)
    return Start(jax.device_put(state, experiment.everywhere), [])
  done = int(state.round)
  print(f"going on after round {done}", flush=True)
  state = jax.device_put(state, experiment.everywhere)
  return Start(state, read_metrics(directory / JSONL_NAME)[:done])


def record(
  config: flags.Config,
  experiment: Experiment,
  programs: Programs,
  directory: pathlib.Path,
  start: Start,
  update: Update,
) -> dict[str, Any]:
  """Trains, evaluates and writes the files of a run; arguments and result as in `run`.

  Args:
    config: resolved flags.
    experiment: what `build` made of them.
    programs: compiled for it, or for another experiment of the same `program_key`.
    directory: where the files go.
    start: where the run is, as `begin` makes it; its state is donated.
    update: called with the number of rounds done and their latest row.
  """
  federation, keys = experiment.federation, experiment.keys
  state, rows = start.state, list(start.rows)
  bytes_if_dense = dense_bytes(experiment.algorithm.broadcast(state).variables)

  run_seconds, first = 0.0, len(rows)
  with MetricsWriter(directory, last_round=first) as writer, catch_signals() as caught:
    while len(rows) < config.rounds:
      done = len(rows)
      ends = [_next(done, every) for every in (config.eval_every, config.checkpoint_every) if every]
      count = min(*ends, config.rounds) - done
      started = time.perf_counter()
      state, columns = programs.run(state, federation, keys.rounds, np.int32(count))
      fetched = jax.device_get(columns)  # the one transfer of these rounds
      run_seconds += time.perf_counter() - started
      new = [_row(fetched, i) for i in range(count)]
      done += count
      is_last = done == config.rounds
      if done % config.eval_every == 0 or is_last:
        scores = programs.evaluate(state, experiment.x_test, experiment.y_test)
        new[-1] |= jax.device_get(scores)
      for row in new:
        row.setdefault("test_accuracy", None)
        row.setdefault("test_loss", None)
        writer.write(row)
      rows += new
      update(done, rows[-1])
      _stop_if_diverged(new)
      if config.checkpoint_every and (
        done % config.checkpoint_every == 0 or is_last or caught.signal
      ):
        checkpoint.save(directory, done, state)
      if caught.signal and not is_last:
        raise StoppedError(caught.signal, done, config.checkpoint_every > 0)
  summary = _summarise(config, rows, directory) | {
    "dense_bytes": bytes_if_dense,
    # Of the rounds of this process; a run that went on may have none left.
    "seconds_per_round": run_seconds / (config.rounds - first) if first < config.rounds else None,
    "compile_seconds": programs.seconds,
    "empty_clients": experiment.facts["empty_clients"],
    "layer_densities": layer_densities(experiment.algorithm.broadcast(state).variables["params"]),
    **describe_environment(),
  }
  write_json(directory / "summary.json", summary)
  plot_curves(rows, summary, directory / "curves.png")
  return summary


def check_resumable(config: flags.Config, directory: pathlib.Path) -> None:
  """Checks that a directory holds a run of the same flags.

  Raises:
    ConfigError: it holds none, or the flag named differs.
  """
  try:
    before = json.loads((directory / CONFIG_NAME).read_text())
  except (OSError, ValueError) as error:
    raise flags.ConfigError(
      f"--resume: --output_dir={directory} holds no run to go on with ({CONFIG_NAME}: {error})"
    ) from error
  now = json.loads(json.dumps(_flags_of(config)))
  # What follows from other flags comes last: those are to be named.
  for name, value in sorted(now.items(), key=lambda item: item[0] in flags.DERIVED):
    if name not in _MAY_CHANGE and before.get(name, value) != value:
      raise flags.ConfigError(
        f"--{name}={value}: must be {before[name]} to go on with the run in {directory}"
      )


def _flags_of(config: flags.Config) -> dict[str, Any]:
  return {**config._asdict(), **dict.fromkeys(flags.ignored(config))}


def describe(config: flags.Config, experiment: Experiment) -> dict[str, Any]:
  """Makes the contents of config.json."""
  return {**_flags_of(config), "data": experiment.facts, **describe_environment()}


def _next(done: int, every: int) -> int:
  return (done // every + 1) * every


def _leave_interrupted(directory: pathlib.Path, code: int) -> NoReturn:
  metrics = directory / JSONL_NAME
  if metrics.exists() and read_metrics(metrics):
    print(f"\ninterrupted; the rounds so far are in {metrics}", file=sys.stderr)
  else:
    shutil.rmtree(directory)  # ours alone, and without a round of no use to anybody
    print("\ninterrupted before the first evaluation; nothing was kept", file=sys.stderr)
  sys.stderr.flush()
  os._exit(code)  # XLA may be compiling in a thread that a regular exit would crash


def _row(columns: dict[str, np.ndarray], i: int) -> dict[str, Any]:
  first = ("round", "train_loss", "train_accuracy")
  names = [*first, *(name for name in columns if name not in first)]
  return {name: columns[name][i].item() for name in names}


def _summarise(
  config: flags.Config, rows: Sequence[dict[str, Any]], directory: pathlib.Path
) -> dict[str, Any]:
  last = rows[-1]
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
    "output_dir": str(directory),
  }


def _stop_if_diverged(rows: Sequence[dict[str, Any]]) -> None:
  for row in rows:
    lost, excluded = int(row["dropped_clients"]), int(row["excluded_clients"])
    if row["clients"] == 0 and lost + excluded > 0:
      raise DivergedError(
        f"round {row['round']}: nobody is left: {lost} of the clients vanished (--client_dropout),"
        f" {excluded} sent what is not finite (a smaller --client_lr may help); the rounds so far"
        " are in metrics.jsonl"
      )
    if row["examples"] > 0 and not math.isfinite(row["train_loss"]):
      raise DivergedError(
        f"round {row['round']}: train_loss is {row['train_loss']}; training diverged, a smaller"
        " --client_lr may help (the rounds so far are in metrics.jsonl)"
      )


def _print_setup(config: flags.Config, experiment: Experiment) -> None:
  facts = experiment.facts
  empty = f" ({facts['empty_clients']} of them empty)" if facts["empty_clients"] else ""
  print(
    f"{config.algorithm} on {config.dataset}: {config.model}, {facts['train_examples']} examples,"
    f" {facts['num_clients']} clients{empty}, {config.clients_per_round} a round,"
    f" {config.rounds} rounds on {describe_environment()['device']}; compiling",
    flush=True,
  )
  natural = facts["natural_clients"]
  if natural and config.partition != "natural":
    print(f"note: the data has {natural} clients of its own; --partition=natural uses them")


def _create_directory(config: flags.Config) -> pathlib.Path:
  now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  kind, _, name = config.dataset.partition(":")
  data = pathlib.Path(name).stem if kind == "npz" else re.sub("[^A-Za-z0-9]+", "-", name or kind)
  path = config.output_dir or pathlib.Path("runs") / f"{now}-{config.algorithm}-{data}"
  try:
    return create_run_dir(path)
  except FileExistsError:
    raise
  except OSError as error:
    raise flags.ConfigError(f"--output_dir={path}: {error.strerror}") from error


if __name__ == "__main__":
  flags.define()
  absl_flags.adopt_module_key_flags(flags)  # for --help
  logging.set_verbosity(logging.WARNING)  # jax tells at length which backends it did not find
  app.run(main, flags_parser=flags.parse)
