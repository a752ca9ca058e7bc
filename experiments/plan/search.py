"""The largest number of clients side by side that fits a target."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Answer = Mapping[str, Any]  # what `worker.answer` makes of a point

_HALVED = 4  # one trial in so many halves the bracket, should memory not grow along a line


class Largest(NamedTuple):
  """What is known of the largest number of clients side by side."""

  fits: int  # compiled, and fits; 0 where nothing did
  fails: int | None  # the least that was compiled and does not fit; None where all fit
  is_all: bool  # `fits` is all clients that a chip has in a round

  @property
  def is_exact(self) -> bool:
    """Whether nothing lies between them."""
    return self.is_all or self.fails == self.fits + 1


def total_bytes(answer: Answer) -> int | None:
  """Adds up what a chip holds, in a round or an evaluation; None where it did not compile."""
  if "too_large" in answer:
    return None
  sizes = answer["bytes"]
  kept = sum(sizes[name] for name in ("data", "state", "memories"))
  programs = [sizes, answer["evaluation"]["bytes"]] if "evaluation" in answer else [sizes]
  own = ("padding", "temporaries", "results", "code")
  return kept + max(sum(program[name] for name in own) for program in programs)


def fits(answer: Answer, usable: int) -> bool:
  """Tells whether a point compiled to what a chip has room for."""
  total = total_bytes(answer)
  return total is not None and total <= usable


def find_largest(
  ask: Callable[[int, float], Answer | None],
  known: Sequence[Answer],
  usable: int,
  seconds: float,
) -> Largest:
  """Searches for the largest number of clients side by side that fits.

  A line through the two nearest points proposes the next; now and then the bracket is halved. Each
  trial is a compilation.

  Args:
    ask: (clients side by side, seconds) -> the point; None where the time was not enough.
    known: points compiled before, at least one.
    usable: bytes of a chip.
    seconds: for all trials.
  """
  points = {answer["clients_per_chunk"]: answer for answer in known}
  most = known[0]["most_per_chip"]
  end = time.monotonic() + seconds
  trials = 0
  while True:
    low = max((size for size, each in points.items() if fits(each, usable)), default=0)
    high = min((size for size, each in points.items() if not fits(each, usable)), default=None)
    left = end - time.monotonic()
    if low == most or high == low + 1 or left <= 0:
      return Largest(low, high, low == most)
    size = (
      most if high is None else _between(points, low, high, usable, trials % _HALVED != _HALVED - 1)
    )
    answer = ask(size, left)
    if answer is None:
      return Largest(low, high, False)
    points[size] = answer
    trials += 1


def _between(points: Mapping[int, Answer], low: int, high: int, usable: int, by_line: bool) -> int:
  sizes = {
    size: total if (total := total_bytes(each)) is not None else each.get("needed_bytes")
    for size, each in points.items()
  }
  nearest = sorted(
    (size for size, total in sizes.items() if total is not None),
    key=lambda size: (size not in (low, high), min(abs(size - low), abs(size - high))),
  )[:2]
  middle = (low + high) // 2
  if not by_line or len(nearest) < 2:
    return max(middle, low + 1)
  (a, first), (b, second) = ((size, sizes[size] or 0) for size in nearest)
  slope = (second - first) / (b - a)
  guess = int(a + (usable - first) / slope) if slope > 0 else middle
  return min(max(guess, low + 1), high - 1)
