"""Tables of Arrow and Parquet, by pyarrow, with the features that Hugging Face notes in them."""

import functools
import itertools
import json
import mmap
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.data.readers import checks

_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of Arrow


class Table(NamedTuple):
  """A table in pieces: batches of Arrow, which are views of a mapped file, or groups of Parquet."""

  schema: Any  # of pyarrow
  sizes: Sequence[int]  # of the pieces, in rows
  firsts: Sequence[int]  # how many rows are before each piece, and before the end
  column: Callable[[str], Any]  # of all rows, by its name
  piece: Callable[[str, int], Any]  # the array of a column in a piece
  release: Callable[[], None] = lambda: None  # lets go of the memory of what was read

  @property
  def num_rows(self) -> int:
    """The number of rows of all pieces."""
    return self.firsts[-1]


def saved(folder: pathlib.Path) -> Table:
  """Opens a folder of `Dataset.save_to_disk`; raises DataError.

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
  tables, maps = [], []
  for own in listed:
    file = folder / pathlib.PurePath(str(own.get("filename"))).name
    with checks.parsing(file, "a whole stream of Arrow, as save_to_disk writes it"):
      with open(file, "rb") as content:
        maps.append(mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ))
      # A stream that ends behind one of its batches is read without an error.
      if maps[-1][-len(_END) :] != _END:
        raise DataError(f"{file}: has no end of a stream of Arrow, was cut short")
      tables.append(pyarrow.ipc.open_stream(pyarrow.py_buffer(maps[-1])).read_all())
  with checks.parsing(folder, "files of one schema"):
    table = pyarrow.concat_tables(tables)
  batches = [batch for batch in table.to_batches() if len(batch)]

  def release() -> None:
    for own in maps:
      if hasattr(mmap, "MADV_DONTNEED"):
        own.madvise(mmap.MADV_DONTNEED)

  sizes = [len(batch) for batch in batches]
  firsts = [0, *itertools.accumulate(sizes)]

  def piece(name: str, i: int) -> Any:
    return batches[i].column(name)

  return Table(table.schema, sizes, firsts, table.column, piece, release)


def parquet(files: list[pathlib.Path]) -> Table:
  """Opens files of Parquet; raises DataError."""
  with checks.importing(files[0], "readers"):
    import pyarrow
    import pyarrow.parquet
  groups, sizes, schemas = [], [], []  # a group is its file, what that says of it, and its number
  for file in files:
    # Not left open: there may be more files than a process may open.
    with (
      checks.parsing(file, "a whole file of Parquet"),
      pyarrow.parquet.ParquetFile(file) as opened,
    ):
      counts = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
      groups += [(file, opened.metadata, i) for i, count in enumerate(counts) if count]
      sizes += [count for count in counts if count]
      schemas.append(opened.schema_arrow)
  schema = schemas[0]
  with checks.parsing(files[0].parent, "files of one schema"):
    pyarrow.concat_tables([own.empty_table() for own in schemas])

  @functools.lru_cache(1)
  def piece(name: str, i: int) -> Any:
    file, told, number = groups[i]
    with (
      checks.parsing(file, "a whole file of Parquet"),
      pyarrow.parquet.ParquetFile(file, metadata=told) as opened,
    ):
      return opened.read_row_group(number, columns=[name])[name].combine_chunks()

  def column(name: str) -> Any:
    kind = schema.field(name).type
    return pyarrow.chunked_array([piece(name, i) for i in range(len(groups))], kind)

  return Table(schema, sizes, [0, *itertools.accumulate(sizes)], column, piece)


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
  """Makes a vector of a column of numbers or strings, or rows of one of lists; raises DataError.

  Args:
    where: file and column.
    column: of pyarrow, of all rows.
  """
  import pyarrow.types

  kind = _storage(column.type)
  if _is_list(kind):
    return nested(where, column.combine_chunks(), {})
  is_number = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
  is_string = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
  if not (is_number or is_string or pyarrow.types.is_boolean(kind)):
    raise DataError(f"{where}: is of {kind}, must be numbers or strings")
  if column.null_count:
    missing = next(i for i, value in enumerate(column) if not value.is_valid)
    raise DataError(f"{where}: example {missing} is null, must be a value")
  if is_string:  # of which many are the same: an object each would take more than all the rest
    found = column.dictionary_encode().unify_dictionaries().combine_chunks()
    return np.array(found.dictionary.to_pylist(), np.str_)[np.asarray(found.indices)]
  return np.asarray(column.to_numpy())


def nested(
  where: str,
  array: Any,
  told: dict[str, Any],
  first: int = 0,
  like: tuple[int, ...] | None = None,
) -> np.ndarray:
  """Makes an array of lists of numbers, all of one size: a view where that can be.

  Args:
    where: file and column.
    array: of pyarrow.
    told: what Hugging Face notes of it, such as its shape.
    first: the number of examples before it, for messages.
    like: the shape of those; None where there are none.

  Raises:
    DataError: they are of several sizes, or something is missing in them.
  """
  import pyarrow
  import pyarrow.compute

  array = array.storage if isinstance(array, pyarrow.ExtensionArray) else array
  shape = [len(array)]
  while _is_list(array.type):
    if array.null_count:
      raise DataError(f"{where}: holds null, must hold lists of numbers")
    inner = array.flatten()
    lengths = np.asarray(pyarrow.compute.list_value_length(array))
    if like is None:
      length = int(lengths[0]) if len(lengths) else 0
    else:
      length = (*like, -1)[len(shape) - 1]
    if (lengths != length).any():
      at = first + int(np.flatnonzero(lengths != length)[0]) * shape[0] // len(array)
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
