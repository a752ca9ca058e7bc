"""Tables of Arrow and Parquet, by pyarrow, with the features that Hugging Face notes in them."""

import json
import pathlib
from typing import Any

import numpy as np

from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.data.readers import checks

_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of Arrow


def saved(folder: pathlib.Path) -> Any:
  """Reads a folder of `Dataset.save_to_disk`; raises DataError.

  Args:
    folder: with state.json and the files that it lists.
  """
  with checks.importing(folder, "readers"):
    import pyarrow
    import pyarrow.ipc
  state = checks.read_json(folder / "state.json", "that of save_to_disk, with _data_files")
  listed = state.get("_data_files")
  if not isinstance(listed, list) or not all(isinstance(own, dict) for own in listed) or not listed:
    raise DataError(f"{folder / 'state.json'}: _data_files is missing, must list its files")
  tables = []
  for own in listed:
    file = folder / pathlib.PurePath(str(own.get("filename"))).name
    with checks.parsing(file, "a whole stream of Arrow, as save_to_disk writes it"):
      content = pyarrow.memory_map(str(file))
      # A stream that ends behind one of its batches is read without an error.
      if content.size() < len(_END) or bytes(content.read_at(8, content.size() - 8)) != _END:
        raise DataError(f"{file}: has no end of a stream of Arrow, was cut short")
      tables.append(pyarrow.ipc.open_stream(content).read_all())
  with checks.parsing(folder, "files of one schema"):
    return pyarrow.concat_tables(tables)


def parquet(files: list[pathlib.Path]) -> Any:
  """Reads files of Parquet; raises DataError."""
  with checks.importing(files[0], "readers"):
    import pyarrow
    import pyarrow.parquet
  tables = []
  for file in files:
    with checks.parsing(file, "a whole file of Parquet"):
      tables.append(pyarrow.parquet.ParquetFile(file).read())
  with checks.parsing(files[0].parent, "files of one schema"):
    return pyarrow.concat_tables(tables)


def features(where: str, table: Any) -> dict[str, Any]:
  """Reads the features of the columns from the schema; {} where it has none."""
  content = (table.schema.metadata or {}).get(b"huggingface")
  if content is None:
    return {}
  with checks.parsing(f"{where}: features in its schema", "those of Hugging Face"):
    found = json.loads(content)["info"]["features"]
    return {name: own if isinstance(own, dict) else {} for name, own in found.items()}


def kinds(table: Any, features: dict[str, Any]) -> dict[str, str]:
  """Names the kind of each column: image, audio, class, array, text, or its type."""
  import pyarrow.types

  found = {}
  for field in table.schema:
    told = features.get(field.name, {}).get("_type", "")
    kind = _storage(field.type)
    if told in ("Image", "Audio"):
      found[field.name] = told.lower()
    elif _is_encoded(kind):
      found[field.name] = "image"
    elif told == "ClassLabel":
      found[field.name] = "class"
    elif _is_list(kind):
      found[field.name] = "array"
    elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
      found[field.name] = "text"
    else:
      found[field.name] = str(kind)
  return found


def is_text(table: Any, column: str) -> bool:
  """Tells whether a column holds strings."""
  import pyarrow.types

  kind = table.schema.field(column).type
  return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def is_image(table: Any, column: str) -> bool:
  """Tells whether a column holds encoded images, as bytes or beside their path."""
  return _is_encoded(table.schema.field(column).type)


def encoded(column: Any) -> list[bytes]:
  """Takes the bytes of encoded images, b"" where there are none."""
  rows = column.to_pylist()
  return [(row.get("bytes") if isinstance(row, dict) else row) or b"" for row in rows]


def values(where: str, column: Any) -> np.ndarray:
  """Makes a vector of a column of numbers or strings, or rows of one of lists; raises DataError."""
  import pyarrow.types

  kind = _storage(column.type)
  if _is_list(kind):
    return nested(where, column, {})
  is_number = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
  is_string = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
  if not (is_number or is_string or pyarrow.types.is_boolean(kind)):
    raise DataError(f"{where}: is of {kind}, must be numbers or strings")
  if column.null_count:
    missing = next(i for i, value in enumerate(column) if not value.is_valid)
    raise DataError(f"{where}: example {missing} is null, must be a value")
  found = np.asarray(column.to_numpy())
  return found.astype(np.str_) if found.dtype == np.dtype(object) else found


def nested(where: str, column: Any, told: dict[str, Any]) -> np.ndarray:
  """Makes an array of a column of lists of numbers, all of one size.

  Args:
    where: file and column.
    column: of pyarrow.
    told: what Hugging Face notes of it, such as its shape.

  Raises:
    DataError: they are of several sizes, or something is missing in them.
  """
  import pyarrow
  import pyarrow.compute

  array = column.combine_chunks()
  array = array.storage if isinstance(array, pyarrow.ExtensionArray) else array
  shape = [len(array)]
  while _is_list(array.type):
    if array.null_count:
      raise DataError(f"{where}: holds null, must hold lists of numbers")
    inner = array.flatten()
    length, rest = divmod(len(inner), len(array) or 1)
    lengths = np.asarray(pyarrow.compute.list_value_length(array))
    if rest or (lengths != length).any():
      at = int(np.flatnonzero(lengths != lengths[0])[0]) * shape[0] // len(array)
      raise DataError(f"{where}: example {at} is of another size than example 0, must be alike")
    shape.append(length)
    array = inner
  if array.null_count:
    raise DataError(f"{where}: holds null, must hold numbers")
  wanted = tuple(told.get("shape") or shape[1:])
  if wanted != tuple(shape[1:]):
    raise DataError(f"{where}: is of shape {tuple(shape[1:])}, must be {wanted} by its features")
  return np.asarray(array).reshape(shape)


def _storage(kind: Any) -> Any:
  return getattr(kind, "storage_type", kind)


def _is_list(kind: Any) -> bool:
  import pyarrow.types

  kinds = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
  return any(is_kind(kind) for is_kind in kinds)


def _is_encoded(kind: Any) -> bool:
  import pyarrow.types

  if pyarrow.types.is_struct(kind):
    return {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
  return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))
