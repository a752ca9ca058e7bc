"""The process that compiles a plan's points: asked, waited for, and ended when time is up."""

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
from types import TracebackType
from typing import Any, NamedTuple

from experiments.plan.targets import Target, environment
from experiments.plan.worker import Request

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class PlanError(RuntimeError):
  """The process that compiles has ended; the one-line message has its last words."""


class _Process(NamedTuple):
  process: subprocess.Popen[str]
  answers: queue.Queue[str]  # "" at the end
  reader: threading.Thread  # that fills them


class Worker:
  """Compiles one point after the other in a process, which is started when it is needed.

  Used in a `with` block, after which the process has ended.
  """

  def __init__(self, target: Target):
    self._target = target
    self._running: _Process | None = None
    self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115

  def __enter__(self) -> "Worker":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._end()
    self._said.close()

  def ask(self, request: Request, seconds: float | None = None) -> dict[str, Any] | None:
    """Lets a point be compiled.

    Args:
      request: which.
      seconds: until the process is ended; None waits as long as it takes.

    Returns:
      What `worker.answer` makes; None where the time was not enough.

    Raises:
      PlanError: the process ended by itself.
    """
    running = self._running = self._running or self._start()
    assert running.process.stdin is not None
    try:
      running.process.stdin.write(json.dumps(request._asdict()) + "\n")
      running.process.stdin.flush()
      line = running.answers.get(timeout=seconds)
    except queue.Empty:
      self._end()
      return None
    except BrokenPipeError:
      line = ""
    if not line:
      code = running.process.wait()
      self._end()
      raise PlanError(f"the compiler ended with exit code {code}: {self._last_words()}")
    answer: dict[str, Any] = json.loads(line)
    return answer

  def _start(self) -> _Process:
    python_path = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
      [sys.executable, "-m", "experiments.plan.worker", self._target.name],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._said,
      text=True,
      env={**os.environ, **environment(self._target), "PYTHONPATH": python_path},
    )
    answers: queue.Queue[str] = queue.Queue()

    def read() -> None:
      assert process.stdout is not None
      with process.stdout:
        for line in process.stdout:
          if line.startswith("{"):
            answers.put(line)
      answers.put("")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return _Process(process, answers, reader)

  def _end(self) -> None:
    if self._running is None:
      return
    process = self._running.process
    process.kill()
    process.wait()
    self._running.reader.join()
    with contextlib.suppress(BrokenPipeError):
      assert process.stdin is not None
      process.stdin.close()
    self._running = None

  def _last_words(self) -> str:
    self._said.seek(0)
    lines = [line.strip() for line in self._said if line.strip()]
    return lines[-1] if lines else "it said nothing (perhaps the memory of this machine ran out)"
