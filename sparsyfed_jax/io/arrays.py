"""Data sets written as files of arrays: an .npz, or a folder of .npy files.

Examples that lie in files are read and written block by block, so that they are never held. What is
written gets its name when it is whole.

The folder has `examples.npy` and `labels.npy`, `test_examples.npy` and `test_labels.npy`, of
natural clients their numbers, `clients.npy` and `test_clients.npy`, and `dataset.json`: the name,
the classes, the names of clients, how many of them train (their numbers come first), and the
version of the layout.
"""

import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from sparsyfed_jax.data.arrays import TEST_ONLY
from sparsyfed_jax.data.dataset import DataError, Dataset
from sparsyfed_jax.data.mapped import blocks
from sparsyfed_jax.data.rows import Examples

FORMAT_VERSION = 1


def write_npz(path: pathlib.Path, dataset: Dataset, clients: Sequence[str | int] = ()) -> None:
  """Writes what `npz:PATH` reads: labels by the names of their classes, and clients by theirs.

  Args:
    path: the file, which must not be there yet.
    dataset: of anything but tokens.
    clients: names, by their numbers; () for the numbers.

  Raises:
    DataError: the data set is a text.
    FileExistsError: there is such a file.
  """
  if dataset.kind == "next_token":
    raise DataError(f"{path}: must be a folder, as {dataset.name} is a text")
  arrays: dict[str, Any] = {
    "x_train": dataset.x_train,
    "y_train": dataset.y_train,
    "x_test": dataset.x_test,
    "y_test": dataset.y_test,
  }
  if dataset.kind == "classification" and dataset.classes:
    names = np.array(dataset.classes)
    arrays |= {name: names[arrays[name]] for name in ("y_train", "y_test")}
  if dataset.num_clients:
    known = np.array(clients) if clients else np.arange(_num_known(dataset))
    arrays["client_train"] = known[dataset.client_train]
    if len(dataset.client_test):
      arrays["client_test"] = known[dataset.client_test]
    if len(known) > dataset.num_clients:
      arrays[TEST_ONLY] = known[dataset.num_clients :]
  _refuse_existing(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with zipfile.ZipFile(temporary, "w") as archive:
      for name, array in arrays.items():
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
          _write(file, array)
    _refuse_existing(path)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_folder(path: pathlib.Path, dataset: Dataset, clients: Sequence[str | int] = ()) -> None:
  """Writes a folder of .npy files.

  Args:
    path: the folder, which must not be there yet.
    dataset: of any kind.
    clients: names, by their numbers; () where they have none.

  Raises:
    FileExistsError: there is something of that name.
  """
  arrays: dict[str, Any] = {
    "examples": dataset.x_train,
    "labels": dataset.y_train,
    "test_examples": dataset.x_test,
    "test_labels": dataset.y_test,
  }
  if dataset.num_clients:
    arrays["clients"] = dataset.client_train
    if len(dataset.client_test):
      arrays["test_clients"] = dataset.client_test
  told: dict[str, Any] = {
    "name": dataset.name,
    "classes": list(dataset.classes),
    "format_version": FORMAT_VERSION,
  }
  if dataset.num_clients:
    told["num_clients"] = dataset.num_clients
  if clients:
    told["client_names"] = list(clients)
  _refuse_existing(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.mkdir()
    for name, array in arrays.items():
      with open(temporary / f"{name}.npy", "wb") as file:
        _write(file, array)
    (temporary / "dataset.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    _refuse_existing(path)
    os.rename(temporary, path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _write(file: IO[bytes], array: Examples) -> None:
  """Writes what `numpy.save` does of an array that is no object's."""
  told = {
    "descr": np.lib.format.dtype_to_descr(array.dtype),
    "fortran_order": False,
    "shape": array.shape,
  }
  np.lib.format.write_array_header_1_0(file, told)
  for block in blocks(array):
    file.write(np.ascontiguousarray(block).data)


def _num_known(dataset: Dataset) -> int:
  return max(dataset.num_clients, 1 + int(dataset.client_test.max(initial=-1)))


def _refuse_existing(path: pathlib.Path) -> None:
  if os.path.lexists(path):
    raise FileExistsError(f"{path}: exists, must be new; nothing is overwritten")
