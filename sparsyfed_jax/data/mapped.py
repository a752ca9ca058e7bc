"""Arrays that lie in a file and are larger than memory, read a part at a time.

What is read of such an array stays in the memory of the process until it is let go of, however long
the run. So whoever has copied what it needs calls `release`, and whoever has to see all of it goes
through `blocks`.
"""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

_BLOCK_BYTES = 2**26
_ALIGNMENT = 64  # at which a CPU device takes an array of the host without copying it


def release(x: np.ndarray) -> None:
  """Lets go of the memory of what was read of an array that lies in a file; else does nothing.

  Of a map that is copied on write (mode "c") what was changed is nowhere else, so it is kept, and
  so is what is not known to be another map.
  """
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


def blocks(x: np.ndarray) -> Iterator[np.ndarray]:
  """Cuts an array along its first axis into views of 64 MB, each of which is read once.

  Args:
    x: in memory, or in a file that may be larger. One without entries has no blocks.
  """
  rows = max(1, _BLOCK_BYTES // max(1, x.nbytes // max(1, len(x))))
  for start in range(0, len(x) if x.size else 0, rows):
    yield x[start : start + rows]
    release(x)


def ends(x: np.ndarray) -> tuple[float, float]:
  """Finds the smallest and the largest value of an array that is not empty."""
  pairs = [(block.min(), block.max()) for block in blocks(x)]
  lows, highs = zip(*pairs, strict=True)
  return float(min(lows)), float(max(highs))


def every(x: np.ndarray, step: int) -> np.ndarray:
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
