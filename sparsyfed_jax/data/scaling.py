"""How stored values become a model's inputs: the range that is mapped to [-1, 1]."""

import math
from typing import TypeAlias

import numpy as np

from sparsyfed_jax.data.mapped import blocks, ends, once
from sparsyfed_jax.data.rows import Examples

Range: TypeAlias = tuple[float, float]  # the values that become -1 and 1

AUDIO: Range = (-32768.0, 32768.0)
# Largest values of common encodings: masks, digits, images of 8 and 16 bits; int8, int16.
_UNSIGNED = (1, 16, 255, 65535)
_SIGNED = (128, 32768)
_LARGEST_RMS = 2.0
_BLOCK = 2**20  # values of a partial sum


def find_range(x: Examples) -> Range | None:
  """Chooses the range of examples from the values that the training set has, not from its dtype.

  The range follows from the values::

    | values                                      | range                            |
    |---------------------------------------------|----------------------------------|
    | floats with a root mean square of at most 2 | none, they are left as they are  |
    | 0 to 1                                      | 0 to 1                           |
    | 0 to between 9 and 16                       | 0 to 16                          |
    | 0 to between 128 and 255                    | 0 to 255                         |
    | 0 to between 32,768 and 65,535              | 0 to 65,535                      |
    | of both signs, largest between 33 and 128   | -128 to 128                      |
    | of both signs, between 8,193 and 32,768     | -32,768 to 32,768                |
    | of both signs otherwise                     | -max to max, so that 0 stays 0   |
    | others                                      | min to max                       |

  A set need not use the whole of a common encoding: images whose brightest pixel is 250 are scaled
  like all others of 8 bits, and so are waveforms that peak at a quarter of 16 bits.

  Standardised floats have a root mean square of 1, those in [0, 1] or [-1, 1] one of at most 1,
  whatever their distribution, so that neither is ever scaled.

  Args:
    x: training examples, `(n, *shape)` bool, integer or float32 of any size, finite.

  Returns:
    The values that become -1 and 1, the first below the second; None to leave them as they are.
  """
  if x.dtype.kind == "f" and _root_mean_square(x) <= _LARGEST_RMS:
    return None
  low, high = ends(x)
  if low >= 0:
    high = next((float(top) for top in _UNSIGNED if top / 2 < high <= top), high)
    low = 0.0 if high in _UNSIGNED else low
  elif high > 0:
    largest = max(-low, high)
    largest = next((float(top) for top in _SIGNED if top / 4 < largest <= top), largest)
    low, high = -largest, largest
  return (low, high) if low < high else (low - 1.0, low + 1.0)  # all alike: they become 0


def mean_and_std(limits: Range | None) -> tuple[float, float]:
  """Returns the mean and std with which (x - mean) / std maps a range to [-1, 1]; 0, 1 for None."""
  if limits is None:
    return 0.0, 1.0
  low, high = limits
  return (low + high) / 2, (high - low) / 2


def as_range(mean: float, std: float) -> Range | None:
  """Returns the range that `mean_and_std` made a mean and std of."""
  return None if (mean, std) == (0.0, 1.0) else (mean - std, mean + std)


def narrow(*parts: Examples) -> tuple[Examples, ...]:
  """Stores examples in the smallest dtype that holds them, for the memory of a device.

  Args:
    parts: the training and the test examples, of one dtype: bool, integer or float.

  Returns:
    The same values, all uint8, all int16 or all float32. uint8 and int16 are left as they are;
    floats, and integers beyond int16, become float32.
  """
  dtype = parts[0].dtype
  if dtype not in (np.uint8, np.int16):
    dtype = np.dtype(np.float32)
    if parts[0].dtype.kind != "f":
      lows, highs = zip(*map(ends, parts), strict=True)
      low, high = min(lows), max(highs)
      limits = [(kind, np.iinfo(kind)) for kind in (np.uint8, np.int16)]
      fitting = [np.dtype(kind) for kind, info in limits if info.min <= low and high <= info.max]
      dtype = fitting[0] if fitting else dtype
  return tuple(x.astype(dtype.newbyteorder("="), copy=False) for x in parts)


def looks_channels_first(shape: tuple[int, ...]) -> bool:
  """Tells whether examples of a shape are images with the channels before height and width.

  Those are (1 or 4, side, side) and (3, height, width), which read as height, width and channels
  would be stripes of 1 to 4 pixels with 5 channels or more.
  """
  if len(shape) != 3:
    return False
  first, height, width = shape
  is_image = height > 4 and width > 4
  return is_image and (first == 3 or (first in (1, 4) and height == width))


def _root_mean_square(x: Examples) -> float:
  def find() -> float:
    total = 0.0
    for block in blocks(x):
      pieces = np.array_split(block.reshape(-1), 1 + block.size // _BLOCK)
      total += sum(float(np.vdot(piece, piece)) for piece in pieces)
    return math.sqrt(total / x.size)

  return once(x, "root_mean_square", find)
