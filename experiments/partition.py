"""Draws the split of a run without training: `python -m experiments.partition FLAGS`.

Flags are those of experiments.train. Writes partition.png, as a run has it, and clients.csv, whose
each training example is, which --partition=file:clients.csv reads, into --output_dir. Clients are
numbered there as in a run; those of the data have a name too.
"""

import datetime
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
from absl import app, logging
from absl import flags as absl_flags

from experiments import flags
from experiments.pictures.split import facts_of, plot_split
from experiments.run.data import deal_phases, label_of_each, open_source
from experiments.run.defaults import with_partition
from experiments.run.split import count_phases
from experiments.run.tasks import classes_of
from sparsyfed_jax.data import assignment
from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.io.writers import create_run_dir
from sparsyfed_jax.types import make_keys


def main(argv: Sequence[str], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Draws what the flags say."""
  del argv  # flags.parse refuses what is not a flag
  try:
    # A split has no rounds, and may have fewer clients than their default.
    config = flags.collect(flag_values)._replace(clients_per_round=1)
    flags.check(config)
    draw(flags.resolve(config))
  except (flags.ConfigError, DataError, FileExistsError) as error:
    flags.fail(error)
  except OSError as error:
    flags.fail(OSError(f"--output_dir: {error}"), code=1)


def draw(config: flags.Config) -> pathlib.Path:
  """Writes the pictures and tables of a split, and says where.

  Args:
    config: checked and resolved flags.

  Returns:
    The directory.

  Raises:
    ConfigError: a flag does not fit the data.
    DataError: the data cannot be used.
    FileExistsError: the directory holds something.
  """
  opened = open_source(config)
  dataset = opened.dataset
  config = with_partition(config, dataset)
  phases = deal_phases(config, dataset, make_keys(jax.random.key(config.seed)).partition)
  split = count_phases(config, phases, *classes_of(dataset))
  directory = create_run_dir(config.output_dir or _named())
  plot_split(split, split[0].classes, directory / "partition.png")
  for name, parts in zip(("clients.csv", "clients_after.csv"), phases, strict=True):
    if len(parts):
      owners = _owners(parts, len(dataset.y_train))
      names = opened.clients if config.partition == "natural" else ()
      assignment.write(directory / name, owners, label_of_each(dataset), len(parts), names)
  for one in split:
    print(f"{one.title}: {', '.join(facts_of(one))}")
  print(f"{directory / 'partition.png'}, {directory / 'clients.csv'}")
  return directory


def _named() -> pathlib.Path:
  return pathlib.Path("runs", f"{datetime.datetime.now():%Y%m%d-%H%M%S}-partition")


def _owners(parts: Sequence[np.ndarray], num_examples: int) -> np.ndarray:
  owners = np.full(num_examples, -1, np.int64)
  for client, own in enumerate(parts):
    owners[own] = client
  return owners


if __name__ == "__main__":
  try:
    strangers = flags.strangers_in(sys.argv)
    flags.define(strangers=strangers)
  except (flags.ConfigError, absl_flags.DuplicateFlagError) as error:
    flags.fail(error)
  if {"--help", "-help", "-h", "--helpshort"} & set(sys.argv):
    print(f"{__doc__}\n{flags.describe(strangers)}")
    sys.exit()
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
