"""The rounds of a run, or of several runs side by side, and what they leave in files."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.pictures.plots import plot_curves
from experiments.pictures.split import plot_split
from experiments.run import keeping, processes
from experiments.run.clients import client_scores, client_spread, owners_at
from experiments.run.config import Config
from experiments.run.encoding import Measured, measure
from experiments.run.ending import NOTHING
from experiments.run.environment import describe_environment
from experiments.run.failures import DivergedError, count_lost, failure, never_updated
from experiments.run.files import SUMMARY_NAME
from experiments.run.learning import judgement_of
from experiments.run.mask_files import save_mask, write_similarity
from experiments.run.member import Member
from experiments.run.programs import Inputs, Programs
from experiments.run.rows import complete, new_rows
from experiments.run.settings import method_of
from experiments.run.signals import catch_signals
from experiments.run.summary import summarise
from experiments.terminal import Update
from sparsyfed_jax.io import checkpoint
from sparsyfed_jax.io.trackers import Write, open_trackers
from sparsyfed_jax.io.writers import JSONL_NAME, MetricsWriter, read_metrics, write_json
from sparsyfed_jax.types import Mean


class Start(NamedTuple):
  """Where runs are when they start or go on."""

  state: Any  # as `Programs.place` lays it out; of several runs with a leading axis
  done: int  # rounds; where they are not 0, there is a checkpoint of them


class StoppedError(RuntimeError):
  """A signal ended the run after the rounds under way."""

  def __init__(self, number: int, rounds_done: int, saved_in: pathlib.Path | None) -> None:
    how = (
      f"the same flags with --output_dir={saved_in} --resume go on from there"
      if saved_in
      else "without --checkpoint_every it cannot go on"
    )
    super().__init__(f"interrupted after round {rounds_done}; {how}")
    self.code = 128 + number


def begin(programs: Programs, inputs: Inputs, restored: Any) -> Start:
  """Makes the state before round 1, or takes that of a checkpoint.

  Args:
    programs: compiled for the run, or for those side by side.
    inputs: of the programs.
    restored: as `resuming.restore` returns it; None to start anew.
  """
  if restored is None:
    state, done = programs.init(inputs), 0
  else:
    state, done = restored, int(np.ravel(restored.server.round)[0])
    print(f"going on after round {done}", flush=True)
  return Start(programs.place(state), done)


class _Results(NamedTuple):
  """What the rounds of one call left, of all runs; None where it was not due."""

  rounds: int
  seconds: float
  columns: Any
  scores: Any  # of the evaluation after the last of them
  hits: Any  # how good the model is on each test example
  agreement: Any  # of the masks of the first of them
  exchange: Any  # of a client of the round after the last
  mask: Any  # the global one after the last


def train_loop(
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
    members: runs of as many rounds, between as many of which they are evaluated and saved.
    programs: compiled for one run, or for as many side by side.
    inputs: what the programs are run on.
    start: where the runs are, as `begin` makes it; its state is donated.
    checkpoints: directory in which checkpoints are written.
    update: called with the number of rounds done and the latest row of the first run.

  Returns:
    For each run the contents of its summary.json, or why it ended before.

  Raises:
    DivergedError: training failed in all runs, or no round had an update; the rounds up to there
      are recorded.
    StoppedError: after a signal.
  """
  config = members[0].config
  state, done = start.state, start.done
  writers = members if processes.is_first() else []
  intact: Sequence[int] = (done,) if done else ()  # checkpoints
  run_seconds = 0.0
  hits = None  # how good the model is on each test example, of the last evaluation
  books = _open_books(members, done)
  stop = _stop_reason(members, books)

  def of_run(number: int, values: Any) -> Any:
    return values if len(members) == 1 else jax.tree.map(lambda leaf: leaf[number], values)

  with contextlib.ExitStack() as stack:
    files = [stack.enter_context(_open_files(member, done)) for member in writers]
    caught = stack.enter_context(catch_signals())
    while done < config.rounds and not stop:
      state, results = _advance(members, programs, inputs, state, done)
      done += results.rounds
      run_seconds += results.seconds
      hits = hits if results.hits is None else results.hits
      _record_all(members, results, of_run, done, books, files, update)
      if results.scores:
        _keep_best(members, programs, state, of_run, books, intact)
        stop = _stop_reason(members, books)
      signal = processes.largest(caught.signal)
      is_last = done == config.rounds or bool(stop)
      is_due = _is_due(done, config.checkpoint_every) or is_last or signal
      if writers and config.checkpoint_every and is_due:
        for file in files:
          file.sync()  # or a power cut could leave a checkpoint without its rows
        intact = checkpoint.save(checkpoints, done, programs.collect(state), intact)
      if is_due:
        _save_models(writers, programs.model(state), of_run, books)
      if signal and not is_last:
        raise StoppedError(signal, done, members[0].directory if config.checkpoint_every else None)
  if config.client_eval and hits is None:  # a run that had ended before
    hits = programs.score_each(state, inputs, _owners_of(members, done))
  # Of this process; a run that went on may have none left.
  rounds_here = (done - start.done) * len(members)
  seconds = run_seconds / rounds_here if rounds_here else None
  cost: dict[str, Any] = {"seconds_per_round": seconds, "compile_seconds": programs.seconds}
  cost |= _peak_memory(members[0].experiment.mesh.local_devices[0])
  cost |= {"stopped_because": stop} if stop else {}
  _note_never_updated(writers, books)
  if done == start.done:  # or they have just been saved
    _save_models(writers, programs.model(state), of_run, books)
  return [
    books.failures.get(number)
    or _finish(member, books.rows[number], of_run(number, state), of_run(number, hits), cost)
    for number, member in enumerate(writers)
  ]


