"""The files of a run: its directory, JSON documents, and one row of metrics a round.

`metrics.jsonl` is the record; `metrics.csv` is the same table for spreadsheets and is rebuilt from
the record whenever the two could differ. Both are readable after a crash at any moment.
"""

import csv
import io
import json
import math
import os
import pathlib
import warnings
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, BinaryIO, Self, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]
Row: TypeAlias = Mapping[str, Any]  # column -> float, int, str or None; array scalars also do

JSONL_NAME = "metrics.jsonl"
CSV_NAME = "metrics.csv"
SUMS_NAME = ".metrics.crc32"  # of each row a line: a flipped digit is JSON too


def create_run_dir(path: PathLike) -> pathlib.Path:
  """Creates the directory of a new run, and refuses one that holds anything.

  Args:
    path: the directory; its parents are created too.

  Returns:
    The directory, which exists and is empty.

  Raises:
    FileExistsError: if `path` is a directory with entries, or a file is in the way.
  """
  directory = pathlib.Path(path)
  check_new_dir(directory)
  directory.mkdir(parents=True, exist_ok=True)
  return directory


def check_new_dir(path: PathLike, besides: Collection[str] = ()) -> None:
  """Checks that a directory is not there, or is empty.

  Args:
    path: the directory.
    besides: names of entries that it may have.

  Raises:
    FileExistsError: as `create_run_dir`.
  """
  directory = pathlib.Path(path)
  for place in (directory, *directory.parents):
    if os.path.lexists(place) and not place.is_dir():
      where = "it" if place == directory else str(place)
      raise FileExistsError(
        f"--output_dir={directory}: {where} exists and is not a directory; "
        "name a directory that is new or empty"
      )
  if directory.is_dir() and not set(os.listdir(directory)) <= set(besides):
    raise FileExistsError(
      f"--output_dir={directory} exists and is not empty; name a directory that is new or empty"
    )


def write_json(path: PathLike, obj: Any) -> None:
  """Writes `obj` as strict JSON; a reader sees the old file or the new one, never a part.

  Args:
    path: the file, replaced if it exists.
    obj: nested mappings and sequences of scalars. NumPy and JAX arrays become numbers or lists,
      paths become strings, NaN and infinities become null.
  """
  _replace_text(path, json.dumps(json_value(obj), indent=2, allow_nan=False) + "\n")


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
  """Reads the rows of a `metrics.jsonl`.

  Args:
    path: the file. A last line without its newline was torn by a crash; it counts if it is whole.

  Returns:
    The rows in the order written.

  Raises:
    ValueError: if any other line is not a JSON object; the message names the file and the line.
  """
  rows, fault = read_whole_rows(path)
  if fault:
    raise ValueError(fault)
  return rows


def read_whole_rows(path: PathLike) -> tuple[list[dict[str, Any]], str]:
  """Reads the rows of a `metrics.jsonl` up to the first that is damaged.

  Returns:
    The rows, and a line that names the file, the place and the damage; "" where there is none.
  """
  *lines, tail = pathlib.Path(path).read_bytes().split(b"\n")
  rows: list[dict[str, Any]] = []
  for number, line in enumerate([*lines, tail], start=1):
    is_tail = number > len(lines)
    try:
      row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
      return rows, "" if is_tail else f"{path}, line {number}: not JSON ({error})"
    if not isinstance(row, dict):
      return rows, f"{path}, line {number}: expected a JSON object, found {_short(row)}"
    rows.append(row)
  return rows, ""


def find_changed(directory: PathLike, rows: Sequence[Row]) -> int | None:
  """Finds the first row that is not as it was written.

  Args:
    directory: of the run.
    rows: as `read_metrics` returns them.

  Returns:
    Its index; None where all fit their checksums. Rows without a checksum are taken as they are.
  """
  try:
    lines = (pathlib.Path(directory) / SUMS_NAME).read_bytes().split(b"\n")[:-1]
  except FileNotFoundError:
    return None
  for i, (row, line) in enumerate(zip(rows, lines, strict=False)):
    if len(line) != 8:  # a crash may leave anything behind the last row that was on the disk
      return None
    if line != _sum_of(row):
      return i
  return None


def set_aside(directory: PathLike, num_rows: int) -> pathlib.Path:
  """Keeps the first rows of a record, and the record as it was in a file beside it.

  Args:
    directory: of the run.
    num_rows: how many rows stay in `metrics.jsonl`; all of them are whole.

  Returns:
    The file with the whole record, `metrics.discarded-1.jsonl` or the next number that is free.
  """
  path = pathlib.Path(directory) / JSONL_NAME
  content = path.read_bytes()
  number = 1
  while True:
    aside = path.with_name(f"{path.stem}.discarded-{number}{path.suffix}")
    try:
      file = open(aside, "xb")
      break
    except FileExistsError:
      number += 1
  with file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  rows = [json.loads(line) for line in content.split(b"\n")[:num_rows]]
  _replace_text(path, "".join(map(_jsonl_line, rows)))
  return aside


