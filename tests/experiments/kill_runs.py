"""Kills runs at any moment and lets them go on: python -m tests.experiments.kill_runs --kills=100.

Between the kills comes what else may happen to a run: other data, a damaged checkpoint, a second
process, a signal while it compiles, files of somebody else. Whatever happens, rows that were once
recorded stay as they are, and in the end records and states are those of a run left alone.
"""

import argparse
import collections
import contextlib
import itertools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from tests.programs import Program

TIMEOUT = 240  # seconds
COMMON = (
  *("--model=mlp", "--num_clients=20", "--clients_per_round=2", "--local_epochs=1"),
  *("--eval_every=4", "--checkpoint_every=10"),
)
# Seven kinds of runs, and their flags besides; of the sweep, the two runs side by side.
KINDS = {
  "plain": ("--algorithm=fedavg", "--rounds=300"),
  "cnn": ("--model=cnn", "--num_clients=60", "--rounds=60"),
  "masks": ("--algorithm=feddst", "--client_momentum=0.9", "--rounds=150"),
  "shift": ("--shift_round=70", "--client_eval", "--mask_metrics_every=15", "--rounds=150"),
  "streamed": ("--data_placement=streamed", "--rounds=200"),
  "memories": ("--algorithm=scaffold", "--data_placement=streamed", "--rounds=200"),
  "sweep": ("--seed=0,1", "--sweep_mode=vmap", "--rounds=150"),
}
TROUBLES = ("other data", "damaged checkpoint", "second process", "signal", "foreign files", "none")


class Case(NamedTuple):
  """A kind of run, and where it is run."""

  program: str
  arguments: tuple[str, ...]
  directory: pathlib.Path
  data: pathlib.Path

  def start(self) -> Program:
    arguments = list(self.arguments)
    if self.program == "train" and (self.directory / "config.json").exists():
      arguments.append("--resume")
    arguments += [f"--dataset=npz:{self.data}", f"--output_dir={self.directory}"]
    return Program(f"experiments.{self.program}", *arguments)


def write_data(path: pathlib.Path, turn: int = 0) -> None:
  """Writes images of four classes, their labels turned by so many."""
  rng = np.random.default_rng(0)
  y = np.arange(400) % 4
  x = rng.integers(0, 100, (400, 8, 8, 1)) + 30 * y[:, None, None, None]
  temporary = path.with_name("other.npz")
  np.savez(temporary, x=x.astype(np.uint8), y=(y + turn) % 4)
  temporary.replace(path)


def records(directory: pathlib.Path) -> dict[str, list[bytes]]:
  """Reads the whole lines of all records below a directory."""
  found = {}
  for path in sorted(directory.rglob("metrics.jsonl")):
    lines = path.read_bytes().split(b"\n")[:-1]
    found[path.relative_to(directory).as_posix()] = lines
  return found


def checkpoints(directory: pathlib.Path) -> list[pathlib.Path]:
  """Lists the checkpoints below a directory, oldest first."""
  places = directory.rglob("checkpoints/[0-9]*")
  return sorted((place for place in places if place.name.isdigit()), key=lambda place: place.name)


def final_state(directory: pathlib.Path) -> list[np.ndarray]:
  """Reads the last checkpoint as it is stored."""
  import jax
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    return jax.tree.leaves(checkpointer.restore(checkpoints(directory)[-1].absolute()))


def assert_kept(before: dict[str, list[bytes]], now: dict[str, list[bytes]]) -> None:
  """Checks that rows that were recorded are there, and as they were."""
  for name, lines in before.items():
    assert now.get(name, [])[: len(lines)] == lines, f"{name}: recorded rows are lost or changed"


def assert_same(case: Case, whole: pathlib.Path) -> None:
  """Checks that a run left what the run that nobody disturbed has left."""
  assert records(case.directory) == records(whole)
  for path in whole.rglob("metrics.csv"):
    assert (case.directory / path.relative_to(whole)).read_bytes() == path.read_bytes()
  for one, other in zip(final_state(case.directory), final_state(whole), strict=True):
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
  assert not list(case.directory.rglob("*discarded*"))


def refused(case: Case, reason: str) -> None:
  """Checks that a process ends with one line, and leaves everything as it is."""
  before = records(case.directory)
  with case.start() as process:
    _, errors = process.communicate(timeout=TIMEOUT)
  lines = [line for line in errors.splitlines() if line]
  assert process.returncode == 2 and len(lines) == 1 and reason in lines[0], errors
  assert_kept(before, records(case.directory))


def make_trouble(case: Case, trouble: str, rng: random.Random) -> bool:
  """Does to a run that was killed what a user might; returns whether it could."""
  if trouble == "foreign files":
    for place in (case.directory, *case.directory.rglob("checkpoints")):
      (place / "notes.txt").write_text("mine")
      (place / "mine").mkdir(exist_ok=True)
    return True
  if trouble == "damaged checkpoint":
    places = checkpoints(case.directory)
    if len(places) < 2:
      return False
    size = lambda path: path.stat().st_size  # noqa: E731
    largest = max(filter(pathlib.Path.is_file, places[-1].rglob("*")), key=size)
    content = bytearray(largest.read_bytes())
    content[rng.randrange(len(content))] ^= 0xFF
    largest.write_bytes(content)
    return True
  if case.program != "train" or not (case.directory / "config.json").exists():
    return trouble == "none"
  if trouble == "other data":
    write_data(case.data, turn=1)
    refused(case, "examples are not those")
    write_data(case.data)
  if trouble == "signal":
    before = records(case.directory)
    with case.start() as process:
      line = process.stdout.readline()
      while "compiling" not in line:
        assert line, process.stderr.read()
        line = process.stdout.readline()
      process.send_signal(signal.SIGTERM)
      process.communicate(timeout=TIMEOUT)
    assert process.returncode in (0, 143), process.returncode
    assert_kept(before, records(case.directory))
  return True


