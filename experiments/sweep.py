"""Runs a grid of flags: `python -m experiments.sweep --algorithm=topk,sparsyfed --seed=0,1,2`.

Takes the flags of `experiments.train`, each of them a comma list, and runs every combination: one
after the other, or with --sweep_mode=vmap side by side as far as they share a compiled program,
which all runs do that differ in numbers and seeds alone. Every run has a directory of its own in
--output_dir. A sweep that was stopped goes on when it is started again with the same flags.

Writes sweep.csv (a row a run), table.md and sweep.png (mean and standard deviation over the seeds).
Runs that cannot start, because a flag does not fit their data, say, are marked there.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from absl import app, logging
from absl import flags as absl_flags
from rich.console import Console
from rich.markdown import Markdown

from experiments import flag_files, flags
from experiments.run import begun
from experiments.run.build import fixed_flags, program_key
from experiments.run.checks import remark_of
from experiments.run.environment import keep_compiled
from experiments.run.failures import DivergedError
from experiments.run.files import SUMMARY_NAME
from experiments.run.loop import StoppedError, begin, train_loop
from experiments.run.member import Member
from experiments.run.programs import (
  Programs,
  compile_programs,
  compile_side_by_side,
  inputs_of,
  stack_inputs,
)
from experiments.run.resuming import restore, rounds_of
from experiments.run.settings import flags_of, method_of
from experiments.run.signals import leave_unread
from experiments.sweeps.grid import LISTS, OWN, Run, read_grid
from experiments.sweeps.members import (
  check_directory,
  check_members,
  directory_of,
  group_directory,
  has_ended,
  open_member,
  opened,
)
from experiments.sweeps.results import write_results
from experiments.terminal import RUN, Update, progress
from sparsyfed_jax.data.sources import DataError
from sparsyfed_jax.fed.method import Method
from sparsyfed_jax.io.writers import write_json

_GROUPS_NAME = "side_by_side"  # directory of the checkpoints of runs side by side
MODES = ("sequential", "vmap")


def main(argv: Sequence[str]) -> None:
  """Runs what the flags say."""
  del argv
  mode = str(absl_flags.FLAGS["sweep_mode"].value)
  with contextlib.ExitStack() as stack:
    try:
      grid, runs = read_grid(absl_flags.FLAGS)
      directory = directory_of(absl_flags.FLAGS["output_dir"].value)
      is_discarding = bool(absl_flags.FLAGS["discard_rounds"].value)
      runs = prepare(grid, runs, directory, mode, stack, is_discarding)
    except (flags.ConfigError, absl_flags.Error, OSError) as error:
      flags.fail(error)
    finish(runs, directory, mode, write_results)


def prepare(
  grid: Any,
  runs: Sequence[Run],
  directory: pathlib.Path,
  mode: str,
  stack: contextlib.ExitStack,
  discard_rounds: bool = False,
  others: Sequence[Run] = (),
) -> list[Run]:
  """Checks all that a sweep is about to do, and opens its directory until the stack is closed.

  Args:
    grid: what the sweep runs, of lists, dicts and strings.
    runs: of the grid.
    directory: of the sweep.
    mode: one of MODES.
    stack: that keeps the directory locked.
    discard_rounds: the flag, for all runs.
    others: runs of the directory that are not to run.

  Returns:
    The runs, those marked that cannot run.

  Raises:
    ConfigError: nothing can run, or the directory is not to be used.
    FileExistsError: the directory holds something else.
  """
  check_mode(mode, runs)
  check_directory(directory, grid, [*runs, *others])
  checked = check_members(runs, directory)
  for run in checked:
    if run.refusal:
      point = " ".join(f"--{name}={value}" for name, value in run.point.items() if value)
      print(f"note: {point} cannot run: {run.refusal}")
  told = (remark_of(run.config) for run in checked if not run.refusal)
  for remark in dict.fromkeys(filter(None, told)):
    print(f"note: {remark}")
  stack.enter_context(opened(directory, grid, [*checked, *others]))
  keep_compiled(next(run.config.compilation_cache_dir for run in checked if not run.refusal))
  return [
    run._replace(config=run.config._replace(discard_rounds=discard_rounds)) for run in checked
  ]


def finish(
  runs: Sequence[Run],
  directory: pathlib.Path,
  mode: str,
  write: Callable[[Sequence[Run], pathlib.Path], str],
) -> None:
  """Runs what is left of a grid, writes its results, and prints the table.

  Args:
    runs: of the grid.
    directory: of the sweep.
    mode: one of MODES.
    write: writes results and returns what is printed, as `write_results`.

  Raises:
    SystemExit: data or disk failed, or a signal came, after one line that says so. Runs that have
      ended and checkpoints are left, for the same command to go on.
  """
  try:
    run_all(runs, directory, mode)
    table = write(runs, directory)
  except (flags.ConfigError, DataError) as error:
    flags.fail(error)
  except BrokenPipeError:
    leave_unread()
  except OSError as error:  # a full disk, say
    flags.fail(OSError(f"--output_dir={directory}: {error}"), code=1)
  except (KeyboardInterrupt, StoppedError) as error:
    print(f"\ninterrupted; the same command goes on in {directory}", file=sys.stderr)
    sys.exit(error.code if isinstance(error, StoppedError) else 130)
  try:
    Console().print(Markdown(table))
    print(f"files in {directory}", flush=True)
  except BrokenPipeError:
    leave_unread()


def define(
  flag_values: absl_flags.FlagValues = absl_flags.FLAGS, strangers: Sequence[Method] = ()
) -> None:
  """Defines the flags of a run, each as text that may list several values."""
  absl_flags.DEFINE_string(
    "output_dir", None, "where the runs go; required", flag_values=flag_values
  )
  absl_flags.DEFINE_string(
    "sweep_mode",
    "sequential",
    "sequential: one run after the other; vmap: those that share a program side by side (on a CPU"
    " in one loop)",
    flag_values=flag_values,
  )
  absl_flags.DEFINE_boolean(
    "discard_rounds", False, "as in experiments.train", flag_values=flag_values
  )
  for name in flags_of(*strangers):
    if name not in OWN:
      text = f"as in experiments.train{'' if name in LISTS else '; a comma list is swept'}"
      absl_flags.DEFINE_string(name, None, text, flag_values=flag_values)
  flag_files.define(flag_values)


def check_mode(mode: str, runs: Sequence[Run]) -> None:
  """Checks the flag --sweep_mode; raises ConfigError."""
  if mode not in MODES:
    raise flags.ConfigError(f"--sweep_mode={mode}: must be one of {', '.join(MODES)}")
  for name in ("early_stop_patience", "stop_at_target"):
    if mode == "vmap" and any(getattr(run.config, name) for run in runs):
      raise flags.ConfigError(
        f"--{name}: must be left out with --sweep_mode=vmap, whose runs end together"
      )
  if mode == "vmap" and any(run.config.data_placement == "streamed" for run in runs):
    raise flags.ConfigError(
      "--data_placement=streamed: must be replicated or sharded with --sweep_mode=vmap"
    )


def run_all(runs: Sequence[Run], directory: pathlib.Path, mode: str) -> None:
  """Runs what has not ended yet.

  Args:
    runs: of the grid.
    directory: of the sweep.
    mode: one of MODES.
  """
  possible = [run for run in runs if not run.refusal]
  groups: dict[Hashable, list[Run]] = {}
  for run in possible:
    key = _group_key(run.config) if mode == "vmap" else id(run)
    groups.setdefault(key, []).append(run)
  left = [group for group in groups.values() if not all(has_ended(run, directory) for run in group)]
  num_left = sum(map(len, left))
  print(f"{len(possible)} runs, {len(possible) - num_left} done before", flush=True)
  total = sum(run.config.rounds for run in possible)
  done = total - sum(run.config.rounds for group in left for run in group)
  compiled: dict[Hashable, Programs] = {}
  with progress(total, done) as update:
    for group in left:
      with contextlib.ExitStack() as stack:
        for members in _by_program([open_member(run, directory, stack) for run in group]):
          run_group = _run_alone if len(members) == 1 else _run_side_by_side
          title = title_of(group[0]) if len(group) == 1 else f"{len(members)} side by side"
          run_group(members, directory, compiled, _shifted(update, done, len(members), title))
          done += sum(member.config.rounds for member in members)
  print(f"{num_left} runs by {len(compiled)} compiled programs")


def _group_key(config: flags.Config) -> Hashable:
  """Makes what runs side by side have in common before their data is known."""
  stops = config.checkpoint_every, config.shift_round, config.mask_metrics_every
  return fixed_flags(config), config.rounds, stops, config.client_eval


def _by_program(members: Sequence[Member]) -> list[list[Member]]:
  groups: dict[Hashable, list[Member]] = {}
  for member in members:
    groups.setdefault(program_key(member.config, member.experiment), []).append(member)
  return list(groups.values())


def title_of(run: Run) -> str:
  """Names a run by what tells it from the others: `sparsyfed sparsity=0.9 seed=1`."""
  varied = [f"{name}={value}" for name, value in run.point.items() if value and name != "algorithm"]
  return " ".join([method_of(run.config).name, *varied])


def _shifted(update: Update, before: int, num_runs: int, title: str) -> Update:
  return lambda rounds, row: update(before + num_runs * rounds, {**row, RUN: title})


def _restore(members: Sequence[Member], programs: Programs, checkpoints: pathlib.Path) -> Any:
  """Reads the state from which runs go on; notes what has changed of the machine since."""
  state = restore(members, programs.shapes, checkpoints)
  for config, experiment, directory in members:
    before = begun.read(directory)
    for change in begun.note_changes(before, config, experiment.facts, directory, rounds_of(state)):
      print(f"warning: {directory.name}: {change}", file=sys.stderr)
  return state


def _run_alone(
  members: Sequence[Member],
  directory: pathlib.Path,
  compiled: dict[Hashable, Programs],
  update: Update,
) -> None:
  (member,) = members
  key = program_key(member.config, member.experiment)
  if key not in compiled:
    compiled[key] = compile_programs(member.experiment)
  programs, inputs = compiled[key], inputs_of(member.experiment)
  start = begin(programs, inputs, _restore(members, programs, member.directory))
  try:
    train_loop(members, programs, inputs, start, member.directory, update)
  except DivergedError as error:
    _note_failures(members, [error])


def _run_side_by_side(
  members: Sequence[Member],
  directory: pathlib.Path,
  compiled: dict[Hashable, Programs],
  update: Update,
) -> None:
  inputs, axes = stack_inputs([member.experiment for member in members])
  first = members[0]
  key = program_key(first.config, first.experiment), len(members), axes
  if key not in compiled:
    compiled[key] = compile_side_by_side(first.experiment, inputs, axes)
  programs = compiled[key]
  checkpoints = group_directory(members, directory / _GROUPS_NAME)
  start = begin(programs, inputs, _restore(members, programs, checkpoints))
  try:
    _note_failures(members, train_loop(members, programs, inputs, start, checkpoints, update))
  except DivergedError as error:
    _note_failures(members, [error] * len(members))


def _note_failures(members: Sequence[Member], results: Sequence[Any]) -> None:
  for member, result in zip(members, results, strict=True):
    if isinstance(result, DivergedError):
      write_json(member.directory / SUMMARY_NAME, {"diverged": str(result)})


if __name__ == "__main__":
  try:
    define(strangers=flags.strangers_in(sys.argv))
  except (flags.ConfigError, absl_flags.DuplicateFlagError) as error:
    flags.fail(error)
  absl_flags.adopt_module_key_flags(sys.modules[__name__])
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
