"""Streams a data set that is larger than memory: `python -m experiments.larger_than_memory`.

Writes a folder of .npy files of 12 GB to --output_dir, or with --form=hf one of Arrow, most of them
holes that take no room on the disk, and trains on it for 20 rounds with --data_placement=streamed.
Then does so with a tenth of it, and once more with that tenth in memory. Prints a JSON line with
the peak memory of each process, and whether the last two measured the same in all rounds, to the
bit.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
_PAGE = 4096  # bytes of the smallest hole
_CLIENTS_PER_ROUND = 20


def main(argv: Sequence[str]) -> None:
  """Writes, trains and compares."""
  del argv
  gigabytes = float(str(absl_flags.FLAGS["gigabytes"].value))
  if not gigabytes >= 0.1:
    flags.fail(ValueError(f"--gigabytes={gigabytes}: must be at least 0.1"))
  form = str(absl_flags.FLAGS["form"].value)
  if form not in WRITERS:
    flags.fail(ValueError(f"--form={form}: must be one of {', '.join(WRITERS)}"))
  try:
    folder = create_run_dir(flags.folder(str(absl_flags.FLAGS["output_dir"].value)))
  except OSError as error:
    flags.fail(error)
  per_client = _PER_CLIENT * int(np.prod(_SHAPE))
  num_clients = int(gigabytes * 10**9 / per_client)
  size = WRITERS[form](folder / "whole", num_clients)
  WRITERS[form](folder / "tenth", num_clients // 10)
  peaks = {
    "whole_streamed": train(folder, "whole", "streamed", form),
    "tenth_streamed": train(folder, "tenth", "streamed", form),
    "tenth_replicated": train(folder, "tenth", "replicated", form),
  }
  rows = [
    [row | {"seconds": 0} for row in read_metrics(folder / f"run_tenth_{name}" / "metrics.jsonl")]
    for name in ("streamed", "replicated")
  ]
  row = {
    "form": form,
    "clients": num_clients,
    "bytes": size,
    "bytes_of_two_rounds": 2 * _CLIENTS_PER_ROUND * per_client,
    "rounds": len(rows[0]),
    "same_numbers": rows[0] == rows[1],
    **peaks,
  }
  print(json.dumps(row | describe_environment()))


class _Images:
  """Images of clients, of which the first few of each are no zeros."""

  def __init__(self, num_clients: int):
    rng = np.random.default_rng(0)
    self._rng = rng
    self.labels = rng.integers(0, 10, num_clients * _PER_CLIENT, np.int32)
    self._bright = rng.integers(0, 256, (10, *_SHAPE), np.uint8)  # of each class

  def of(self, labels: np.ndarray) -> np.ndarray:
    """Draws an image of each label."""
    noise = self._rng.integers(0, 128, (len(labels), *_SHAPE), np.uint8)
    return self._bright[labels] // 2 + noise


def write_folder(folder: pathlib.Path, num_clients: int) -> int:
  """Writes a folder in which each client has `_PER_CLIENT` images; returns the bytes of these."""
  folder.mkdir()
  images = _Images(num_clients)
  path, mode = folder / "examples.npy", "w+"
  shape = (num_clients * _PER_CLIENT, *_SHAPE)
  x = np.lib.format.open_memmap(str(path), mode, np.uint8, shape)
  for client in range(num_clients):
    rows = slice(client * _PER_CLIENT, client * _PER_CLIENT + _FILLED)
    x[rows] = images.of(images.labels[rows])
  x.flush()
  tests = np.arange(_TESTS) % 10
  arrays = {
    "labels": images.labels,
    "clients": np.repeat(np.arange(num_clients, dtype=np.int32), _PER_CLIENT),
    "test_examples": images.of(tests),
    "test_labels": tests,
  }
  for name, array in arrays.items():
    np.save(folder / f"{name}.npy", array)
  known = {"format_version": 1, "name": folder.name, "classes": list(range(10))}
  (folder / "dataset.json").write_text(json.dumps(known), encoding="utf-8")
  return path.stat().st_size


class _WithHoles:
  """A file in which what is written as zeros is a hole."""

  def __init__(self, path: pathlib.Path):
    self._file = open(path, "wb")
    self.closed = False

  def write(self, data: Any) -> int:
    content = np.frombuffer(data, np.uint8)
    for start in range(0, len(content), _PAGE):
      page = content[start : start + _PAGE]
      if page.any() or len(page) < _PAGE:
        self._file.write(page.data)
      else:
        self._file.seek(len(page), os.SEEK_CUR)
    return len(content)

  def flush(self) -> None:
    self._file.flush()

  def tell(self) -> int:
    return self._file.tell()

  def close(self) -> None:
    self._file.close()
    self.closed = True


def write_arrow(folder: pathlib.Path, num_clients: int) -> int:
  """Does as `write_folder`, as `save_to_disk` of Hugging Face writes it, a batch a client."""
  import pyarrow
  import pyarrow.ipc

  folder.mkdir()
  images, width = _Images(num_clients), int(np.prod(_SHAPE))
  tests = np.arange(_TESTS, dtype=np.int32) % 10

  def batch(x: np.ndarray, labels: np.ndarray, client: int) -> Any:
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(x.reshape(-1)), width)
    owners = np.full(len(x), client, np.int32)
    columns = {"x": lists, "label": labels, "client_id": owners}
    return pyarrow.record_batch({name: pyarrow.array(own) for name, own in columns.items()})

  def train() -> Iterator[Any]:
    x = np.zeros((_PER_CLIENT, *_SHAPE), np.uint8)
    for client, labels in enumerate(images.labels.reshape(num_clients, _PER_CLIENT)):
      x[:_FILLED] = images.of(labels[:_FILLED])
      yield batch(x, labels, client)

  for split, batches in (("train", train()), ("test", iter([batch(images.of(tests), tests, 0)]))):
    (folder / split).mkdir()
    first = next(batches)
    file = pyarrow.PythonFile(_WithHoles(folder / split / "0.arrow"), "w")
    with file, pyarrow.ipc.new_stream(file, first.schema) as stream:
      for own in itertools.chain([first], batches):
        stream.write_batch(own)
    told = {"_data_files": [{"filename": "0.arrow"}]}
    (folder / split / "state.json").write_text(json.dumps(told), encoding="utf-8")
  told_of_all = json.dumps({"splits": ["train", "test"]})
  (folder / "dataset_dict.json").write_text(told_of_all, encoding="utf-8")
  return (folder / "train" / "0.arrow").stat().st_size


WRITERS = {"folder": write_folder, "hf": write_arrow}


def train(folder: pathlib.Path, name: str, placement: str, form: str) -> dict[str, Any]:
  """Trains in a process of its own; returns its peak memory and what it took."""
  command = [
    *(sys.executable, "-m", "experiments.train", f"--dataset={form}:{folder / name}"),
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
  absl_flags.DEFINE_string("form", "folder", f"of the files, one of {', '.join(WRITERS)}")
  absl_flags.DEFINE_string("output_dir", "runs/larger_than_memory", "what is written to")
  app.run(main, flags_parser=flags.parse)
