"""Examples that stay in their files, in pieces, of which rows are read when they are asked for."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

_MOST = 1024  # rows that are read at a time


class Rows:
  """Examples in pieces, such as the batches of a table, that are not held in memory.

  They have of an array what is asked of examples that may be larger than memory: shape and dtype,
  rows by a slice or by indices, casts, and other shapes of an example.

  Attributes:
    shape: of all of them, `(n, *entry)`.
    dtype: to which what is read is cast.
    release: lets go of the memory that reading has left behind.
    known: what was once found out by reading all of them.

  Example:
    >>> import numpy as np
    >>> pieces = np.arange(6).reshape(3, 2), np.arange(6, 8).reshape(1, 2)
    >>> rows = Rows([3, 1], (2,), np.uint8, lambda piece, rows: pieces[piece][rows])
    >>> rows[[3, 0]], rows.shape
    (array([[6, 7],
           [0, 1]], dtype=uint8), (4, 2))
  """

  def __init__(
    self,
    sizes: Sequence[int] | np.ndarray,
    entry: tuple[int, ...],
    dtype: Any,
    read: Callable[[int, np.ndarray], np.ndarray],
    release: Callable[[], None] = lambda: None,
  ):
    """Names what can be read.

    Args:
      sizes: of each piece, the number of its rows.
      entry: the shape of a row.
      dtype: of the rows.
      read: (piece, (k,) indices of rows in it) -> k rows, finite, of any shape of as many entries.
      release: lets go of the memory that reading leaves behind.
    """
    self._sizes = np.asarray(sizes, np.int64)
    self._ends = np.cumsum(self._sizes)
    self._read = read
    self._chosen: np.ndarray | None = None
    self.shape: tuple[int, ...] = (int(self._sizes.sum()), *entry)
    self.dtype = np.dtype(dtype)
    self.release = release
    self.known: dict[str, Any] = {}

  @property
  def ndim(self) -> int:
    """The number of axes."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """The number of entries."""
    return int(np.prod(self.shape, dtype=np.int64))

  @property
  def nbytes(self) -> int:
    """The bytes that all rows would take in memory."""
    return self.size * self.dtype.itemsize

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, rows: Any) -> np.ndarray:
    rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else self._indices(rows)
    out = np.empty((len(rows), *self.shape[1:]), self.dtype)
    self.take(rows, out)
    return out

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if copy is False:
      raise ValueError("copy=False: must be True or None, as the rows are not in memory")
    found = self[:]
    return found if dtype is None else found.astype(dtype, copy=False)

  def take(self, rows: np.ndarray, out: np.ndarray) -> None:
    """Reads rows, a piece that has some of them at a time, and of a large one some at a time.

    Args:
      rows: (k,) indices from 0 to n - 1.
      out: `(k, *entry)` of the dtype, into which they are read.
    """
    wanted = rows if self._chosen is None else self._chosen[rows]
    pieces = np.searchsorted(self._ends, wanted, side="right")
    order = np.argsort(pieces, kind="stable")
    is_first = np.diff(pieces[order], prepend=-1) > 0
    is_first[::_MOST] = True
    for group in np.split(order, np.flatnonzero(is_first)[1:]) if len(order) else ():
      piece = int(pieces[group[0]])
      inside = wanted[group] - (self._ends[piece] - self._sizes[piece])
      read = self._read(piece, inside).reshape(len(group), *self.shape[1:])
      with np.errstate(over="ignore"):
        out[group] = read

  def select(self, rows: np.ndarray) -> "Rows":
    """Makes those of some rows, (k,) indices; nothing is read."""
    made, rows = copy.copy(self), self._indices(rows)
    made._chosen = rows if self._chosen is None else self._chosen[rows]
    made.shape, made.known = (len(rows), *self.shape[1:]), {}
    return made

  def astype(self, dtype: Any, copy: bool = False) -> "Rows":
    """Makes those of another dtype, to which rows are cast when they are read."""
    return self if self.dtype == dtype and not copy else self._changed(dtype=np.dtype(dtype))

  def reshape(self, count: int, *entry: int) -> "Rows":
    """Gives each row another shape, of which one axis may be -1; so may the number of rows."""
    entry = np.empty(self.shape[1:], np.bool_).reshape(entry).shape
    if count not in (-1, len(self)):
      raise ValueError(f"count={count}: must be {len(self)} or -1")
    made = self._changed(shape=(len(self), *entry))
    made.known = self.known
    return made

  def _indices(self, rows: Any) -> np.ndarray:
    """Returns indices from 0 on, of what an array would take."""
    rows, count = np.asarray(rows, None if len(rows) else np.int64), len(self)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
      raise IndexError(f"rows of {rows.dtype} and shape {rows.shape}: must be (k,) integers")
    if rows.min(initial=0) < -count or rows.max(initial=-1) >= count:
      raise IndexError(f"rows {rows.min()} to {rows.max()}: must be {-count} to {count - 1}")
    return np.where(rows < 0, rows + count, rows)

  def _changed(self, **attributes: Any) -> "Rows":
    made = copy.copy(self)
    made.__dict__.update(attributes, known={})
    return made


# Examples in memory, in a file of one array, or in pieces.
Examples: TypeAlias = np.ndarray | Rows


def select(x: Examples, rows: np.ndarray) -> Examples:
  """Takes rows of examples: copies of those in memory."""
  return x.select(rows) if isinstance(x, Rows) else x[rows]
