"""Starts the programs of this project in processes that begin with everything imported.

Importing takes two seconds of each start. Here one process imports what the programs import, and
each start is a fork of it that runs a program as `python -m` does.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.imports"])


class Program:
  """A process that offers what the tests use of a `subprocess.Popen` with text pipes."""

  def __init__(self, module: str, *arguments: Any) -> None:
    pipes = [_FORKS.Pipe(duplex=False) for _ in range(2)]
    self._process = _FORKS.Process(
      target=_run, args=(module, [str(each) for each in arguments], *(write for _, write in pipes))
    )
    self._process.start()
    self.pid = self._process.pid
    self.stdout, self.stderr = (os.fdopen(os.dup(read.fileno())) for read, _ in pipes)
    for pipe in pipes:
      for end in pipe:
        end.close()

  def __enter__(self) -> "Program":
    return self

  def __exit__(self, *_: object) -> None:
    self.wait()
    self._close()

  @property
  def returncode(self) -> int | None:
    return self._process.exitcode

  def poll(self) -> int | None:
    return self._process.exitcode

  def wait(self, timeout: float | None = None) -> int:
    self._process.join(timeout)
    if self._process.exitcode is None:
      raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
    return self._process.exitcode

  def communicate(self, timeout: float = 240) -> tuple[str, str]:
    """Reads what is left in both pipes and waits for the end."""
    texts: dict[str, str] = {}

    def read(name: str) -> None:
      texts[name] = getattr(self, name).read()

    names = ("stdout", "stderr")
    readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in names]
    deadline = time.monotonic() + timeout
    for reader in readers:
      reader.start()
    for reader in readers:
      reader.join(max(deadline - time.monotonic(), 0))
      if reader.is_alive():
        raise subprocess.TimeoutExpired(str(self.pid), timeout)
    self.wait(max(deadline - time.monotonic(), 1))
    self._close()
    return texts["stdout"], texts["stderr"]

  def _close(self) -> None:
    self.stdout.close()
    self.stderr.close()

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)


def _run(module: str, arguments: list[str], output: Connection, errors: Connection) -> None:
  os.dup2(output.fileno(), 1)
  os.dup2(errors.fileno(), 2)
  output.close()
  errors.close()
  sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
  sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
  sys.argv = [module, *arguments]
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  finally:
    atexit._run_exitfuncs()  # multiprocessing leaves without them
