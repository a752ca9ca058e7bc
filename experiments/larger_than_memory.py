"""Streams a data set that is larger than memory: `python -m experiments.larger_than_memory`.

Writes a folder of .npy files of 12 GB to --output_dir, most of them holes that take no room on the
disk, and trains on it for 20 rounds with --data_placement=streamed. Then does so with a tenth of
it, and once more with that tenth in memory. Prints a JSON line with the peak memory of each
process, and whether the last two measured the same in all rounds, to the bit.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app
from absl import flags as absl_flags

from experiments import flags
from experiments.run.environment import describe_environment
from sparsyfed_jax.algorithms import DENSE
from sparsyfed_jax.io.writers import create_run_dir, read_metrics

_SHAPE = (32, 32, 3)
_PER_CLIENT = 400
_FILLED = 8  # examples of a client that are no hole
_TESTS = 1000
_CLIENTS_PER_ROUND = 20


def main(argv: Sequence[str]) -> None:
  """Writes, trains and compares."""
  del argv
  gigabytes = float(str(absl_flags.FLAGS["gigabytes"].value))
  if not gigabytes >= 0.1:
    flags.fail(ValueError(f"--gigabytes={gigabytes}: must be at least 0.1"))
  try:
    folder = create_run_dir(flags.folder(str(absl_flags.FLAGS["output_dir"].value)))
  except OSError as error:
    flags.fail(error)
  per_client = _PER_CLIENT * int(np.prod(_SHAPE))
  num_clients = int(gigabytes * 10**9 / per_client)
  write(folder / "whole", num_clients)
  write(folder / "tenth", num_clients // 10)
  peaks = {
    "whole_streamed": train(folder, "whole", "streamed"),
    "tenth_streamed": train(folder, "tenth", "streamed"),
    "tenth_replicated": train(folder, "tenth", "replicated"),
  }
  rows = [
    [row | {"seconds": 0} for row in read_metrics(folder / f"run_tenth_{name}" / "metrics.jsonl")]
    for name in ("streamed", "replicated")
  ]
  row = {
    "clients": num_clients,
    "bytes": (folder / "whole" / "examples.npy").stat().st_size,
    "bytes_of_two_rounds": 2 * _CLIENTS_PER_ROUND * per_client,
    "rounds": len(rows[0]),
    "same_numbers": rows[0] == rows[1],
    **peaks,
  }
  print(json.dumps(row | describe_environment()))


def write(folder: pathlib.Path, num_clients: int) -> None:
  """Writes a folder in which each client has `_PER_CLIENT` images."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  count = num_clients * _PER_CLIENT
  path, mode = str(folder / "examples.npy"), "w+"
  x = np.lib.format.open_memmap(path, mode, np.uint8, (count, *_SHAPE))
  labels = rng.integers(0, 10, count, np.int32)
  bright = rng.integers(0, 256, (10, *_SHAPE), np.uint8)  # of each class
  for client in range(num_clients):
    rows = slice(client * _PER_CLIENT, client * _PER_CLIENT + _FILLED)
    x[rows] = bright[labels[rows]] // 2 + rng.integers(0, 128, (_FILLED, *_SHAPE), np.uint8)
  x.flush()
  tests = np.arange(_TESTS) % 10
  noise = rng.integers(0, 128, (_TESTS, *_SHAPE), np.uint8)
  arrays = {
    "labels": labels,
    "clients": np.repeat(np.arange(num_clients, dtype=np.int32), _PER_CLIENT),
    "test_examples": bright[tests] // 2 + noise,
    "test_labels": tests,
  }
  for name, array in arrays.items():
    np.save(folder / f"{name}.npy", array)
  known = {"format_version": 1, "name": folder.name, "classes": list(range(10))}
  (folder / "dataset.json").write_text(json.dumps(known), encoding="utf-8")


def train(folder: pathlib.Path, name: str, placement: str) -> dict[str, Any]:
  """Trains in a process of its own; returns its peak memory and what it took."""
  command = [
    *(sys.executable, "-m", "experiments.train", f"--dataset=folder:{folder / name}"),
    *(
      "--partition=natural",
      f"--data_placement={placement}",
      "--model=mlp",
      f"--algorithm={DENSE}",
    ),
    *("--local_epochs=1", "--rounds=20", "--eval_every=20", "--seed=1", "--client_lr=0.01"),
    f"--clients_per_round={_CLIENTS_PER_ROUND}",
    f"--output_dir={folder / f'run_{name}_{placement}'}",
  ]
  began = time.perf_counter()
  with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}")
  return {"peak_bytes": usage.ru_maxrss * 1024, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
  absl_flags.DEFINE_float("gigabytes", 12.0, "size of the examples")
  absl_flags.DEFINE_string("output_dir", "runs/larger_than_memory", "what is written to")
  app.run(main, flags_parser=flags.parse)
