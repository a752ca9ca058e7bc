"""Lets programs take turns, also of other frameworks, so that a drifting machine drifts for all.

A peer is a program that does the same work as a workload of `experiments.bench`. It warms up,
prints `first=<seconds>s`, what its first round took, and waits. For each line on stdin it then runs
a round and prints `round=<seconds>s`; it ends when stdin does. `experiments/peers/` has such
programs.
"""

import contextlib
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import jax

PATIENCE_SECONDS = 10  # with a peer that is told to end


class PeerError(RuntimeError):
  """A peer did not run its round."""


class Peer(NamedTuple):
  """A peer that is warm, and waits."""

  first_seconds: float  # of its first round, which may compile
  run_round: Callable[[], float]  # runs one; returns its seconds, raises PeerError


@contextlib.contextmanager
def open_peer(command: Sequence[str]) -> Iterator[Peer]:
  """Starts a peer and waits until it is warm; it has ended when the context has.

  Args:
    command: the program and its arguments.

  Raises:
    PeerError: it could not be started, or ended before it was warm.
  """
  line = shlex.join(command)
  with tempfile.TemporaryFile("w+") as errors:
    try:
      process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
      )
    except OSError as error:
      raise PeerError(f"peer {line}: {error}") from error
    assert process.stdin and process.stdout
    stdin, stdout = process.stdin, process.stdout

    def wait_for(name: str) -> float:
      for printed in stdout:
        found = re.search(rf"\b{name}=(\d+(?:\.\d+)?)s", printed)
        if found:
          seconds = float(found.group(1))
          if not seconds:
            raise PeerError(f"peer {line}: printed {name}={found.group(1)}s: must be more than 0")
          return seconds
      raise PeerError(f"peer {line}: {_last_words(process, errors, name)}")

    def run_round() -> float:
      with contextlib.suppress(BrokenPipeError):  # it has ended, and will say why
        stdin.write("\n")
        stdin.flush()
      return wait_for("round")

    try:
      yield Peer(wait_for("first"), run_round)
    finally:
      _end(process)


def interleave(turns: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
  """Calls each in turn, as often as told; returns what each of them returned."""
  rounds = [[turn() for turn in turns] for _ in range(repeats)]
  return [list(own) for own in zip(*rounds, strict=True)]


def time_call(fn: Callable[..., Any], *args: Any) -> float:
  """Returns the seconds of a call, until the device is done."""
  start = time.perf_counter()
  jax.block_until_ready(fn(*args))
  return time.perf_counter() - start


def _last_words(process: subprocess.Popen[str], errors: IO[str], awaited: str) -> str:
  code = process.wait()
  errors.seek(0)
  said = errors.read().strip().splitlines()[-1:]
  if code and said:
    return said[0]
  return (
    f"ended with exit code {code} and without '{awaited}=<seconds>s'; it should run a round for"
    " each line on stdin, as the programs of experiments/peers do with --turns"
  )


def _end(process: subprocess.Popen[str]) -> None:
  with contextlib.suppress(OSError):
    if process.stdin:
      process.stdin.close()
  try:
    process.wait(PATIENCE_SECONDS)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()
  if process.stdout:
    process.stdout.close()
