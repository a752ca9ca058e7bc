"""Data sets of Hugging Face: what `save_to_disk` wrote, and Parquet.

Read by pyarrow, and by Pillow where there are images; `datasets` is not needed. Columns are found
by the features in the schema: the image, or else the numbers or text; the ClassLabel; a client by
its name. `--example_column`, `--label_column` and `--client_column` choose where several can be
meant.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sparsyfed_jax.data.dataset import DataError, Part
from sparsyfed_jax.data.readers import arrow, checks, pictures
from sparsyfed_jax.data.readers.kept import Kept
from sparsyfed_jax.data.readers.record import Found, Reader
from sparsyfed_jax.data.readers.texts import (
  Snippets,
  Windows,
  check_windows,
  from_snippets,
  from_windows,
)
from sparsyfed_jax.data.reading import Reading
from sparsyfed_jax.data.rows import Examples, Rows

_EXAMPLES = ("image", "img", "x", "features", "text")  # names that are meant, the first there is
_LABELS = ("label", "labels", "y", "target")
_CLIENTS = tuple(
  f"{noun}{end}" for end in ("_id", "") for noun in ("client", "user", "speaker", "writer")
)
_FILE = re.compile(r"(.+)-(\d{5})-of-(\d{5})(-\w+)?")


class _Columns(NamedTuple):
  example: str
  label: str  # "" of a text that is whole
  client: str  # "" without
  features: dict[str, Any]


class _Split(NamedTuple):
  where: str  # folder and split
  table: arrow.Table
  clients: np.ndarray | None

  def named(self, column: str, row: int) -> str:
    """What messages call an entry."""
    client = f": client {self.clients[row].item()!r}" if self.clients is not None else ""
    return f"{self.where}{client}: {column}: example {row}"


def read(path: pathlib.Path, reading: Reading, task: str) -> Found:
  """Reads a folder of `save_to_disk`, or Parquet; raises DataError."""
  tables = _tables(path)
  train = "train" if "train" in tables else next(iter(tables))
  if len(tables) > 1 and train != "train":
    raise DataError(f"{path}: has the splits {', '.join(tables)}, must have one called train")
  others = [name for name in ("test", "validation") if name in tables and name != train]
  test = others[0] if "test" in others or len(tables) == 2 and others else None
  columns = _choose(f"{path}: {train}", tables[train], reading, task)
  splits = [_split(f"{path}: {name}", tables[name], columns) for name in (train, test) if name]
  name = path.stem if path.is_file() else path.name
  if arrow.is_text(splits[0].table, columns.example):
    return _text(name, splits, columns, reading, str(path))
  found: list[Part] = []
  for own in splits:
    found.append(_part(own, columns, reading, found[0].x.shape[1:] if found else None))
  classes = tuple(columns.features.get(columns.label, {}).get("names") or ())
  for own, part in zip(splits, found, strict=True):
    _check_labels(own, columns.label, part.y, classes)
  return Found(name, found[0], found[1] if test else None, classes=classes)


def _tables(path: pathlib.Path) -> dict[str, arrow.Table]:
  """Opens the splits of a data set, by their names."""
  if path.is_file():
    return {"train": arrow.parquet([path])}
  checks.folder(path, "Hugging Face, of save_to_disk or with Parquet files")
  if (path / "dataset_dict.json").exists():
    told = checks.read_json(path / "dataset_dict.json", "that of save_to_disk, with splits")
    names = told.get("splits")
    if not isinstance(names, list) or not names:
      raise DataError(f"{path / 'dataset_dict.json'}: splits is missing, must list folders")
    return {str(name): arrow.saved(path / str(name)) for name in names}
  if (path / "state.json").exists():
    return {"train": arrow.saved(path)}
  files: dict[str, list[pathlib.Path]] = {}
  for file in sorted(path.rglob("*.parquet")):
    match = _FILE.fullmatch(file.stem)
    name = match[1] if match else file.stem
    folder = file.parent.name
    is_folder = name.isdecimal() or (not match and folder in ("train", "test", "validation"))
    files.setdefault(folder if is_folder else name, []).append(file)
  if not files:
    raise DataError(f"{path}: holds neither state.json nor *.parquet, must be of Hugging Face")
  for name, own in files.items():
    _check_whole(path, name, own)
  return {name: arrow.parquet(own) for name, own in files.items()}


def _check_whole(path: pathlib.Path, name: str, files: list[pathlib.Path]) -> None:
  matches = [match for file in files if (match := _FILE.fullmatch(file.stem))]
  for match in matches:
    if int(match[3]) != len(files):
      raise DataError(
        f"{path}: {name}: has {len(files)} of {int(match[3])} files {name}-*.parquet, must have all"
      )


def _choose(where: str, table: arrow.Table, reading: Reading, task: str) -> _Columns:
  features = arrow.features(where, table)
  kinds = arrow.kinds(table, features)
  of_kind = [[c for c, own in kinds.items() if own == kind] for kind in ("image", "array", "text")]
  wanted = [of_kind[2]] if task == "next_token" else of_kind
  example = reading.example_column or _only(wanted, _EXAMPLES)
  labels = [[c for c, own in kinds.items() if own == "class"], [c for c in kinds if c in _LABELS]]
  label = reading.label_column or _only(labels, _LABELS)
  client = reading.client_column or next((name for name in _CLIENTS if name in kinds), "")
  is_text = kinds.get(example) == "text"
  for flag, column in (("example", example), ("label", label), ("client", client)):
    is_needed = flag == "example" or (flag == "label" and not is_text)
    if column not in kinds and (column or is_needed):
      listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
      missing = f"{column} is missing" if column else f"no column is surely the {flag}"
      raise DataError(f"{where}: {missing}, must be chosen by --{flag}_column of {listed}")
  if kinds[example] not in ("image", "array", "text"):
    raise DataError(
      f"{where}: {example}: is of {kinds[example]}, must be images, lists of numbers or text;"
      " --example_column chooses another"
    )
  return _Columns(example, label, client, features)


def _only(choices: list[list[str]], usual: tuple[str, ...]) -> str:
  """Takes the only column of the first kind that there is, or among several a usual name."""
  found = next(filter(None, choices), [])
  return found[0] if len(found) == 1 else next((name for name in usual if name in found), "")


def _split(where: str, table: arrow.Table, columns: _Columns) -> _Split:
  for column in (columns.example, columns.label, columns.client):
    if column and column not in table.schema.names:
      raise DataError(f"{where}: {column} is missing, must be there as in train")
  if not table.num_rows:
    raise DataError(f"{where}: is empty, must hold at least one example")
  clients = None
  if columns.client:
    clients = arrow.values(f"{where}: {columns.client}", table.column(columns.client))
    if clients.dtype.kind not in "iuU" or clients.ndim != 1:
      kind = table.schema.field(columns.client).type
      raise DataError(f"{where}: {columns.client}: is of {kind}, must be integers or strings")
  return _Split(where, table, clients)


def _part(
  split: _Split, columns: _Columns, reading: Reading, shape: tuple[int, ...] | None
) -> Part:
  column = columns.example
  if arrow.is_image(split.table, column):
    x: Examples = _images(split, column, reading.image_size, shape)
  else:
    x = _numbers(split, column, columns.features.get(column, {}), reading.in_place, shape)
  label = f"{split.where}: {columns.label}"
  y = checks.labels(label, arrow.values(label, split.table.column(columns.label)), len(x), column)
  split.table.release()
  return Part(x, y, split.clients)


def _images(
  split: _Split, column: str, size: tuple[int, ...], shape: tuple[int, ...] | None
) -> Rows:
  table = split.table

  def named(piece: int, rows: np.ndarray) -> Iterator[tuple[bytes, str]]:
    found, first = arrow.encoded(table.piece(column, piece).take(rows)), table.firsts[piece]
    for source, row in zip(found, rows, strict=True):
      yield source, split.named(column, first + int(row))

  def all_named() -> Iterator[tuple[bytes, str]]:
    for piece, count in enumerate(table.sizes):
      yield from named(piece, np.arange(count))
      table.release()

  known = shape or pictures.shape_of(all_named(), size)

  def read(piece: int, rows: np.ndarray) -> np.ndarray:
    return pictures.decode(named(piece, rows), len(rows), known, bool(size))

  return Rows(table.sizes, known, np.uint8, read, table.release)


def _numbers(
  split: _Split,
  column: str,
  told: dict[str, Any],
  in_place: bool,
  shape: tuple[int, ...] | None,
) -> Examples:
  table, where = split.table, f"{split.where}: {column}"

  def read(piece: int, like: tuple[int, ...] | None = None) -> np.ndarray:
    return arrow.nested(where, table.piece(column, piece), told, table.firsts[piece], like)

  kept = Kept(in_place)
  for piece in range(len(table.sizes)):
    found = read(piece, kept.entry if kept.sizes else None)
    kept.add(checks.numbers(where, found, shape, table.firsts[piece]))
    table.release()
  return kept.examples(lambda piece, rows: read(piece)[rows], table.release)


def _check_labels(split: _Split, column: str, y: np.ndarray, classes: tuple[str, ...]) -> None:
  if not classes:
    return
  bad = np.flatnonzero((y < 0) | (y >= len(classes)))
  if len(bad):
    raise DataError(
      f"{split.named(column, int(bad[0]))}: is the label {y[bad[0]]}, must be 0 to"
      f" {len(classes) - 1}"
    )


def _text(
  name: str, splits: list[_Split], columns: _Columns, reading: Reading, where: str
) -> Found:
  """Reads windows of text with the character behind each, or whole texts."""
  texts = [own.table.column(columns.example).to_pylist() for own in splits]
  owners = [None if s.clients is None else list(map(str, s.clients.tolist())) for s in splits]
  for own, lines in zip(splits, texts, strict=True):
    for i, line in enumerate(lines):
      if not isinstance(line, str):
        raise DataError(f"{own.named(columns.example, i)}: is {line!r}, must be text")
  if columns.label and arrow.is_text(splits[0].table, columns.label):
    windows, length = [], None
    for own, lines, clients in zip(splits, texts, owners, strict=True):
      following = own.table.column(columns.label).to_pylist()
      length = check_windows(own.where, lines, following, length)
      windows.append(Windows(lines, following, clients))
    return from_windows(name, windows[0], windows[1] if len(windows) > 1 else None, where)
  whole = [Snippets(lines, clients) for lines, clients in zip(texts, owners, strict=True)]
  tested = whole[1] if len(whole) > 1 else None
  return from_snippets(name, whole[0], tested, reading.sequence_length, where)


READER = Reader("hf", read, extra="readers", has_text=True)