class _Books(NamedTuple):
  """What is known of runs up to the last round, by their numbers; filled as they go on."""

  rows: list[list[dict[str, Any]]]  # in the first process alone
  failures: dict[int, DivergedError]
  # Rounds in a row of which no upload was finite; the first process alone knows earlier ones.
  lost: list[int]


def _open_books(members: Sequence[Member], done: int) -> _Books:
  rows = [_earlier_rows(member, done) for member in members] if processes.is_first() else []
  # Beside others a run may have ended before the checkpoint that all go on from.
  failures = {i: found for i, kept in enumerate(rows) if (found := failure(kept, 0))}
  lost = [processes.largest(count_lost(rows[i], 0) if rows else 0) for i in range(len(members))]
  return _Books(rows, failures, lost)


def _note_never_updated(members: Sequence[Member], books: _Books) -> None:
  """Finds runs in which nobody was ever left; raises DivergedError where all have failed."""
  for number, member in enumerate(members):
    if number not in books.failures:
      found = never_updated(member.config, books.rows[number])
      books.failures.update({number: found} if found else {})
  if members and len(books.failures) == len(members):
    raise books.failures[0]


def _stop_reason(members: Sequence[Member], books: _Books) -> str:
  """Says why a run that is alone ends now, as the first process knows; all of them ask."""
  config = members[0].config
  if len(members) > 1 or not keeping.may_stop(config):
    return ""
  reason = keeping.reason_to_stop(config, books.rows[0]) if books.rows else ""
  is_over = processes.largest(bool(reason))
  return reason or ("the first process says so" if is_over else "")


def _keep_best(
  members: Sequence[Member],
  programs: Programs,
  state: Any,
  of_run: Callable[[int, Any], Any],
  books: _Books,
  intact: Sequence[int],
) -> None:
  """Keeps the models of runs that have just been evaluated, and were never better."""
  if all(member.config.keep_best == NOTHING for member in members):
    return
  known = list(enumerate(books.rows))
  best = [n for n, rows in known if keeping.is_best(members[n].config, rows)]
  variables = programs.model(state) if processes.largest(len(best)) else None
  for number, rows in known:
    if number in best and number not in books.failures:
      keeping.save_best(members[number], of_run(number, variables), rows[-1], intact)
    elif rows:
      keeping.drop_stale(members[number], rows[-1]["round"])


def _save_models(
  members: Sequence[Member], variables: Any, of_run: Callable[[int, Any], Any], books: _Books
) -> None:
  for number, member in enumerate(members):
    if number not in books.failures:
      keeping.save_model(member, of_run(number, variables), books.rows[number][-1])


