"""The rounds of a run, or of several runs side by side, and what they leave in files."""

import contextlib
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import flags
from experiments.pictures.plots import plot_curves
from experiments.pictures.split import plot_split
from experiments.run import processes
from experiments.run.build import Experiment
from experiments.run.chance import describe_chance
from experiments.run.clients import client_accuracies, client_spread, owners_at
from experiments.run.environment import describe_environment
from experiments.run.layer_shares import dense_flops, shares_of
from experiments.run.layout import memory_bytes
from experiments.run.mask_files import save_mask, write_similarity
from experiments.run.measures import bytes_to_accuracy, recovery, rounds_to_accuracy
from experiments.run.programs import Inputs, Programs
from experiments.run.signals import catch_signals
from experiments.terminal import Update
from sparsyfed_jax.io import checkpoint
from sparsyfed_jax.io.trackers import Write, open_trackers
from sparsyfed_jax.io.writers import JSONL_NAME, MetricsWriter, read_metrics, write_json
from sparsyfed_jax.metrics.cost import dense_bytes
from sparsyfed_jax.metrics.flops import client_flops, flops_table
from sparsyfed_jax.types import total

SUMMARY_NAME = "summary.json"
# Columns that are null without --metrics.
_MEASURED = (
  "global_sparsity",
  "prunable_sparsity",
  "client_regrowth",
  "server_regrowth",
  "uplink_bytes",
  "downlink_bytes",
)
_MOST_LOST = 10  # rounds in a row of which no upload is finite, until training has diverged
# Columns that are null in rounds in which they are not measured.
_NOW_AND_THEN = (
  "test_accuracy",
  "test_loss",
  "client_mask_iou",
  "client_accuracy_mean",
  "client_accuracy_std",
  "client_accuracy_min",
  "client_accuracy_p10",
)
# Columns that --metrics adds.
_ADDED = (
  "layer_density",
  "round_uplink_bytes",
  "round_downlink_bytes",
  "cumulative_bytes",
  "client_flops",
)
_COUNTS = ("clients", "dropped_clients", "examples", "excluded_clients", "target_sparsity")


class Member(NamedTuple):
  """A run among those side by side."""

  config: flags.Config  # resolved
  experiment: Experiment
  directory: pathlib.Path


class Start(NamedTuple):
  """Where runs are when they start or go on."""

  state: Any  # as `Programs.place` lays it out; of several runs with a leading axis
  done: int  # rounds; where they are not 0, there is a checkpoint of them


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


def columns_of(has_metrics: bool) -> tuple[str, ...]:
  """Lists columns that all rows of a run have, with --metrics or without."""
  always = ("round", "train_loss", "train_accuracy", *_COUNTS, *_MEASURED, *_NOW_AND_THEN)
  return always + (_ADDED if has_metrics else ())


