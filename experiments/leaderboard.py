"""The leaderboard: methods by sparsity, split and seed, and what each accuracy cost in bytes.

`python -m experiments.leaderboard --preset=leaderboard-digits --output_dir=runs/board`, or --smoke.

The flags are those of `experiments.sweep`. A board grows: every run that has ended is a row of
board.jsonl in --output_dir, and a run that has its row is not run again, whichever command it was
part of. So `--algorithm=./mine.py:METHOD` beside the same directory adds a method to a board whose
other rows somebody else has measured, and several commands may work on one board at a time. The
runs themselves are below runs/ there. A command that was stopped goes on when it is started again.

Writes leaderboard.md and leaderboard.png, of all rows of the board.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from absl import flags as absl_flags

from experiments import flags, sweep
from experiments.boards import pages, rows
from experiments.boards.rows import Row
from experiments.run import begun
from experiments.run.data import load, source_of
from experiments.run.learning import judgement_of, task_of
from experiments.studies.study import SEEDS, SPARSITIES, Grid, Outcome, asked, run_grids
from experiments.sweeps import grid, results
from sparsyfed_jax.data.dataset import Dataset
from sparsyfed_jax.data.sources import DataError
from sparsyfed_jax.io.writers import replace_file

_NAME = "leaderboard"
_RUNS = "runs"  # of the board's directory; each set of flags has a sweep of its own there


class Board(NamedTuple):
  """The runs of a board that has none yet."""

  name: str = _NAME
  blocks: tuple[tuple[str, ...], ...] = (
    ("--preset=studies/leaderboard", SPARSITIES, "--dirichlet_alpha=1,0.1", SEEDS),
  )
  smoke: tuple[str, ...] = (
    "--preset=studies/leaderboard-smoke",
    "--sparsity=0.9,0.99",
    "--seed=0,1",
  )
  complete: Callable[[Grid], Grid] = lambda lists: lists


BOARD = Board()


def main() -> None:
  """Runs what the board lacks, and writes it."""
  with contextlib.ExitStack() as stack:
    try:
      grids, runs, board, mode, is_discarding = asked(BOARD)
      place = _sweep_directory(grids, runs, board)
      known = rows.read(board)
      refused = [run for run in runs if run.refusal]
      runs, heads = heads_of([run for run in runs if not run.refusal], known, board)
      keys = {rows.key_of(row) for row in known}
      done = [rows.key_of(head) in keys for head in heads]
      print(f"{len(runs)} runs, {sum(done)} of them on the board")
      left, others = list(refused), list[grid.Run]()
      for run, is_done in zip(runs, done, strict=True):
        is_wanted = not is_done or grid.place_of(run, place).exists()
        (left if is_wanted else others).append(run)
      if len(left) > len(refused):
        left = sweep.prepare(grids, left, place, mode, stack, is_discarding, others)
    except (flags.ConfigError, DataError, absl_flags.Error, OSError) as error:
      flags.fail(error)
    # Those of runs that cannot run are not read.
    by_run = dict(zip(map(grid.identity, runs), heads, strict=True))

    def write(ended: Sequence[grid.Run], directory: pathlib.Path) -> str:
      heads = [by_run.get(grid.identity(run), {}) for run in ended]
      return write_board(ended, heads, directory, board)

    sweep.finish(left, place, mode, write)
  print(f"picture: {board / _NAME}.png")


def _sweep_directory(
  grids: Sequence[Grid], runs: Sequence[grid.Run], board: pathlib.Path
) -> pathlib.Path:
  """Names it by the flags, and by the code of others, so that changed code begins anew."""
  code = sorted({one for run in runs for one in begun.code_of(run.config).values() if one})
  content = json.dumps([grids, code] if code else grids, sort_keys=True)
  digest = hashlib.sha256(content.encode()).hexdigest()[:8]
  return board / _RUNS / digest


def heads_of(
  runs: Sequence[grid.Run], known: Sequence[Row], board: pathlib.Path
) -> tuple[list[grid.Run], list[Row]]:
  """Makes what is known of the rows of runs beforehand, and checks that they fit the board.

  Each data set is read once for each seed, which may split it.

  Args:
    runs: that can run.
    known: rows of the board.
    board: its directory.

  Returns:
    The runs, each row's once, and what is known of their rows.

  Raises:
    ConfigError: a run does not fit the board's other runs; or the data cannot be read.
  """
  sets: dict[Hashable, Dataset] = {}
  found: dict[str, tuple[grid.Run, Row]] = {}
  first: list[Row] = []
  for run in runs:
    _check_measured(run)
    source = source_of(run.config)
    if source not in sets:
      sets[source] = load(run.config)
    head = rows.make_head(run, sets[source])
    first = first or [head]
    rows.check([*known, *first], head, run.config.dataset, board)
    found.setdefault(rows.key_of(head), (run, head))
  return [run for run, _ in found.values()], [head for _, head in found.values()]


def _check_measured(run: grid.Run) -> None:
  task = task_of(run.config)
  if judgement_of(run.config).main.name != "accuracy":
    raise flags.ConfigError(
      f"--task={task}: must be one that is judged by its accuracy, such as classification, to be on"
      " a board"
    )
  if not run.config.metrics:
    raise flags.ConfigError("--metrics=false: must be true: a board counts bytes")


def write_board(
  runs: Sequence[grid.Run],
  heads: Sequence[Row],
  directory: pathlib.Path,
  board: pathlib.Path,
) -> str:
  """Adds the rows of runs to a board and writes its files; returns its tables.

  Args:
    runs: that have ended. Those that could not run, whose files are damaged, or whose clients
      predict with models of their own, get no row.
    heads: of each.
    directory: of the runs.
    board: its directory.
  """
  new = []
  for run, head in zip(runs, heads, strict=True):
    summary, table = results.read_outcome(run, directory)
    reason = summary.get("refused") or summary.get("damaged")
    if summary.get("has_client_models"):
      reason = "its server has no model that predicts; clients have their own"
    if reason:
      print(f"note: no row for {grid.name_of(run)}: {reason}")
    else:
      new.append(
        rows.make_row(head, Outcome(run.config, summary, table, grid.place_of(run, directory)))
      )
  with rows.held(board):
    every = rows.add(board, new)
    if not every:
      raise flags.ConfigError(f"--output_dir={board}: no run has ended well")
    text = pages.report(every)
    replace_file(board / f"{_NAME}.md", text.encode())
    pages.draw(every, board / f"{_NAME}.png")
  return text


if __name__ == "__main__":
  run_grids(BOARD, main)