class _Files(NamedTuple):
  """Where the rows of a run go."""

  metrics: MetricsWriter
  track: Write

  def write(self, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
      self.metrics.write(row)
      self.track(row)

  def sync(self) -> None:
    self.metrics.sync()


@contextlib.contextmanager
def _open_files(member: Member, done: int) -> Iterator[_Files]:
  config, directory = member.config, member.directory
  trackers = open_trackers(config.trackers, directory, config._asdict(), done, _warn)
  with MetricsWriter(directory, done, _warn) as metrics, trackers as track:
    yield _Files(metrics, track)


def _earlier_rows(member: Member, done: int) -> list[dict[str, Any]]:
  return read_metrics(member.directory / JSONL_NAME)[:done] if done else []


def _warn(text: str) -> None:
  print(f"warning: {text}", file=sys.stderr)


def _is_due(done: int, every: int) -> bool:
  return every > 0 and done % every == 0


def _next_stop(config: Config, done: int) -> int:
  """Finds the round after which something is due that is not done between two rounds."""
  stops = [config.rounds]
  for every in (config.eval_every, config.checkpoint_every, config.mask_metrics_every):
    if every:
      stops.append((done // every + 1) * every)
  every = config.mask_metrics_every
  if every and not _is_due(done + 1, every):
    stops.append((done // every + 1) * every - 1)  # the round that is compared starts a call
  if config.shift_round is not None and done < config.shift_round:
    stops.append(config.shift_round)
  return min(stops)


def _owners_of(members: Sequence[Member], done: int) -> list[np.ndarray]:
  """Finds whose the test examples of each run are after `done` rounds."""
  return [
    owners_at(member.experiment.test_owners, member.config.shift_round, done) for member in members
  ]


def _advance(
  members: Sequence[Member], programs: Programs, inputs: Inputs, state: Any, done: int
) -> tuple[Any, _Results]:
  """Runs the rounds up to the next at which something is due, and does that."""
  config = members[0].config
  is_shifted = config.shift_round is not None and done >= config.shift_round
  current = inputs._replace(federation=inputs.shifted) if is_shifted else inputs
  is_compared = _is_due(done + 1, config.mask_metrics_every)
  agreement = programs.agree(state, current) if is_compared else None
  count = _next_stop(config, done) - done
  started = time.perf_counter()
  state, columns = programs.run(state, current, count)
  seconds = time.perf_counter() - started
  done += count
  is_evaluated = _is_due(done, config.eval_every) or done == config.rounds
  scores = programs.evaluate(state, inputs) if is_evaluated else {}
  hits = None
  if is_evaluated and config.client_eval:
    hits = programs.score_each(state, inputs, _owners_of(members, done))
  is_encoded = is_evaluated and config.wire_codec != "plain"
  exchange = programs.exchange(state, current) if is_encoded else None
  mask = programs.pack(state) if _is_due(done, config.mask_metrics_every) else None
  return state, _Results(count, seconds, columns, scores, hits, agreement, exchange, mask)


def _rows_of(member: Member, results: _Results, done: int) -> list[dict[str, Any]]:
  judgement = judgement_of(member.config)
  rows = new_rows(results.columns, results.scores, results.rounds, judgement)
  if results.hits is not None:
    owners = owners_at(member.experiment.test_owners, member.config.shift_round, done)
    num_clients = member.experiment.facts["num_clients"]
    own = client_scores(results.hits, owners, num_clients)
    rows[-1] |= client_spread(own, judgement.compared)
  if results.agreement is not None:
    rows[0]["client_mask_iou"] = results.agreement.item()
  if member.config.wire_codec != "plain":
    rows = [row | dict.fromkeys(Measured._fields) for row in rows]
  if results.exchange is not None:
    rows[-1] |= measure(results.exchange, member.config.wire_dtype)._asdict()
  return rows


def _record_all(
  members: Sequence[Member],
  results: _Results,
  of_run: Callable[[int, Any], Any],
  done: int,
  books: _Books,
  files: Sequence[_Files],
  update: Update,
) -> None:
  """Writes the latest rows of all runs; raises DivergedError where all have failed."""
  for number, member in enumerate(members):
    if number not in books.failures:
      own = _Results(results.rounds, results.seconds, *of_run(number, results[2:]))
      new = _record(member, number, own, done, books, files)
      if number == 0:
        update(done, new[-1])
  if len(books.failures) == len(members):
    raise books.failures[0]


def _record(
  member: Member,
  number: int,
  results: _Results,
  done: int,
  books: _Books,
  files: Sequence[_Files],
) -> list[dict[str, Any]]:
  """Writes the rows of one run's latest rounds, and finds out whether it failed in them."""
  new = _rows_of(member, results, done)
  if files:
    complete(member, books.rows[number], new)
    books.rows[number].extend(new)
    files[number].write(new)
    if results.mask is not None:
      save_mask(member.directory, done, results.mask)
  if found := failure(new, books.lost[number]):
    books.failures[number] = found
  books.lost[number] = count_lost(new, books.lost[number])
  return new


def _peak_memory(device: jax.Device) -> dict[str, int]:
  """Reads the largest memory of this process, other runs included, if the device tells it."""
  peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
  return {} if peak is None else {"process_peak_device_bytes": peak}


def _finish(
  member: Member,
  rows: Sequence[dict[str, Any]],
  state: Any,
  hits: Mean | None,
  cost: dict[str, Any],
) -> dict[str, Any]:
  """Writes what is made of a whole run; returns the contents of summary.json."""
  summary = summarise(member, rows, state, hits) | cost | describe_environment()
  titled = summary | {"algorithm": method_of(member.config).title}
  plot_curves(rows, titled, member.directory / "curves.png")
  split = member.experiment.split
  plot_split(split, split[0].classes, member.directory / "partition.png")
  write_similarity(member.directory)
  write_json(member.directory / SUMMARY_NAME, summary)  # last: it says that all is there
  return summary
