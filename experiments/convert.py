"""Writes a data set as arrays: `python -m experiments.convert SOURCE OUT.npz|OUT/`.

SOURCE is what --dataset takes, such as leaf:femnist or hf:PATH. OUT ends in .npz for what
--dataset=npz:OUT.npz reads, and is otherwise a folder of .npy files, for --dataset=folder:OUT.
Examples of hf, leaf, tff, pfllib, images, speech and folder are read and written in blocks of 64
MB, one client's, file's or group of Parquet's at a time, so that a set may be larger than memory;
they are read two or three times. Texts, npz and tfds are held. Nothing that exists is overwritten,
and what is not whole does not get the name OUT.
"""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from absl import app, logging
from absl import flags as absl_flags

from experiments import flags
from experiments.run.data import open_source
from experiments.run.learning import Learning
from sparsyfed_jax.data import scaling
from sparsyfed_jax.data.dataset import DataError, Dataset
from sparsyfed_jax.io.arrays import write_folder, write_npz

_READ = tuple(name for name in Learning._fields if name != "target")


def main(argv: Sequence[str], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Converts what the command line names."""
  try:
    if len(argv) != 3:
      raise flags.ConfigError(
        f"{' '.join(argv[1:])!r}: must be a data set and a file or folder to write, as"
        " leaf:femnist femnist.npz"
      )
    source, out = argv[1], pathlib.Path(flags.folder(argv[2]))
    config = flags.collect(flag_values)._replace(dataset=source, clients_per_round=1)
    flags.check(config)
    _check_new(out)
    task = config.task or ""  # type: ignore[attr-defined]
    opened = open_source(config, task, in_place=True)
    write = write_npz if out.suffix == ".npz" else write_folder
    write(out, opened.dataset, opened.clients)
  except (flags.ConfigError, DataError, FileExistsError) as error:
    flags.fail(ValueError(str(error).replace("--dataset=", "")))
  except OSError as error:
    flags.fail(OSError(f"{out}: {error.strerror or error}"))
  print(describe(out, opened.dataset))
  for note in notes(out, opened.dataset):
    print(f"note: {note}")


def describe_flags() -> str:
  """Writes the help of the flags that say how data is read, which alone have an effect here."""
  return flags.describe(only=("seed", "num_clients", *_READ))


def describe(out: pathlib.Path, dataset: Dataset) -> str:
  """Says what was written."""
  clients = f", {dataset.num_clients} clients" if dataset.num_clients else ", no clients"
  others = num_strangers(dataset)
  return (
    f"{out}: {len(dataset.y_train)} training and {len(dataset.y_test)} test examples of"
    f" {dataset.x_train.dtype} {dataset.x_train.shape[1:]}, {dataset.num_classes} outputs{clients}"
    f"{f' and {others} that only test' if others else ''}"
  )


def num_strangers(dataset: Dataset) -> int:
  """Counts the clients that take part in no round."""
  return len(np.unique(dataset.client_test[dataset.client_test >= dataset.num_clients]))


def notes(out: pathlib.Path, dataset: Dataset) -> list[str]:
  """Says what the files do not hold of a data set."""
  lines = []
  limits = scaling.as_range(dataset.mean, dataset.std)
  if dataset.kind != "next_token" and limits != scaling.find_range(dataset.x_train):
    shown = f"{limits[0]:g},{limits[1]:g}" if limits else "none"
    lines.append(f"values were scaled otherwise than arrays of them are; --input_range={shown}")
  if out.suffix != ".npz":
    return lines
  if dataset.kind == "classification":
    found = np.union1d(dataset.y_train, dataset.y_test)
    absent = [name for i, name in enumerate(dataset.classes) if i not in found]
    if absent:
      lines.append(
        f"{len(absent)} classes have no example and are none of the .npz, as {absent[0]}"
      )
  return lines


def _check_new(out: pathlib.Path) -> None:
  if out.exists():
    raise FileExistsError(f"{out}: exists, must be new; nothing is overwritten")
  if not out.parent.is_dir():
    raise FileExistsError(f"{out}: must be in a folder that exists, {out.parent} does not")


if __name__ == "__main__":
  flags.define()
  if {"--help", "-help", "-h", "--helpshort"} & set(sys.argv):
    print(f"{__doc__}\n{describe_flags()}")
    sys.exit()
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse_with_names)