def has_failed(rows: Sequence[Mapping[str, Any]]) -> bool:
  """Tells whether a run ended with its last row, before its time."""
  return _failure(rows, 0) is not None


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
    DivergedError: training failed in all runs, or no round had an update; the rounds up to there
      are recorded.
    StoppedError: after a signal.
  """
  config = members[0].config
  is_alone = len(members) == 1
  state, done = start.state, start.done
  writers = members if processes.is_first() else []
  intact: Sequence[int] = (done,) if done else ()  # checkpoints
  run_seconds = 0.0
  hits = None  # of the last evaluation
  rows = [_earlier_rows(member, done) for member in writers]
  # Beside others a run may have ended before the checkpoint that all go on from.
  failures = {i: failure for i, kept in enumerate(rows) if (failure := _failure(kept, 0))}
  # Rounds in a row of which no upload was finite; the first process alone knows earlier ones.
  lost = [processes.largest(_count_lost(rows[i], 0) if writers else 0) for i in range(len(members))]

  def of_run(number: int, values: Any) -> Any:
    return values if is_alone else jax.tree.map(lambda leaf: leaf[number], values)

  with contextlib.ExitStack() as stack:
    files = [
      stack.enter_context(MetricsWriter(member.directory, done, _warn)) for member in writers
    ]
    trackers = [stack.enter_context(_open_trackers(member, done)) for member in writers]
    caught = stack.enter_context(catch_signals())
    while done < config.rounds:
      is_shifted = config.shift_round is not None and done >= config.shift_round
      current = inputs._replace(federation=inputs.shifted) if is_shifted else inputs
      is_compared = _is_due(done + 1, config.mask_metrics_every)
      agreement = programs.agree(state, current) if is_compared else None
      count = _next_stop(config, done) - done
      started = time.perf_counter()
      state, columns = programs.run(state, current, count)
      run_seconds += time.perf_counter() - started
      done += count
      is_last = done == config.rounds
      is_evaluated = _is_due(done, config.eval_every) or is_last
      scores = programs.evaluate(state, inputs) if is_evaluated else {}
      is_by_client = is_evaluated and config.client_eval
      if is_by_client:
        hits = programs.classify(state, inputs)
      packed = programs.pack(state) if _is_due(done, config.mask_metrics_every) else None
      for number, member in enumerate(members):
        if number in failures:
          continue
        new = _new_rows(of_run(number, columns), of_run(number, scores), count)
        if is_by_client:
          owners = owners_at(member.experiment.test_owners, config.shift_round, done)
          num_clients = member.experiment.facts["num_clients"]
          accuracies = client_accuracies(of_run(number, hits), owners, num_clients)
          new[-1] |= client_spread(accuracies)
        if agreement is not None:
          new[0]["client_mask_iou"] = of_run(number, agreement).item()
        if writers:
          _complete(member, rows[number], new)
          rows[number] += new
          for row in new:
            files[number].write(row)
            trackers[number](row)
          if packed is not None:
            save_mask(member.directory, done, of_run(number, packed))
        if number == 0:
          update(done, new[-1])
        failure = _failure(new, lost[number])
        lost[number] = _count_lost(new, lost[number])
        if failure:
          failures[number] = failure
      if len(failures) == len(members):
        raise failures[0]
      signal = processes.largest(caught.signal)
      is_due = _is_due(done, config.checkpoint_every)
      if writers and config.checkpoint_every and (is_due or is_last or signal):
        for file in files:
          file.sync()  # or a power cut could leave a checkpoint without its rows
        intact = checkpoint.save(checkpoints, done, programs.collect(state), intact)
      if signal and not is_last:
        raise StoppedError(signal, done, config.checkpoint_every > 0)
  # Of the rounds of this process; a run that went on may have none left.
  rounds_here = (config.rounds - start.done) * len(members)
  cost = {
    "seconds_per_round": run_seconds / rounds_here if rounds_here else None,
    "compile_seconds": programs.seconds,
  }
  if config.client_eval and hits is None:  # a run that had ended before
    hits = programs.classify(state, inputs)
  for number, member in enumerate(writers):
    if number not in failures and (failure := _never_updated(member.config, rows[number])):
      failures[number] = failure
  if writers and len(failures) == len(members):
    raise failures[0]
  results: list[dict[str, Any] | DivergedError] = []
  for number, member in enumerate(writers):
    if number in failures:
      results.append(failures[number])
      continue
    own_hits = None if hits is None else of_run(number, hits)
    summary = _summarise(member, rows[number], of_run(number, state), own_hits)
    summary |= cost | describe_environment()
    titled = summary | {"algorithm": flags.method_of(member.config).title}
    plot_curves(rows[number], titled, member.directory / "curves.png")
    split, classes = member.experiment.split, member.experiment.facts["classes"]
    plot_split(split, classes, member.directory / "partition.png")
    write_similarity(member.directory)
    write_json(member.directory / SUMMARY_NAME, summary)  # last: it says that all is there
    results.append(summary)
  return results


def _earlier_rows(member: Member, done: int) -> list[dict[str, Any]]:
  return read_metrics(member.directory / JSONL_NAME)[:done] if done else []


def _open_trackers(member: Member, done: int) -> contextlib.AbstractContextManager[Write]:
  config = member.config
  return open_trackers(config.trackers, member.directory, config._asdict(), done, _warn)


def _warn(text: str) -> None:
  print(f"warning: {text}", file=sys.stderr)


def _is_due(done: int, every: int) -> bool:
  return every > 0 and done % every == 0


def _next_stop(config: flags.Config, done: int) -> int:
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


def _new_rows(
  columns: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray], count: int
) -> list[dict[str, Any]]:
  columns = _on_host(columns)
  first = ("round", "train_loss", "train_accuracy")
  names = [*first, *(name for name in columns if name not in first)]
  empty = [*(name for name in _MEASURED if name not in columns), *_NOW_AND_THEN]
  rows: list[dict[str, Any]] = [
    {name: columns[name][i].tolist() for name in names} | dict.fromkeys(empty) for i in range(count)
  ]
  rows[-1] |= {name: score.item() for name, score in scores.items()}
  return rows


def _on_host(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Makes numbers of the sums that came in parts, and the mean of bytes over clients."""
  values = {
    name: column.astype(np.float64) if column.dtype == np.uint32 else column
    for name, column in columns.items()
  }
  values["examples"] = total(columns["examples"]).astype(np.float64)
  if "round_uplink_bytes" in columns:
    values["round_uplink_bytes"] = total(columns["round_uplink_bytes"])
    clients = columns["clients"].astype(np.float64)
    mean = np.full(len(clients), np.nan)
    np.divide(values["round_uplink_bytes"], clients, out=mean, where=clients > 0)
    values["uplink_bytes"] = mean
  return values


