"""Rows of measurements: what they say beside each other, and their table."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.bench.options import BASELINE, OFF, ON
from experiments.bench.workloads import WORKLOADS
from experiments.terminal import format_bytes

RUN_ROUNDS = 50  # of a run whose start counts
PLAIN_WIDTH = 150  # of the table where stderr is not a terminal

Row: TypeAlias = dict[str, Any]

# Headings of the table, how a value is written, and the entries of a row of which the first that
# there is counts; a column without any value is left out.
_COLUMNS: tuple[tuple[str, Callable[[Any], str], tuple[str, ...]], ...] = (
  ("workload", str, ("workload",)),
  ("algorithm", str, ("algorithm",)),
  ("s a round", "{:.3g}".format, ("seconds_per_round", "seconds")),
  ("of the peer", "{:.2f}".format, ("ratio_to_peer",)),
  ("of its 50 rounds", "{:.2f}".format, ("ratio_of_50_rounds",)),
  (f"over {BASELINE}", "{:+.0%}".format, (f"overhead_over_{BASELINE}",)),
  ("metrics", lambda metrics: OFF if metrics == OFF else "", ("metrics",)),
  ("of metrics", "{:+.1%}".format, ("cost_of_metrics",)),
  ("of even", "{:.2f}".format, ("ratio_to_even",)),
  ("over top_k", "x {:.3g}".format, ("speedup",)),
  (
    "clients/s",
    lambda rate: f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}",
    ("clients_per_second",),
  ),
  ("compile s", "{:.1f}".format, ("compile_seconds",)),
  ("of matmul peak", "{:.1%}".format, ("share_of_matmul_peak",)),
  ("program", format_bytes, ("program_memory_bytes",)),
  ("peak memory", format_bytes, ("peak_memory_bytes",)),
)


class PeerTimes(NamedTuple):
  """What another framework's program took."""

  first_seconds: float  # its first round
  seconds: Sequence[float]  # a round, in each turn


def compare(
  rows: Sequence[Row],
  times: Sequence[Sequence[float]],
  peers: Mapping[str, PeerTimes] = MappingProxyType({}),
) -> list[Row]:
  """Adds what a method costs over FedAvg, over an even federation, over a peer, and metrics.

  Args:
    rows: of workloads that were measured in turn.
    times: of each row, seconds a round in each turn. Ratios are medians of those within a turn,
      which a machine whose speed drifts leaves alone.
    peers: of workloads that have one, in the same turns.

  Returns:
    The rows, with `overhead_over_fedavg` (0.25 for a quarter more time), `ratio_to_even`,
    `ratio_to_peer` with its quartiles, `ratio_of_50_rounds` and `cost_of_metrics` where the other
    one was measured too.
  """
  turns = {
    (row["workload"], row["algorithm"], row["metrics"]): own
    for row, own in zip(rows, times, strict=True)
  }

  def ratio(own: Sequence[float], other: tuple[str, str, str]) -> float:
    return statistics.median(_ratios(own, turns[other]))

  compared = []
  for row, own in zip(rows, times, strict=True):
    name, algorithm, metrics = row["workload"], row["algorithm"], row["metrics"]
    more: Row = {}
    if algorithm != BASELINE and (name, BASELINE, metrics) in turns:
      more[f"overhead_over_{BASELINE}"] = ratio(own, (name, BASELINE, metrics)) - 1
    even = WORKLOADS[name].even
    if even and (even, algorithm, metrics) in turns:
      more["ratio_to_even"] = ratio(own, (even, algorithm, metrics))
    if metrics == ON and (name, algorithm, OFF) in turns:
      more["cost_of_metrics"] = ratio(own, (name, algorithm, OFF)) - 1
    if name in peers:
      more |= _beside(row, own, peers[name])
    compared.append(row | more)
  return compared


def _beside(row: Row, own: Sequence[float], peer: PeerTimes) -> Row:
  seconds = statistics.median(peer.seconds)
  whole = peer.first_seconds + (RUN_ROUNDS - 1) * seconds
  ratios = _ratios(own, peer.seconds)
  return {
    "peer_seconds_per_round": seconds,
    "ratio_to_peer": statistics.median(ratios),
    "quartiles_of_ratio_to_peer": [float(edge) for edge in np.quantile(ratios, (0.25, 0.75))],
    "peer_seconds_of_50_rounds": whole,
    "ratio_of_50_rounds": row["seconds_of_50_rounds"] / whole,
  }


def _ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
  return [a / b for a, b in zip(own, other, strict=True)]


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
  """Makes the table of measurements: the headings, then a line for each row."""

  def show(row: Row, write: Callable[[Any], str], keys: Sequence[str]) -> str:
    values = [row[key] for key in keys if row.get(key) is not None]
    return write(values[0]) if values else ""

  columns = [[title, *(show(row, write, keys) for row in rows)] for title, write, keys in _COLUMNS]
  kept = [column for column in columns if any(column[1:])]
  return [list(line) for line in zip(*kept, strict=True)]


def markdown(cells: Sequence[Sequence[str]], num_texts: int = 2) -> str:
  """Writes a table whose first line are headings; all but the first columns are numbers."""
  if not cells:
    return ""
  rule = "|" + "---|" * num_texts + "---:|" * (len(cells[0]) - num_texts)
  lines = ["| " + " | ".join(line) + " |" for line in cells]
  return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def print_table(cells: Sequence[Sequence[str]]) -> None:
  """Prints a table as `markdown` writes it, on stderr."""
  table = Table(box=box.ROUNDED)
  for i, title in enumerate(cells[0]):
    table.add_column(title, justify="left" if i < 2 else "right", no_wrap=i < 2)
  for line in cells[1:]:
    table.add_row(*line)
  console = Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH)
  console.print(table)
