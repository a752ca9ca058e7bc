"""Runs one method on one data set: `python -m experiments.train --algorithm=sparsyfed`.

Writes config.json, metrics.jsonl (and .csv), summary.json, curves.png and partition.png into
--output_dir.
"""

import contextlib
import datetime
import json
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import app, logging
from absl import flags as absl_flags

from experiments import flags, processes
from experiments.build import Experiment, build
from experiments.environment import describe_environment, keep_compiled
from experiments.programs import compile_programs, inputs_of
from experiments.record import DivergedError, Member, StoppedError, begin, record
from experiments.signals import leave_on_signal, leave_unread
from experiments.terminal import Update, closing_table, progress
from sparsyfed_jax.data.sources import DataError
from sparsyfed_jax.io.writers import JSONL_NAME, create_run_dir, read_metrics, write_json

CONFIG_NAME = "config.json"


def main(argv: Sequence[str]) -> None:
  """Runs what the flags say."""
  del argv  # flags.parse refuses what is not a flag
  try:
    config = flags.resolve(flags.read())
    keep_compiled(config.compilation_cache_dir)
    processes.join(config)
  except flags.ConfigError as error:
    flags.fail(error)
  refusal: Exception | None = None
  directory = pathlib.Path(config.output_dir or "")
  try:
    if config.resume and processes.is_first():
      check_resumable(config, directory)
    experiment = build(config)
    if not config.resume and processes.is_first():
      directory = _create_directory(config)
  except (flags.ConfigError, DataError, FileExistsError) as error:
    refusal = error
  if processes.largest(int(refusal is not None)):
    flags.fail(refusal or flags.ConfigError("another process refused its flags or data"))
  if processes.is_first():
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
    leave_unread()
  except OSError as error:
    flags.fail(OSError(f"--output_dir={directory}: {error}"), code=1)


def run(config: flags.Config, experiment: Experiment, directory: pathlib.Path) -> dict[str, Any]:
  """Trains, evaluates and records, and says so on the terminal.

  Args:
    config: resolved flags.
    experiment: what `build` made of them.
    directory: where the files go.

  Returns:
    The contents of summary.json; {} in all processes but the first.

  Raises:
    DivergedError: the training loss is not finite any more; the rounds up to there are recorded.
    StoppedError: after a signal.
  """
  if processes.is_first():
    write_json(directory / CONFIG_NAME, describe(config, experiment))
    _print_setup(config, experiment)
  programs, inputs = compile_programs(experiment), inputs_of(experiment)
  member = Member(config, experiment, directory)
  start = begin(member, programs, inputs, directory, config.resume)
  with contextlib.ExitStack() as stack:
    update: Update = lambda done, row: None  # noqa: E731
    if processes.is_first():
      update = stack.enter_context(progress(config.rounds, start.done))
    results = record([member], programs, inputs, start, directory, update)
  for summary in results:
    assert not isinstance(summary, DivergedError)  # of a run alone, it is raised
    closing_table(summary)
    return summary
  return {}


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
    if name not in flags.WITHOUT_EFFECT and before.get(name, value) != value:
      raise flags.ConfigError(
        f"--{name}={value}: must be {before[name]} to go on with the run in {directory}"
      )


def _flags_of(config: flags.Config) -> dict[str, Any]:
  return {**config._asdict(), **dict.fromkeys(flags.ignored(config))}


def describe(config: flags.Config, experiment: Experiment) -> dict[str, Any]:
  """Makes the contents of config.json."""
  return {**_flags_of(config), "data": experiment.facts, **describe_environment()}


def _leave_interrupted(directory: pathlib.Path, code: int) -> NoReturn:
  metrics = directory / JSONL_NAME
  if metrics.exists() and read_metrics(metrics):
    print(f"\ninterrupted; the rounds so far are in {metrics}", file=sys.stderr)
  else:
    shutil.rmtree(directory)  # ours alone, and without a round of no use to anybody
    print("\ninterrupted before the first evaluation; nothing was kept", file=sys.stderr)
  sys.stderr.flush()
  os._exit(code)  # XLA may be compiling in a thread that a regular exit would crash


def _print_setup(config: flags.Config, experiment: Experiment) -> None:
  facts = experiment.facts
  empty = f" ({facts['empty_clients']} of them empty)" if facts["empty_clients"] else ""
  print(
    f"{config.algorithm} on {config.dataset}: {config.model}, {facts['train_examples']} examples of"
    f" {facts['num_classes']} classes, {_describe_range(facts['input_range'])},"
    f" {facts['num_clients']} clients{empty}, {config.clients_per_round} a round,"
    f" {config.rounds} rounds on {describe_environment()['device']}; compiling",
    flush=True,
  )
  natural = facts["natural_clients"]
  if natural and config.partition != "natural":
    print(f"note: the data has {natural} clients of its own; --partition=natural uses them")
  for remark in experiment.remarks:
    print(f"note: {remark}")


def _describe_range(limits: Sequence[float] | None) -> str:
  return f"inputs {limits[0]:g} to {limits[1]:g} as [-1, 1]" if limits else "inputs as they are"


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
