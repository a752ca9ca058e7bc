"""What a run says on the terminal: its progress, and a table at the end."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from sparsyfed_jax.fed.metric import Metric
from sparsyfed_jax.fed.tasks import TASKS

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")
LINE_INTERVAL = 2.0  # least seconds between two lines where stdout is not a terminal


def _style(metric: Metric, digits: int) -> str:
  return f"{{:.{digits}f}}" if metric.is_share else f"{{:.{digits}g}}"


Row: TypeAlias = Mapping[str, Any]
Update: TypeAlias = Callable[[int, Row], None]

RUN = "run"  # of a row, what the run is called where there are several
_SHORT = {"accuracy": "acc"}
_METRICS = tuple({metric.name: metric for one in TASKS.values() for metric in one.metrics}.values())
# Column of a row, its name in a line, its name beside the bar, its format.
_COLUMNS = (
  ("train_loss", "train_loss", "loss", "{:.3g}"),
  *(
    (f"test_{m.name}", f"test_{m.name}", _SHORT.get(m.name, m.name), _style(m, 3)) for m in _METRICS
  ),
  ("prunable_sparsity", "sparsity", "sparsity", "{:.3f}"),
)


def format_bytes(count: float) -> str:
  """Writes a size with three digits and a decimal unit: `41.2 kB`."""
  power = 0
  while count >= 999.5 and power < len(BYTE_UNITS) - 1:
    count, power = count / 1000, power + 1
  return f"{count:.3g} {BYTE_UNITS[power]}"


def format_seconds(seconds: float) -> str:
  """Writes a duration with at most two units: `15 s`, `2 min 05 s`, `1 h 12 min`."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextlib.contextmanager
def progress(total_rounds: int, first_round: int = 0) -> Iterator[Update]:
  """Shows how a run proceeds: a bar on a terminal, otherwise a line now and then.

  Args:
    total_rounds: the round at which the run ends.
    first_round: the rounds that were done before, by the run that this one resumes.

  Yields:
    `update(rounds_done, row)`, to be called with the latest row whenever rounds have ended.
  """
  console = Console()
  pace = _make_pace(total_rounds, first_round)
  # FORCE_COLOR makes rich take a file for a terminal.
  if sys.stdout.isatty() and console.is_interactive:
    with _bar(console, total_rounds, first_round, pace) as update:
      yield update
  else:
    with _lines(total_rounds, pace) as update:
      yield update


def closing_table(summary: Row, note: str = "") -> None:
  """Prints what came out of a run.

  Args:
    summary: the contents of `summary.json`, and `dense_bytes` and `output_dir`. What is missing or
      None is left out.
    note: the last line, if any.
  """
  names = [summary.get(key) for key in ("algorithm", "dataset", "model")]
  title = Text(", ".join(str(name) for name in names if name), style="bold")
  table = Table(title=title, title_justify="left", box=box.ROUNDED, show_header=False)
  table.add_column(style="dim")
  table.add_column(justify="right")
  table.add_column(style="dim")
  for key, name, style in (
    *((f"test_{m.name}", f"test {m.title}", _style(m, 4)) for m in _metrics_of(summary)),
    ("test_loss", "test loss", "{:.4g}"),
    ("global_sparsity", "sparsity, all parameters", "{:.4f}"),
    ("prunable_sparsity", "sparsity, prunable", "{:.4f}"),
  ):
    if summary.get(key) is not None:
      table.add_row(name, style.format(summary[key]), "")
  if accuracies := [one for one in summary.get("client_accuracies") or () if one is not None]:
    table.add_row("mean accuracy of clients", f"{sum(accuracies) / len(accuracies):.4f}", "")
  late = summary.get("late_clients")
  whose = "of a client that counted" if late else "per client and round"
  for way in ("uplink", "downlink"):
    sent = summary.get(f"{way}_bytes_per_client_round")
    if sent is not None:
      dense = summary.get("dense_bytes")
      ratio = f"{sent / dense:.1%} of dense" if dense else ""
      table.add_row(f"{way} {whose}", format_bytes(sent), ratio)
  if summary.get("total_bytes") is not None:
    table.add_row("traffic of all clients", format_bytes(summary["total_bytes"]), "")
  reached = summary.get("bytes_to_target")
  if reached is not None:
    name = _until(summary)
    table.add_row(name, format_bytes(reached), f"round {summary['rounds_to_target']}")
  flops = summary.get("client_flops_per_round")
  if flops is not None:
    share = flops / summary["dense_client_flops_per_round"]
    table.add_row(f"FLOPs {whose}", f"{flops:.3g}", f"{share:.1%} of dense")
  for key, name in (("seconds_per_round", "a round"), ("compile_seconds", "compilation")):
    seconds = summary.get(key)
    if seconds is not None:
      table.add_row(name, f"{seconds:.3g} s" if seconds < 60 else format_seconds(seconds), "")
  if summary.get("virtual_seconds") is not None:
    seconds, energy = summary["virtual_seconds"], summary.get("energy")
    text = f"{seconds:.3g} s" if seconds < 60 else format_seconds(seconds)
    table.add_row("virtual time", text, "")
    if energy is not None:
      table.add_row("energy of all clients", f"{energy:.3g} J", "")
  if late:
    lost = summary.get("rounds_without_clients")
    table.add_row("late clients", f"{late:,}", f"{lost:,} rounds with no other" if lost else "")
  console = Console()
  console.print(table)
  if summary.get("output_dir"):
    # Below the table, where no border breaks a long path.
    console.print(Text(f"files in {summary['output_dir']}"), soft_wrap=True)
  if note:
    console.print(Text(note), soft_wrap=True)


