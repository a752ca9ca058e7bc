"""Examples that lie in files and are larger than memory, read a part at a time.

What is read of such an array stays in the memory of the process until it is let go of, however long
the run. So whoever has copied what it needs calls `release`, and whoever has to see all of it goes
through `blocks`.
"""

import mmap
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from sparsyfed_jax.data.rows import Examples, Rows

Found = TypeVar("Found")

_BLOCK_BYTES = 2**26
_ALIGNMENT = 64  # at which a CPU device takes an array of the host without copying it


def release(x: Examples) -> None:
  """Lets go of the memory of what was read of an array that lies in a file; else does nothing.

  Of a map that is copied on write (mode "c") what was changed is nowhere else, so it is kept, and
  so is what is not known to be another map.
  """
  if isinstance(x, Rows):
    x.release()
    return
  base: Any = x
  mode = "c"
  while isinstance(base, np.ndarray | memoryview):
    if isinstance(base, np.memmap):
      mode = base.mode
    base = base.base if isinstance(base, np.ndarray) else base.obj
  if mode == "c":
    return
  if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
    base.madvise(mmap.MADV_DONTNEED)


def take(x: Examples, rows: np.ndarray, out: np.ndarray) -> None:
  """Reads rows of examples.

  Args:
    x: in memory or in files, (n, ...).
    rows: (k,) indices from 0 to n - 1.
    out: (k, ...) of the dtype of x, into which they are read.
  """
  if isinstance(x, Rows):
    x.take(rows, out)
  else:
    # "clip" writes in place, where "raise" would make another copy.
    np.take(x, rows, axis=0, out=out, mode="clip")
  release(x)


def blocks(x: Examples) -> Iterator[np.ndarray]:
  """Cuts an array along its first axis into parts of 64 MB, each of which is read once.

  Args:
    x: in memory, or in files that may be larger. One without entries has no blocks.
  """
  rows = max(1, _BLOCK_BYTES // max(1, x.nbytes // max(1, len(x))))
  for start in range(0, len(x) if x.size else 0, rows):
    yield x[start : start + rows]
    release(x)


def ends(x: Examples) -> tuple[float, float]:
  """Finds the smallest and the largest value of an array that is not empty."""

  def find() -> tuple[float, float]:
    pairs = [(block.min(), block.max()) for block in blocks(x)]
    lows, highs = zip(*pairs, strict=True)
    return float(min(lows)), float(max(highs))

  return once(x, "ends", find)


def once(x: Examples, name: str, find: Callable[[], Found]) -> Found:
  """Finds out what takes reading all examples, of those in pieces only once."""
  if not isinstance(x, Rows):
    return find()
  if name not in x.known:
    x.known[name] = find()
  found: Found = x.known[name]
  return found


def every(x: Examples, step: int) -> np.ndarray:
  """Takes every so many values of an array that is not empty; (ceil(x.size / step),)."""
  taken, start = [], 0
  for block in blocks(x):
    taken.append(block.reshape(-1)[-start % step :: step].copy())
    start += block.size
  return np.concatenate(taken)


def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Makes an array of zeros that a CPU device takes over as it is."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  raw = np.zeros(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)
