"""Times the rounds of a peer, alone or in turn with `experiments.bench`.

Alone, it runs --rounds of them after a warm-up and prints their median. With --turns it says when
it is warm, and then runs one round for each line on stdin, until that ends.
"""

import argparse
import statistics
import sys
import time

WARM_UP_ROUNDS = 2


class Clock:
  """Knows when a round starts, and whether there is another."""

  def __init__(self, rounds: int, in_turns: bool, scale: float = 1.0):
    """Prepares.

    Args:
      rounds: timed, if not in turns.
      in_turns: whether stdin says when a round may start.
      scale: seconds of a round by seconds of what is run of it.
    """
    self._rounds = None if in_turns else rounds
    self._scale = scale
    self._times: list[float] = []
    self._start = 0.0

  def start(self) -> None:
    """Starts a round."""
    self._start = time.perf_counter()

  def stop(self) -> bool:
    """Ends a round; returns whether it was the last, else waits until the next may start."""
    self._times.append((time.perf_counter() - self._start) * self._scale)
    done = len(self._times) - WARM_UP_ROUNDS
    if done < 0:
      return False
    if self._rounds is not None:
      return done == self._rounds
    name, seconds = ("round", self._times[-1]) if done else ("first", self._times[0])
    print(f"{name}={seconds:.6f}s", flush=True)
    return not sys.stdin.readline()

  def summary(self) -> str:
    """Writes what the rounds after the warm-up took."""
    first, times = self._times[0], self._times[WARM_UP_ROUNDS:]
    return (
      f"first={first:.6f}s median={statistics.median(times):.6f}s"
      f" min={min(times):.6f}s max={max(times):.6f}s"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --rounds and --turns."""
  parser.add_argument("--rounds", type=positive, default=10, help="timed, after a warm-up of 2")
  parser.add_argument(
    "--turns", action="store_true", help="for experiments.bench: one round for each line on stdin"
  )


def positive(text: str) -> int:
  """Reads a number of at least 1.

  Raises:
    ValueError: it is none, as argparse wants to hear it.
  """
  number = int(text)
  if number < 1:
    raise ValueError(text)
  return number