def _failure(rows: Sequence[Mapping[str, Any]], lost: int) -> DivergedError | None:
  """Finds out whether training diverged.

  Args:
    rows: of some rounds.
    lost: how many rounds just before them had uploads, none of them finite.
  """
  for row in rows:
    lost = _count_lost([row], lost)
    if lost == _MOST_LOST:
      return DivergedError(
        f"round {row['round']}: all that clients sent in the last {lost} rounds is not finite;"
        " training diverged, a smaller --client_lr may help (the rounds so far are in"
        " metrics.jsonl)"
      )
    loss = row["train_loss"]
    if row["examples"] > 0 and (loss is None or not math.isfinite(loss)):  # None where read back
      return DivergedError(
        f"round {row['round']}: train_loss is {loss}; training diverged, a smaller"
        " --client_lr may help (the rounds so far are in metrics.jsonl)"
      )
  return None


def _count_lost(rows: Sequence[Mapping[str, Any]], before: int) -> int:
  """Counts rounds in a row of which no upload was finite; rounds without uploads do not count."""
  for row in rows:
    before = 0 if row["clients"] else before + bool(row["excluded_clients"])
  return before


def _never_updated(config: flags.Config, rows: Sequence[Mapping[str, Any]]) -> DivergedError | None:
  """Finds out whether nobody was left in any round of a run."""
  if any(row["clients"] for row in rows):
    return None
  sampled = config.clients_per_round * len(rows)
  lost = sum(int(row["dropped_clients"]) for row in rows)
  excluded = sum(int(row["excluded_clients"]) for row in rows)
  return DivergedError(
    f"no round had an update: of {sampled} clients sampled {lost} vanished"
    f" (--client_dropout={config.client_dropout}), {excluded} sent what is not finite (a smaller"
    f" --client_lr than {config.client_lr} may help) and {sampled - lost - excluded} have no"
    " examples (a smaller --num_clients may help); the rounds are in metrics.jsonl"
  )


def _complete(
  member: Member, earlier: Sequence[Mapping[str, Any]], new: Sequence[dict[str, Any]]
) -> None:
  """Adds to new rows what follows from them and from earlier ones."""
  if not member.config.metrics:
    return
  total = earlier[-1]["cumulative_bytes"] if earlier else 0
  for row in new:
    received = row.pop("received_density")
    # Whoever vanished, or sent what is not finite, has received the model too.
    num_receivers = row["clients"] + row["dropped_clients"] + row["excluded_clients"]
    up = row.pop("round_uplink_bytes")
    down = round(num_receivers * row["downlink_bytes"])
    total += up + down
    row |= {
      "round_uplink_bytes": up,
      "round_downlink_bytes": down,
      "cumulative_bytes": total,
      "client_flops": _client_work(member, row, received),
    }


