"""Measures in processes of their own, so that this one opens no device."""

import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from experiments.bench.options import Settings
from experiments.bench.rows import Row

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class MeasurementError(RuntimeError):
  """A measurement did not come to its end."""


def default_backend() -> str:
  """Asks a child for the backend that the measuring child will have.

  Nothing is compiled for the answer: it only says which workloads suit, before one is measured, and
  this process must not open the devices to find out.
  """
  return _run_python("-c", "import jax; print(jax.default_backend())").split()[-1]


def measure_apart(
  names: Sequence[str],
  algorithms: Sequence[str],
  settings: Settings,
  peers: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Row]:
  """Does what `measuring.measure` does in a process of its own.

  Raises:
    MeasurementError: the process failed; it has said why on stderr.
  """
  given = settings._asdict() | {
    "workload": ",".join(names),
    "algorithm": ",".join(algorithms),
    "metrics": ",".join(settings.metrics),
  }
  arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
  arguments += [
    f"--peer_command={name}={shlex.join(peers[name])}" for name in names if name in peers
  ]
  output = _run_python("-m", "experiments.bench", "--in_process", *arguments)
  return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def _run_python(*arguments: str) -> str:
  done = subprocess.run(
    [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY
  )
  if done.returncode:
    raise MeasurementError(f"{' '.join(arguments)}: ended with exit code {done.returncode}")
  return done.stdout
