"""Runs one method on one data set: `python -m experiments.train --algorithm=sparsyfed`.

Writes config.json, metrics.jsonl (and .csv), summary.json, curves.png and partition.png into
--output_dir.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import app, logging
from absl import flags as absl_flags

from experiments import flags
from experiments.run import begun, processes
from experiments.run import directory as run_directory
from experiments.run.build import Experiment, build
from experiments.run.chance import chance_note
from experiments.run.directory import CONFIG_NAME, RunDirectory, remove_unused
from experiments.run.environment import describe_environment, keep_compiled, split_cpu
from experiments.run.failures import DivergedError
from experiments.run.layout import saved_shapes
from experiments.run.loop import StoppedError, begin, train_loop
from experiments.run.member import Member
from experiments.run.programs import compile_programs, inputs_of
from experiments.run.resuming import restore, rounds_of
from experiments.run.settings import method_of
from experiments.run.signals import leave_on_signal, leave_unread
from experiments.run.tasks import describe_data
from experiments.run.weight_files import refuse_gone
from experiments.terminal import Update, closing_table, progress
from sparsyfed_jax.data.sources import DataError
from sparsyfed_jax.io.writers import write_json


def main(argv: Sequence[str]) -> None:
  """Runs what the flags say."""
  del argv  # flags.parse refuses what is not a flag
  try:
    config = flags.resolve(flags.read())
  except flags.ConfigError as error:
    processes.refuse(error, sys.argv)
    flags.fail(error)
  with contextlib.ExitStack() as held:
    try:
      split_cpu(config.num_devices)
      keep_compiled(config.compilation_cache_dir)
      processes.join(config)
      processes.agree("flags", facts=processes.shared(config))
      config, experiment, directory = _open(config, held)
    except (flags.ConfigError, processes.EndedError) as error:
      flags.fail(error)
    if processes.is_first():
      for note in flags.notes(config):
        print(note)
      leave_on_signal(lambda number: _leave_interrupted(directory, 128 + number))
    try:
      run(config, experiment, directory.path)
      processes.leave()
    except StoppedError as error:
      processes.leave()
      print(f"\n{error}", file=sys.stderr)
      sys.exit(error.code)
    except flags.ConfigError as error:
      flags.fail(error)
    except DivergedError as error:
      processes.leave()
      flags.fail(error, code=1)
    except BrokenPipeError:
      leave_unread()
    except OSError as error:
      flags.fail(OSError(f"--output_dir={directory.path}: {error}"), code=1)
    except Exception:
      remove_unused(directory)  # for the same command, once the method's code is mended
      raise


def run(config: flags.Config, experiment: Experiment, directory: pathlib.Path) -> dict[str, Any]:
  """Trains, evaluates and records, and says so on the terminal.

  Args:
    config: resolved flags.
    experiment: what `build` made of them.
    directory: where the files go; with --resume, of a run that `check_resumable` has let pass.

  Returns:
    The contents of summary.json; {} in all processes but the first.

  Raises:
    ConfigError: with --resume, what was recorded is damaged.
    DivergedError: the training loss is not finite any more; the rounds up to there are recorded.
    StoppedError: after a signal.
  """
  config = config._replace(partition=experiment.facts["partition"])
  if processes.is_first():
    if not config.resume:
      write_json(directory / CONFIG_NAME, begun.describe(config, experiment.facts))
    _print_setup(config, experiment)
  member = Member(config, experiment, directory)
  restored = _restore(member) if config.resume else None
  programs, inputs = compile_programs(experiment), inputs_of(experiment)
  start = begin(programs, inputs, restored)
  with contextlib.ExitStack() as stack:
    update: Update = lambda done, row: None  # noqa: E731
    if processes.is_first():
      update = stack.enter_context(progress(config.rounds, start.done))
    results = train_loop([member], programs, inputs, start, directory, update)
  for summary in results:
    assert not isinstance(summary, DivergedError)  # of a run alone, it is raised
    if "stopped_because" in summary:
      print(f"ended early: {summary['stopped_because']}")
    closing_table(summary | {"algorithm": method_of(config).name}, chance_note(config, summary))
    return summary
  return {}


def check_resumable(config: flags.Config, directory: pathlib.Path) -> dict[str, Any]:
  """Checks that a directory holds a run of the same flags; returns what it was begun with.

  Raises:
    ConfigError: it holds none, or the flag named differs.
  """
  before = begun.read(directory)
  begun.check_flags(before, config, directory)
  return before


def _open(
  config: flags.Config, held: contextlib.ExitStack
) -> tuple[flags.Config, Experiment, RunDirectory]:
  """Makes the data and the directory of a run, which stays locked; a refusal ends all processes."""
  refusal: Exception | None = None
  directory = RunDirectory(pathlib.Path(config.output_dir or ""), is_new=False, is_made=False)
  before: dict[str, Any] = {}
  if config.resume and processes.is_first():
    try:
      begun.read(directory.path)  # nothing is written where there is no run
      held.enter_context(run_directory.locked(directory.path))
      before = check_resumable(config, directory.path)
    except flags.ConfigError as error:
      refusal = error
  processes.agree("run", refusal)
  chunk = begun.recorded_chunk(before) if before else 0
  config = begun.with_recorded_chunk(config, processes.largest(chunk))
  try:
    experiment = build(config)
    if before:
      begun.check_data(before, config, experiment.facts, directory.path)
    elif processes.is_first():
      directory = held.enter_context(run_directory.new(config))
  except (flags.ConfigError, DataError, FileExistsError) as error:
    refusal = error
  processes.agree("data", refusal, {} if refusal else _data_of(experiment))
  return config, experiment, directory


def _data_of(experiment: Experiment) -> dict[str, Any]:
  return {
    "the examples of --dataset": experiment.facts["examples_sha256"],
    "the split of --partition": experiment.facts["split_sha256"],
    "the weights of --init_from": experiment.facts.get("init_sha256", ""),
  }


def _restore(member: Member) -> Any:
  config, experiment, directory = member
  state = restore([member], saved_shapes(experiment), directory)
  if state is None:
    refuse_gone(config, "there is no checkpoint to go on from without it")
  if processes.is_first():
    before = begun.read(directory)
    done = rounds_of(state)
    for change in begun.note_changes(before, config, experiment.facts, directory, done):
      print(f"warning: {change}; what follows may differ in the last bits", file=sys.stderr)
  return state


def _leave_interrupted(directory: RunDirectory, code: int) -> NoReturn:
  if remove_unused(directory):
    print("\ninterrupted before the first evaluation; nothing was kept", file=sys.stderr)
  else:
    print(f"\ninterrupted; what is recorded is in {directory.path}", file=sys.stderr)
  sys.stderr.flush()
  os._exit(code)  # XLA may be compiling in a thread that a regular exit would crash


def _print_setup(config: flags.Config, experiment: Experiment) -> None:
  facts = experiment.facts
  empty = f" ({facts['empty_clients']} of them empty)" if facts["empty_clients"] else ""
  print(
    f"{method_of(config).name} on {config.dataset}: {config.model},"
    f" {describe_data(config, facts)},"
    f" {facts['num_clients']} clients{empty} of --partition={config.partition},"
    f" {config.clients_per_round} a round,"
    f" {config.rounds} rounds on {describe_environment()['device']}; compiling",
    flush=True,
  )
  natural = facts["natural_clients"]
  if natural and config.partition != "natural":
    print(f"note: the data has {natural} clients of its own; --partition=natural uses them")
  for remark in experiment.remarks:
    print(f"note: {remark}")


def _parse(argv: list[str]) -> list[str]:
  flags.print_anywhere()
  try:
    return flags.parse_or_raise(argv)
  except absl_flags.Error as error:
    processes.refuse(error, argv)
    flags.fail(error)


if __name__ == "__main__":
  try:
    strangers = flags.strangers_in(sys.argv)
    flags.define(strangers=strangers)
  except (flags.ConfigError, absl_flags.DuplicateFlagError) as error:
    processes.refuse(error, sys.argv)
    flags.fail(error)
  if {"--help", "-help", "-h", "--helpshort"} & set(sys.argv):
    print(f"{__doc__}\n{flags.describe(strangers)}")
    sys.exit()
  logging.set_verbosity(logging.WARNING)  # jax tells at length which backends it did not find
  app.run(main, flags_parser=_parse)
