"""Encoded images as arrays, by Pillow: PNG, JPEG and the like."""

import contextlib
import io
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.data.readers import checks

Source: TypeAlias = pathlib.Path | bytes  # of an encoded image

_BILINEAR = 2  # of `PIL.Image.Resampling`, which is imported where there are images
_GREY = ("1", "L")
_COLOURS = ("P", "RGB", "RGBA", "LA", "CMYK", "YCbCr")


def shape_of(
  images: Iterable[tuple[Source, str]], size: tuple[int, ...] = ()
) -> tuple[int, int, int]:
  """Finds the shape of images: that of the first, with one channel if all are grey, else three.

  Args:
    images: files or their bytes, each with what messages call it; one or more, of which no more
      are looked at than tell.
    size: height and width to resize to; () for that of the first.

  Returns:
    Height, width and channels.

  Raises:
    DataError: one that is looked at is no image.
  """
  found: tuple[int, ...] = ()
  for source, name in images:
    with _opened(source, name) as image:
      found = found or size or (image.height, image.width)
      if image.mode not in _GREY:
        return (*found[:2], 3)  # type: ignore[return-value]
  return (*found[:2], 1)  # type: ignore[return-value]


def decode(
  images: Iterable[tuple[Source, str]], count: int, shape: tuple[int, ...], is_resized: bool
) -> np.ndarray:
  """Decodes images.

  Args:
    images: as `shape_of` takes them.
    count: how many there are.
    shape: (height, width, channels).
    is_resized: whether they are resized to that, or must be of it.

  Returns:
    (count, height, width, channels) uint8.

  Raises:
    DataError: one is no such image.
  """
  found = np.empty((count, *shape), np.uint8)
  for out, (source, name) in zip(found, images, strict=True):
    with _opened(source, name) as image:
      if shape[2] == 1 and image.mode not in _GREY:
        raise DataError(f"{name}: is of colours ({image.mode}), must be grey as those before")
      made = image.convert("L" if shape[2] == 1 else "RGB")
      if is_resized:
        made = made.resize((shape[1], shape[0]), _BILINEAR)
      if (made.height, made.width) != shape[:2]:
        raise DataError(
          f"{name}: is {made.height} x {made.width} and those before {shape[0]} x {shape[1]}, must"
          " be of one size, or resized by --image_size=HEIGHT,WIDTH"
        )
      out[:] = np.asarray(made).reshape(shape)
  return found


@contextlib.contextmanager
def _opened(source: Source, name: str) -> Iterator[Any]:
  with checks.importing(name, "readers"):
    import PIL.Image
  if isinstance(source, bytes) and not source:
    raise DataError(f"{name}: holds no bytes, must hold an encoded image")
  with checks.parsing(name, "a whole image"):
    with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
      _check_mode(name, image.mode)
      yield image


def _check_mode(name: str, mode: str) -> None:
  if mode not in (*_GREY, *_COLOURS):
    raise DataError(
      f"{name}: is an image of mode {mode}, must be of 8 bits, grey or coloured; save others as an"
      " .npz file"
    )
