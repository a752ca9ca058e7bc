"""SIGINT and SIGTERM as a wish to stop, not as an exception in the middle of a round."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn


def leave_on_signal(leave: Callable[[int], NoReturn]) -> None:
  """Calls `leave` with the number of a SIGINT or SIGTERM, in this process from now on.

  An exception instead could come up inside a callback of the compiler, which swallows it.
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: leave(number))


@contextlib.contextmanager
def catch_signals() -> Iterator[SimpleNamespace]:
  """Notes the first SIGINT or SIGTERM; a second one interrupts at once.

  Yields:
    An object whose `signal` is the number of the signal that came, 0 before.
  """
  caught = SimpleNamespace(signal=0)
  if threading.current_thread() is not threading.main_thread():
    yield caught
    return

  def note(number: int, frame: FrameType | None) -> None:
    if caught.signal:
      earlier = before[signal.Signals(number)]
      if callable(earlier):
        earlier(number, frame)
      raise KeyboardInterrupt
    caught.signal = number
    print("\nstopping after the rounds under way; once more to stop at once", file=sys.stderr)

  before: dict[signal.Signals, Any] = {}
  before |= {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield caught
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def leave_unread() -> NoReturn:
  """Ends the process where whoever read its output is gone."""
  # Nothing more can be said, not even by the interpreter when it closes stdout.
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  sys.exit(1)