def live(case: Case, rng: random.Random, seconds: float, trouble: str) -> tuple[bool, str]:
  """Starts a run or goes on with it, and kills it some time later.

  Returns:
    Whether it was killed before it ended, and in which part of its life.
  """
  before = records(case.directory)
  count = len(before.get("metrics.jsonl", []))
  is_starting = rng.random() < 0.25 and trouble != "second process"
  process = case.start()
  part = "starting" if is_starting else "training"
  try:
    if is_starting:
      process.wait(rng.uniform(0.0, 2.0))
    else:
      # Until a call of rounds is done, then up to the time that a third of the run takes.
      wait_for_rows(case, process, before)
      if trouble == "second process" and process.poll() is None:
        process.send_signal(signal.SIGSTOP)  # or it would end before the second one comes to it
        if not list(case.directory.rglob("summary.json")):  # it has come to its end already
          refused(case, "is in use by process")
        process.send_signal(signal.SIGCONT)
      process.wait(rng.uniform(0.0, seconds))
  except subprocess.TimeoutExpired:
    pass
  finally:
    process.kill()
  _, errors = process.communicate(timeout=TIMEOUT)
  assert process.returncode in (0, -signal.SIGKILL), errors
  now = records(case.directory)
  assert_kept(before, now)
  assert count <= len(now.get("metrics.jsonl", [])) or case.program == "sweep"
  return process.returncode != 0, part


def wait_for_rows(case: Case, process: Program, before: dict[str, list[bytes]]) -> None:
  """Waits until a run trains: rows that are computed again do not show in the record."""
  deadline = time.monotonic() + TIMEOUT
  output, text = process.stdout.fileno(), b""
  os.set_blocking(output, False)
  while process.poll() is None and time.monotonic() < deadline:
    with contextlib.suppress(BlockingIOError):
      text += os.read(output, 2**16)
    if b"train_loss" in text or records(case.directory) != before:
      break
    time.sleep(0.02)
  os.set_blocking(output, True)


def run(kinds: list[str], kills: int, seed: int, log=print) -> collections.Counter:
  """Kills runs of some kinds, in turns until there were so many kills; returns what happened."""
  rng = random.Random(seed)
  counts: collections.Counter = collections.Counter()
  troubles = itertools.cycle(TROUBLES)
  with tempfile.TemporaryDirectory() as folder:
    for number, kind in enumerate(kinds):
      place = pathlib.Path(folder) / kind
      place.mkdir()
      write_data(place / "data.npz")
      program = "sweep" if kind == "sweep" else "train"
      arguments = (*COMMON, *KINDS[kind])
      case = Case(program, arguments, place / "whole", place / "data.npz")
      started = time.monotonic()
      with case.start() as process:
        _, errors = process.communicate(timeout=TIMEOUT)
      assert process.returncode == 0, errors
      log(f"{kind}: left alone {time.monotonic() - started:.1f} s")
      share = kills * (number + 1) // len(kinds) - kills * number // len(kinds)
      counts += disturb(
        case._replace(directory=place / "run"), place / "whole", rng, share, troubles
      )
      log(f"{kind}: {dict(counts)}, {time.monotonic() - started:.0f} s")
  return counts


def disturb(case: Case, whole: pathlib.Path, rng: random.Random, kills: int, troubles):
  """Kills one kind of run so many times, begun anew whenever it has ended."""
  counts: collections.Counter = collections.Counter()
  trouble = next(troubles)
  while kills:
    is_made = case.directory.exists() and make_trouble(case, trouble, rng)
    if is_made:
      counts[trouble] += 1
    is_killed, part = live(case, rng, 1.0, trouble)
    if is_killed:
      kills -= 1
      counts[f"killed {part}"] += 1
    if not is_killed or not kills:
      end(case, whole)
      counts["ended"] += 1
    # What a run just begun could not suffer it suffers later, but for what only `train` can.
    if is_made or case.program != "train":
      trouble = next(troubles)
  return counts


def end(case: Case, whole: pathlib.Path) -> None:
  """Lets a run come to its end, and checks what it has left."""
  foreign = [place for place in case.directory.rglob("*") if place.name in ("mine", "notes.txt")]
  with case.start() as process:
    _, errors = process.communicate(timeout=TIMEOUT)
  assert process.returncode == 0, errors
  assert_same(case, whole)
  assert all(place.exists() for place in foreign)
  shutil.rmtree(case.directory)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kinds", default=",".join(KINDS))
  arguments = parser.parse_args()
  started = time.monotonic()
  with tempfile.TemporaryDirectory() as cache, contextlib.suppress(KeyboardInterrupt):
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    counts = run(arguments.kinds.split(","), arguments.kills, arguments.seed)
    print(
      f"{counts['killed starting'] + counts['killed training']} kills, nothing lost or changed:"
      f" {dict(counts)}, {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
  sys.exit(main())
