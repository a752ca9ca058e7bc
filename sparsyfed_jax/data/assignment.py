"""A table of whose each training example is: CSV with the columns example and client.

Where a seed decides what is trained on, another seed's examples have the same numbers. A third
column, class, tells them apart: it must be that of the data. A client without examples has a row
without an example. What clients are called where they come from is a column for the reader, name.
"""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.data.labels import Label, number

COLUMNS = ("example", "client")
CLASS, NAME = "class", "name"


def read(
  path: str, num_examples: int, classes: Sequence[Label] = ()
) -> tuple[np.ndarray, tuple[Label, ...]]:
  """Reads a table.

  Args:
    path: the CSV file, in UTF-8, with a header; other columns are ignored.
    num_examples: of the training set, each of which must be there once, by its number from 0.
    classes: (num_examples,) labels, which the column `class` must have if there is one; or ().

  Returns:
    (num_examples,) int32, the number of each example's client; and the clients as they are called,
    in sorted order, as integers where all are.

  Raises:
    DataError: the file cannot be read, or is no such table.
  """
  owners: list[str | None] = [None] * num_examples
  empty: list[str] = []  # clients without examples
  try:
    with open(os.path.expanduser(path), encoding="utf-8-sig", newline="") as file:
      reader = csv.DictReader(file, strict=True)
      for column in COLUMNS:
        if column not in (reader.fieldnames or ()):
          found = ", ".join(reader.fieldnames or ()) or "nothing"
          raise DataError(f"{path}: {column} is missing in its header, which has {found}")
      for row in reader:
        where = f"{path}: line {reader.line_num}"
        example, client = (row[column] or "" for column in COLUMNS)
        if client and not example:
          empty.append(client)
          continue
        if not (example.isascii() and example.isdigit()) or int(example) >= num_examples:
          raise DataError(
            f"{where}: example is {example!r}, must be a number from 0 to {num_examples - 1}"
          )
        if not client:
          raise DataError(f"{where}: client is empty, must name one")
        before = owners[int(example)]
        if before is not None:
          raise DataError(
            f"{where}: example {example} is given to {client} and before to {before}, must be given"
            " once"
          )
        told = row.get(CLASS)
        if len(classes) and told is not None and told != str(classes[int(example)]):
          raise DataError(
            f"{where}: example {example} is of class {told}, must be of"
            f" {classes[int(example)]} as in the data; another --seed draws other training examples"
          )
        owners[int(example)] = client
  except UnicodeDecodeError as error:
    raise DataError(f"{path}: is not UTF-8 at byte {error.start}, must be a CSV file") from None
  except csv.Error as error:
    raise DataError(f"{path}: line {reader.line_num}: is not CSV ({error})") from None
  except (OSError, ValueError) as error:
    if isinstance(error, DataError):
      raise
    reason = getattr(error, "strerror", None) or error
    raise DataError(f"{path}: cannot be opened: {reason}, must be a CSV file") from None
  if None in owners:
    missing = owners.index(None)
    raise DataError(
      f"{path}: example {missing} is missing ({owners.count(None)} of {num_examples} are), must be"
      " given to a client"
    )
  names = np.array([*owners, *empty], np.str_)
  try:
    names = names.astype(np.int64)
  except (ValueError, OverflowError):
    pass
  (clients,), known = number(names)
  return clients[:num_examples], known


def write(
  path: str | os.PathLike[str],
  clients: np.ndarray,
  classes: Sequence[Label] = (),
  num_clients: int = 0,
  names: Sequence[Label] = (),
) -> None:
  """Writes a table that `read` reads.

  Args:
    path: the file, which must not be there yet.
    clients: (n,) whose each example is, -1 for one of nobody, which is left out.
    classes: (n,) labels; () writes none.
    num_clients: all there are, so that those without examples have a row too.
    names: of the clients, by their numbers; () writes none.
  """
  empty = np.setdiff1d(np.arange(num_clients), clients).tolist()
  columns: list[Sequence[Any]] = [
    [*range(len(clients)), *[""] * len(empty)],
    [*clients.tolist(), *empty],
  ]
  heads = [*COLUMNS]
  if len(classes):
    heads.append(CLASS)
    columns.append([*classes, *[""] * len(empty)])
  if len(names):
    heads.append(NAME)
    columns.append([names[client] for client in columns[1]])
  with pathlib.Path(path).open("x", encoding="utf-8", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(heads)
    writer.writerows(row for row in zip(*columns, strict=True) if row[1] >= 0)