def _metrics_of(summary: Row) -> tuple[Metric, ...]:
  return TASKS.get(summary.get("task") or "", TASKS["classification"]).metrics


def _until(summary: Row) -> str:
  if "target" in summary:
    return f"until test {_metrics_of(summary)[0].title} {summary['target']:g}"
  return f"until {summary['target_accuracy']:.0%} test accuracy"


def _make_pace(total_rounds: int, first_round: int) -> Callable[[int], str]:
  """Measures from the first call on, because the rounds before it also paid for compilation."""
  start = (first_round, time.monotonic())
  warm: list[tuple[int, float]] = []

  def pace(rounds_done: int) -> str:
    now = time.monotonic()
    done, since = warm[0] if warm else start
    rate = (rounds_done - done) / max(now - since, 1e-9)
    is_known = bool(warm) or rounds_done >= total_rounds
    if not warm:
      warm.append((rounds_done, now))
    if not is_known or rate <= 0:
      return ""
    speed = f"{rate:.1f} rounds/s" if rate >= 1 else f"{1 / rate:.1f} s/round"
    rounds_left = total_rounds - rounds_done
    return f"{speed}  {format_seconds(rounds_left / rate)} left" if rounds_left > 0 else speed

  return pace


@contextlib.contextmanager
def _lines(total_rounds: int, pace: Callable[[int], str]) -> Iterator[Update]:
  printed_at = -LINE_INTERVAL
  held_back = ""

  def update(rounds_done: int, row: Row) -> None:
    nonlocal printed_at, held_back
    values = [
      f"{name} {style.format(float(row[key]))}"
      for key, name, _, style in _COLUMNS
      if row.get(key) is not None
    ]
    parts = [f"round {rounds_done}/{total_rounds}", row.get(RUN, ""), *values, pace(rounds_done)]
    held_back = "  ".join(part for part in parts if part)
    now = time.monotonic()
    if rounds_done >= total_rounds or now - printed_at >= LINE_INTERVAL:
      print(held_back, flush=True)
      printed_at, held_back = now, ""

  try:
    yield update
  finally:
    if held_back:
      print(held_back, flush=True)


@contextlib.contextmanager
def _bar(
  console: Console, total_rounds: int, first_round: int, pace: Callable[[int], str]
) -> Iterator[Update]:
  latest: dict[str, str] = {}  # a row without evaluation keeps the last one on the screen

  def update(rounds_done: int, row: Row) -> None:
    for key, _, name, style in _COLUMNS:
      if row.get(key) is not None:
        latest[key] = f"{name} {style.format(float(row[key]))}"
    latest[RUN] = row.get(RUN, "")
    shown = (latest.get(key) for key in (RUN, *(key for key, *_ in _COLUMNS)))
    values = "  ".join(filter(None, shown))
    bar.update(task, completed=rounds_done, pace=pace(rounds_done), values=values)

  columns = (
    TextColumn("round"),
    MofNCompleteColumn(),
    BarColumn(bar_width=None),
    TextColumn("{task.fields[pace]}", style="dim", markup=False),
    TextColumn("{task.fields[values]}", markup=False),
  )
  # Twice a second is alive enough, and leaves the cores to the training.
  with Progress(*columns, console=console, refresh_per_second=2, expand=True) as bar:
    task = bar.add_task("", total=total_rounds, completed=first_round, pace="", values="compiling")
    yield update
