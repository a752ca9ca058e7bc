"""Folders of images: a folder a class, in one for training and one for the test.

`train/<class>/*.png` and `test/<class>/*.png`; with natural clients `train/<client>/<class>/*.png`;
or `<class>/*.png`, which the seed splits. Files of other kinds are passed over.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from sparsyfed_jax.data.dataset import DataError, Part
from sparsyfed_jax.data.readers import checks, pictures
from sparsyfed_jax.data.readers.record import Found, Reader
from sparsyfed_jax.data.reading import Reading
from sparsyfed_jax.data.rows import Rows

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


class _Picture(NamedTuple):
  file: pathlib.Path
  label: str
  client: str  # "" without


def read(path: pathlib.Path, reading: Reading, task: str) -> Found:
  """Reads folders of images; raises DataError."""
  del task
  checks.folder(path, "images, train/<class>/*.png")
  has_parts = (path / "train").is_dir()
  parts = [_pictures(path / part if has_parts else path) for part in _names(path, has_parts)]
  depths = {bool(picture.client) for own in parts for picture in own}
  if len(depths) > 1:
    raise DataError(f"{path}: must have clients in both or neither of train and test")
  classes = tuple(sorted({picture.label for own in parts for picture in own}))
  if len(classes) < 2:
    raise DataError(f"{path}: has the class {classes[0]} alone, must have 2 or more")
  shape: tuple[int, ...] | None = None
  found = []
  for own in parts:
    named = [(picture.file, str(picture.file)) for picture in own]
    shape = shape or pictures.shape_of(named, reading.image_size)
    x = _rows(named, shape, bool(reading.image_size))
    y = np.searchsorted(classes, [picture.label for picture in own])
    owners = np.array([picture.client for picture in own]) if own[0].client else None
    found.append(Part(x, y.astype(np.int32), owners))
  return Found(path.name, found[0], found[1] if has_parts else None, classes=classes)


def _rows(named: list[tuple[pathlib.Path, str]], shape: tuple[int, ...], is_resized: bool) -> Rows:
  def read(_: int, rows: np.ndarray) -> np.ndarray:
    return pictures.decode((named[row] for row in rows), len(rows), shape, is_resized)

  return Rows([len(named)], shape, np.uint8, read)


def _names(path: pathlib.Path, has_parts: bool) -> list[str]:
  if has_parts and not (path / "test").is_dir():
    raise DataError(f"{path / 'test'}: no such folder, must be one of images beside train")
  return ["train", "test"] if has_parts else [""]


def _pictures(folder: pathlib.Path) -> list[_Picture]:
  """Lists the images of a folder, those of a class below it or below clients."""
  found = []
  for outer in _folders(folder):
    inner = _folders(outer)
    direct = _images(outer)
    if inner and direct:
      raise DataError(f"{outer}: holds both folders and images, must be a client's or a class's")
    if not inner and not direct:
      raise DataError(f"{outer}: holds no image, must hold some or be left out")
    found += [_Picture(file, outer.name, "") for file in direct]
    for label in inner:
      own = _images(label)
      if not own:
        raise DataError(f"{label}: client {outer.name!r}: holds no image, must hold some")
      found += [_Picture(file, label.name, outer.name) for file in own]
  if not found:
    raise DataError(f"{folder}: holds no folder of images, must hold one a class")
  if len({bool(picture.client) for picture in found}) > 1:
    lone = next(picture for picture in found if not picture.client)
    raise DataError(f"{lone.file.parent}: is a class beside clients, must be <client>/<class>")
  return found


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(own for own in folder.iterdir() if own.is_dir() and own.name[0] != ".")


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(own for own in folder.iterdir() if own.suffix.lower() in ENDINGS)


READER = Reader("images", read, extra="readers")
