"""Encoded images as arrays, by Pillow: PNG, JPEG and the like."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.data.readers import checks

Source: TypeAlias = pathlib.Path | bytes  # of an encoded image

_GREY = ("1", "L")
_COLOURS = ("P", "RGB", "RGBA", "LA", "CMYK", "YCbCr")


def decode(
  sources: Sequence[Source],
  names: Sequence[str],
  size: tuple[int, ...] = (),
  shape: tuple[int, ...] | None = None,
) -> np.ndarray:
  """Decodes images of one size, to grey ones if all are and to RGB otherwise.

  Args:
    sources: files, or their bytes.
    names: what messages call each.
    size: height and width to resize to, (): images must be of one size.
    shape: (height, width, channels) that they must have; None for those of the first.

  Returns:
    (n, height, width, channels) uint8.

  Raises:
    DataError: one is no such image, or they are of several sizes.
  """
  with checks.importing(names[0], "readers"):
    import PIL.Image
  channels = shape[2] if shape else _channels(sources, names, PIL.Image)
  found: np.ndarray | None = None
  for i, (source, name) in enumerate(zip(sources, names, strict=True)):
    with checks.parsing(name, "a whole image"):
      with PIL.Image.open(_file(source)) as image:
        _check_mode(name, image.mode)
        if channels == 1 and image.mode not in _GREY:
          raise DataError(f"{name}: is of colours ({image.mode}), must be grey as those before")
        made = image.convert("L" if channels == 1 else "RGB")
        if size:
          made = made.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
        pixels = np.asarray(made)
    shape = shape or (*pixels.shape[:2], channels)
    if pixels.shape[:2] != shape[:2]:
      raise DataError(
        f"{name}: is {pixels.shape[0]} x {pixels.shape[1]} and those before {shape[0]} x"
        f" {shape[1]}, must be of one size, or resized by --image_size=HEIGHT,WIDTH"
      )
    found = np.empty((len(sources), *shape), np.uint8) if found is None else found
    found[i] = pixels.reshape(shape)
  assert found is not None
  return found


def _channels(sources: Sequence[Source], names: Sequence[str], module: Any) -> int:
  """Looks at the headers of all images."""
  for source, name in zip(sources, names, strict=True):
    with checks.parsing(name, "a whole image"):
      with module.open(_file(source)) as image:
        _check_mode(name, image.mode)
        if image.mode not in _GREY:
          return 3
  return 1


def _check_mode(name: str, mode: str) -> None:
  if mode not in (*_GREY, *_COLOURS):
    raise DataError(
      f"{name}: is an image of mode {mode}, must be of 8 bits, grey or coloured; save others as an"
      " .npz file"
    )


def _file(source: Source) -> Any:
  return io.BytesIO(source) if isinstance(source, bytes) else source
