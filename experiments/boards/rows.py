"""The rows of a board: a line for each run, which stays when the run's directory is gone.

A row has all that tables and pictures of the board are made of, the flags that make the run again,
and digests of its data and its code, so that rows of several people and machines fit together.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments import flags
from experiments.run import begun
from experiments.run.defaults import with_partition
from experiments.run.directory import locked
from experiments.run.identity import examples_digest
from experiments.run.measures import final_accuracy
from experiments.studies.study import Outcome
from experiments.sweeps import grid
from experiments.sweeps.results import LACKING
from sparsyfed_jax.data.dataset import Dataset
from sparsyfed_jax.io.writers import json_value, read_metrics, replace_file

NAME = "board.jsonl"
Row = Mapping[str, Any]
# Flags that a board has an axis for. The others that are not at their defaults make an entry.
AXES = ("dirichlet_alpha", "sparsity", "seed")
# What all rows of a board share, besides the examples: accuracies would not compare.
SHARED = ("task", "model", "num_clients", "clients_per_round", "partition")
_DIGESTS = ("examples_sha256", "method_sha256", "model_sha256")
_MEASURES = (
  *("prunable_sparsity", "uplink_bytes_per_client_round", "downlink_bytes_per_client_round"),
  *("total_bytes", "dense_bytes", "client_flops_per_round", "dense_client_flops_per_round"),
  *("virtual_seconds", "client_memory_bytes", "seconds_per_round", "device", "versions"),
)
# Of a row, where it has them.
_NUMBERS = (
  *(*AXES, "accuracy", "total_bytes", "virtual_seconds", "seconds_per_round"),
  *("client_flops_per_round", "dense_client_flops_per_round"),
)
_DECIMALS = 6  # of the accuracies of a curve, which are most of a board
_PATIENCE = 60  # seconds that another process may take to write its rows


def make_head(run: grid.Run, dataset: Dataset) -> Row:
  """Makes what is known of a row before its run: what `key_of` reads, and SHARED."""
  config = with_partition(run.config, dataset)
  ignored = flags.ignored(config)
  if not config.partition.startswith("dirichlet"):
    ignored = [*ignored, "dirichlet_alpha"]
  named = json.loads(grid.identity(run))
  code = {name: digest for name, digest in begun.code_of(config).items() if digest is not None}
  return {
    **{name: getattr(config, name) for name in SHARED},
    **{name: None if name in ignored else getattr(config, name) for name in AXES},
    # Where the examples lie is no matter, as their digest is compared.
    "flags": {name: named[name] for name in named if name not in (*AXES, "dataset")},
    "examples_sha256": examples_digest(dataset),
    **code,
  }


def make_row(head: Row, outcome: Outcome) -> Row:
  """Makes the row of a run that has ended or diverged."""
  summary = outcome.summary
  curve = [
    [
      row["round"],
      round(row["test_accuracy"], _DECIMALS),
      row["cumulative_bytes"],
      row.get("virtual_seconds"),
    ]
    for row in outcome.rows
    if row.get("test_accuracy") is not None
  ]
  return {
    **head,
    **{kind: summary[kind] for kind in LACKING if kind in summary},
    **{name: summary[name] for name in _MEASURES if summary.get(name) is not None},
    "accuracy": final_accuracy(outcome.rows),
    "curve": curve,
  }


def key_of(row: Row) -> str:
  """Writes what makes a row's run, as JSON: two rows of one key are of the same run."""
  named = {name: row.get(name) for name in (*AXES, *_DIGESTS)}
  return json.dumps({**named, "flags": form_of(row)}, sort_keys=True)


def form_of(row: Row) -> dict[str, Any]:
  """Lists the flags that make an entry: not the split, which is null where it is left out."""
  return {name: value for name, value in row["flags"].items() if name != "partition"}


def read(directory: pathlib.Path) -> list[Row]:
  """Reads the rows of a board; none where there is no board yet.

  Raises:
    ConfigError: the file is damaged.
  """
  path = directory / NAME
  if not path.exists():
    return []
  try:
    found = read_metrics(path)
  except (OSError, ValueError) as error:
    raise flags.ConfigError(f"--output_dir={directory}: {error}") from error
  for number, row in enumerate(found, start=1):
    if fault := _fault_of(row):
      raise flags.ConfigError(f"--output_dir={directory}: {path}, line {number}: {fault}")
  return list(found)


def _fault_of(row: Row) -> str:
  """Says what is wrong with a row that another program, or a hand, may have written."""
  for name in (*AXES, *SHARED, "flags", "curve", "accuracy"):
    if name not in row:
      return f"must have {name}"
  for name in _NUMBERS:
    if not _is_number(row.get(name)):
      return f"{name} must be a number, is {json.dumps(row[name])[:60]}"
  for name in ("flags", "versions"):
    if not isinstance(row.get(name, {}), dict):
      return f"{name} must be an object, is {json.dumps(row[name])[:60]}"
  for name in ("device", *_DIGESTS):
    if not isinstance(row.get(name, ""), str):
      return f"{name} must be a text, is {json.dumps(row[name])[:60]}"
  is_list = isinstance(row["curve"], list)
  if not is_list or not all(map(_is_point, row["curve"])):
    return "curve must list rounds, each of [round, accuracy, bytes, seconds or null]"
  if not row["curve"] and not any(kind in row for kind in LACKING):
    return "curve must have a round"
  return ""


def _is_point(value: Any) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 4
    and None not in value[:3]
    and all(map(_is_number, value))
  )


def _is_number(value: Any) -> bool:
  return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def check(rows: Sequence[Row], new: Row, dataset: str, directory: pathlib.Path) -> None:
  """Checks that a run fits a board.

  Args:
    rows: of the board.
    new: of `make_head`.
    dataset: the flag of the run.
    directory: of the board.

  Raises:
    ConfigError: naming the flag that differs.
  """
  for row in rows:
    for name in SHARED:
      if row[name] != new[name]:
        raise flags.ConfigError(
          f"--{name}={new[name]}: must be {row[name]} as in the other runs of the board in"
          f" {directory}; choose another --output_dir for another board"
        )
    if row.get("model_sha256") != new.get("model_sha256"):
      raise flags.ConfigError(
        f"--model={new['model']}: its file must be that of the other runs of the board in"
        f" {directory} (model_sha256); choose another --output_dir for another board"
      )
    if row["seed"] == new["seed"] and row.get("examples_sha256") != new["examples_sha256"]:
      raise flags.ConfigError(
        f"--dataset={dataset}: its examples are not those of the board in {directory}"
        f" (examples_sha256 of seed {new['seed']}); choose another --output_dir for another board"
      )


@contextlib.contextmanager
def held(directory: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from writing a board, and waits for those that do.

  Raises:
    ConfigError: another process does not let go of it.
  """
  directory.mkdir(parents=True, exist_ok=True)
  end = time.monotonic() + _PATIENCE
  with contextlib.ExitStack() as stack:
    while True:
      try:
        stack.enter_context(locked(directory))
        break
      except flags.ConfigError:
        if time.monotonic() > end:
          raise
        time.sleep(0.2)
    yield


def add(directory: pathlib.Path, new: Iterable[Row]) -> list[Row]:
  """Adds rows to a board that is `held`, each run once, and returns all of them.

  Raises:
    ConfigError: the board is damaged.
  """
  merged = {key_of(row): row for row in [*read(directory), *map(json_value, new)]}
  lines = (json.dumps(json_value(row), allow_nan=False) + "\n" for row in merged.values())
  replace_file(directory / NAME, "".join(lines).encode())
  return list(merged.values())