class MetricsWriter:
  """Appends rows to `metrics.jsonl` and `metrics.csv`, each flushed before `write` returns.

  Attributes:
    columns: the columns of the CSV, in the order in which rows first named them.
  """

  def __init__(
    self,
    directory: PathLike,
    last_round: float = math.inf,
    warn: Callable[[str], None] = warnings.warn,
  ) -> None:
    """Opens the record of a run, and continues it if there is one.

    Args:
      directory: an existing directory.
      last_round: rows of later rounds are written again, by a run resumed from a checkpoint of this
        round. Until then they stay, and where they come out equal, they stay for good. From the
        first that does not on, they are replaced; the record as it was is kept by `set_aside`.
      warn: is told in one line when rows are replaced.
    """
    self._directory = pathlib.Path(directory)
    self._jsonl_path = self._directory / JSONL_NAME
    self._csv_path = self._directory / CSV_NAME
    self._warn = warn
    rows = read_metrics(self._jsonl_path) if self._jsonl_path.exists() else []
    self._num_rows = sum(row.get("round", 0) <= last_round for row in rows)
    self._ahead = rows[self._num_rows :]  # not yet written again
    self.columns = list(dict.fromkeys(column for row in rows for column in row))
    # Also where nothing changes: the new row must not continue a torn line.
    _replace_text(self._jsonl_path, "".join(map(_jsonl_line, rows)))
    self._replace_csv(rows)
    self._jsonl = open(self._jsonl_path, "a", encoding="utf-8")
    self._sums = self._open_sums(rows)

  def write(self, row: Row) -> None:
    """Appends one row.

    Args:
      row: a value for each column. Columns may be missing, and new ones may appear.
    """
    plain = json_value(row)
    if self._ahead:
      if json.loads(_jsonl_line(plain)) == self._ahead[0]:
        del self._ahead[0]
        self._num_rows += 1
        return
      self._replace_ahead(row)
    self._num_rows += 1
    self._jsonl.write(_jsonl_line(plain))
    self._jsonl.flush()
    self._sums.write(_sum_of(plain) + b"\n")
    self._sums.flush()
    new = [column for column in plain if column not in self.columns]
    if new:
      self.columns += new
      self._replace_csv(read_metrics(self._jsonl_path))
    else:
      with open(self._csv_path, "a", encoding="utf-8", newline="") as file:
        file.write(_csv_text(self.columns, [plain]))

  def sync(self) -> None:
    """Returns when all rows of `metrics.jsonl` are on the disk."""
    self._jsonl.flush()
    os.fsync(self._jsonl.fileno())

  def close(self) -> None:
    """Closes the record; `write` fails from here on."""
    self._jsonl.close()
    self._sums.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _replace_ahead(self, row: Row) -> None:
    self.close()
    aside = set_aside(self._directory, self._num_rows)
    self._jsonl = open(self._jsonl_path, "a", encoding="utf-8")
    rows = read_metrics(self._jsonl_path)
    self._replace_csv(rows)
    self._sums = self._open_sums(rows)
    count, self._ahead = len(self._ahead), []
    self._warn(
      f"{self._jsonl_path}: round {row.get('round')} does not come out as it was recorded; it and"
      f" the {count - 1} rounds recorded after it are kept in {aside.name}"
    )

  def _open_sums(self, rows: Sequence[Row]) -> BinaryIO:
    path = self._directory / SUMS_NAME
    _replace_text(path, "".join(f"{_sum_of(row).decode()}\n" for row in rows))
    return open(path, "ab")

  def _replace_csv(self, rows: Sequence[Row]) -> None:
    header = [{column: column for column in self.columns}] if self.columns else []
    _replace_text(self._csv_path, _csv_text(self.columns, [*header, *rows]))


def replace_file(path: PathLike, content: bytes) -> None:
  """Writes a file in one step that survives a crash: a reader sees the old one or the new one.

  Args:
    path: the file, replaced if it exists.
    content: of the file.
  """
  target = pathlib.Path(path)
  # Not `tempfile`, whose files only their owner may read.
  temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
    sync_directory(target.parent)
  finally:
    temporary.unlink(missing_ok=True)


def sync_directory(path: PathLike) -> None:
  """Returns when the names of the files in a directory are on the disk, where the system can."""
  try:
    file = os.open(path, os.O_RDONLY)
  except OSError:  # not of a directory, on Windows
    return
  try:
    os.fsync(file)
  except OSError:  # some network file systems refuse
    pass
  finally:
    os.close(file)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:60]}..."


def _jsonl_line(row: Row) -> str:
  return json.dumps(json_value(row), allow_nan=False) + "\n"


def _sum_of(row: Row) -> bytes:
  return b"%08x" % zlib.crc32(_jsonl_line(row).encode())


def _csv_text(columns: Sequence[str], rows: Sequence[Row]) -> str:
  text = io.StringIO()
  csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
  return text.getvalue()


def json_value(value: Any) -> Any:
  """Makes `value` of what strict JSON knows; other types are left for `json` to refuse."""
  if hasattr(value, "tolist"):  # NumPy's and JAX's arrays and scalars
    value = value.tolist()
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if hasattr(value, "_asdict"):
    value = value._asdict()
  if isinstance(value, Mapping):
    return {str(key): json_value(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [json_value(item) for item in value]
  return os.fspath(value) if isinstance(value, os.PathLike) else value


def _replace_text(path: PathLike, text: str) -> None:
  replace_file(path, text.encode("utf-8"))
