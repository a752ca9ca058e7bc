"""What a run prints, on a terminal and into a file."""

import io
import math
import sys

import numpy as np
import pytest

from experiments import flags, sweep, terminal
from experiments.run.rows import new_rows
from experiments.sweeps.grid import Run
from sparsyfed_jax.fed.tasks import TASKS


class Clock:
  """Stands in for the module `time`."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(terminal, "time", clock)
  return clock


def test_lines_are_few_and_include_the_first_and_the_last(clock, capsys):
  with terminal.progress(50) as update:
    clock.now += 30  # compilation
    for i in range(1, 51):
      clock.now += 0.1
      update(i, {"train_loss": 0.5, "prunable_sparsity": 0.95})
  rounds = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
  assert rounds[0] == "1/50" and rounds[-1] == "50/50"
  assert 3 <= len(rounds) <= 5


def test_a_line_reads_as_documented(clock, capsys):
  row = {"train_loss": 0.53, "test_accuracy": 0.912, "prunable_sparsity": 0.95}
  values = "train_loss 0.53  test_accuracy 0.912  sparsity 0.950"
  with terminal.progress(200) as update:
    clock.now += 30
    update(10, row)
    clock.now += 4
    update(20, {"round": 20, **row})
    clock.now += 72
    update(200, {"train_loss": math.nan, "test_accuracy": None})
  assert capsys.readouterr().out.splitlines() == [
    f"round 10/200  {values}",
    f"round 20/200  {values}  2.5 rounds/s  1 min 12 s left",
    "round 200/200  train_loss nan  2.5 rounds/s",
  ]


def test_a_round_in_which_nobody_counted_has_no_loss(clock, capsys):
  columns = {
    "round": np.array([1, 2]), "train_loss": np.array([0.5, np.nan]),
    "train_accuracy": np.array([0.5, np.nan]), "clients": np.array([4.0, 0.0]),
    "examples": np.zeros((2, 3), np.uint32), "server_regrowth": np.zeros(2),
  }  # fmt: skip
  rows = new_rows(columns, {}, 2, TASKS["classification"])
  assert (rows[0]["train_loss"], rows[1]["train_loss"]) == (0.5, None)
  assert rows[1]["train_accuracy"] is None and rows[1]["server_regrowth"] == 0
  with terminal.progress(2) as update:
    update(2, rows[1])
  told = capsys.readouterr().out
  assert told.startswith("round 2/2") and "loss" not in told and "nan" not in told


def test_of_several_runs_a_line_names_which(clock, capsys):
  config = flags.resolve(flags.DEFAULTS)
  run = Run({"algorithm": "topk", "sparsity": "0.9", "seed": "1", "beta": ""}, config)
  title = sweep.title_of(run)
  assert title == f"{config.algorithm} sparsity=0.9 seed=1"
  with terminal.progress(20) as update:
    sweep._shifted(update, 10, 1, title)(10, {"train_loss": 0.5})
  told = capsys.readouterr().out
  assert told.startswith(f"round 20/20  {title}  train_loss 0.5")


def test_a_resumed_run_is_not_credited_with_earlier_rounds(clock, capsys):
  with terminal.progress(110, first_round=100) as update:
    clock.now += 20
    update(110, {})
  assert capsys.readouterr().out == "round 110/110  2.0 s/round\n"


def test_an_interrupted_run_shows_where_it_stopped(clock, capsys):
  with pytest.raises(KeyboardInterrupt), terminal.progress(50) as update:
    update(1, {})
    clock.now += 0.5
    update(2, {})
    raise KeyboardInterrupt
  assert capsys.readouterr().out.splitlines()[-1].startswith("round 2/50")


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_gets_a_bar_that_keeps_the_last_evaluation(monkeypatch):
  for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "120")
  screen = Terminal()
  monkeypatch.setattr(sys, "stdout", screen)
  with terminal.progress(20) as update:
    update(10, {"train_loss": 0.5, "test_accuracy": 0.9, "prunable_sparsity": 0.95})
    update(20, {"train_loss": 0.25, "test_accuracy": None, "prunable_sparsity": 0.95})
  last = screen.getvalue()
  for text in ("compiling", "20/20", "loss 0.25", "acc 0.900", "sparsity 0.950"):
    assert text in last


def test_forced_color_does_not_make_a_file_a_terminal(monkeypatch, capsys):
  monkeypatch.setenv("FORCE_COLOR", "1")
  with terminal.progress(1) as update:
    update(1, {"train_loss": 0.5})
  assert "\x1b" not in capsys.readouterr().out


def test_closing_table(monkeypatch, capsys):
  monkeypatch.setenv("COLUMNS", "80")
  long_path = "runs/[a]/" + "x" * 100
  terminal.closing_table(
    {
      "algorithm": "topk",
      "dataset": "npz:[b].npz",
      "test_accuracy": 0.9412,
      "client_accuracies": [0.5, None, 0.75],
      "global_sparsity": 0.93,
      "uplink_bytes_per_client_round": 4_000.0,
      "downlink_bytes_per_client_round": 40_000.0,
      "dense_bytes": 40_000,
      "seconds_per_round": 0.0432,
      "compile_seconds": 75.0,
      "output_dir": long_path,
      "test_loss": None,
    }
  )
  out = capsys.readouterr().out
  expected = ("npz:[b].npz", "0.9412", "4 kB", "10.0% of dense", "100.0%", "0.0432 s", "1 min 15 s")
  expected += ("0.6250",)
  for text in (*expected, long_path):
    assert text in out
  assert "loss" not in out and "prunable" not in out


def test_closing_table_of_nothing(capsys):
  terminal.closing_table({})
  assert "None" not in capsys.readouterr().out


@pytest.mark.parametrize(
  ("count", "text"),
  [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (41_249, "41.2 kB"), (5e15, "5e+03 TB")],
)
def test_format_bytes(count, text):
  assert terminal.format_bytes(count) == text


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0.2, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (4320, "1 h 12 min")],
)
def test_format_seconds(seconds, text):
  assert terminal.format_seconds(seconds) == text