def _client_work(member: Member, row: Mapping[str, Any], received: Sequence[float]) -> float:
  config, experiment = member.config, member.experiment
  per_client = row["examples"] / row["clients"] if row["clients"] else 0.0
  shares = shares_of(config, experiment.costs, experiment.layers, received, row["target_sparsity"])
  return client_flops(experiment.costs, shares, per_client)


def _summarise(
  member: Member, rows: Sequence[Mapping[str, Any]], state: Any, hits: np.ndarray | None
) -> dict[str, Any]:
  config, experiment, last = member.config, member.experiment, rows[-1]
  summary = {
    "algorithm": config.algorithm,
    "dataset": config.dataset,
    "model": config.model,
    "rounds": config.rounds,
    "seed": config.seed,
    **{name: last[name] for name in ("test_accuracy", "test_loss")},
    **describe_chance(last["test_accuracy"], experiment.y_test),
    "output_dir": str(member.directory),
    "empty_clients": experiment.facts["empty_clients"],
    **dict.fromkeys(("global_sparsity", "prunable_sparsity")),
    **dict.fromkeys(("uplink_bytes_per_client_round", "downlink_bytes_per_client_round")),
  }
  if config.metrics:
    summary |= _summarise_measures(member, rows, state)
  if kept := memory_bytes(state):
    summary["client_memory_bytes"] = kept
  if hits is not None:
    owners = owners_at(experiment.test_owners, config.shift_round, config.rounds)
    num_clients = experiment.facts["num_clients"]
    summary["client_accuracies"] = client_accuracies(hits, owners, num_clients)
  if config.shift_round is not None:
    found = recovery(rows, config.shift_round)
    summary |= {
      "shift_round": config.shift_round,
      "accuracy_before_shift": found.accuracy_before,
      "lowest_accuracy_after_shift": found.lowest_after,
      "rounds_to_regain": found.rounds_to_regain,
    }
  return summary


def _summarise_measures(
  member: Member, rows: Sequence[Mapping[str, Any]], state: Any
) -> dict[str, Any]:
  config, experiment, last = member.config, member.experiment, rows[-1]
  model = experiment.algorithm.broadcast(state.server).variables
  # Over all rounds: what is sent on the way to the target sparsity counts too. A round whose
  # clients are all empty sends nothing.
  sent = [row for row in rows if row["clients"] > 0]

  def mean_over_clients(column: str) -> float | None:
    clients = [row["clients"] for row in sent]
    return float(np.average([row[column] for row in sent], weights=clients)) if sent else None

  examples = sum(row["examples"] for row in sent) / max(sum(row["clients"] for row in sent), 1)
  densities, sparsity = last["layer_density"], last["target_sparsity"]
  shares = shares_of(config, experiment.costs, experiment.layers, densities, sparsity)
  return {
    **{name: last[name] for name in ("global_sparsity", "prunable_sparsity")},
    "uplink_bytes_per_client_round": mean_over_clients("uplink_bytes"),
    "downlink_bytes_per_client_round": mean_over_clients("downlink_bytes"),
    "total_bytes": last["cumulative_bytes"],
    "dense_bytes": dense_bytes(model),
    "target_accuracy": config.target_accuracy,
    "bytes_to_target": bytes_to_accuracy(rows, config.target_accuracy),
    "rounds_to_target": rounds_to_accuracy(rows, config.target_accuracy),
    "client_flops_per_round": mean_over_clients("client_flops"),
    "dense_client_flops_per_round": dense_flops(experiment.costs, examples),
    # Of a client that receives the final model.
    "flops_by_layer": flops_table(experiment.costs, shares, examples),
    "layers": experiment.layers,
    "layer_densities": dict(zip(experiment.layers, densities, strict=True)),
  }
