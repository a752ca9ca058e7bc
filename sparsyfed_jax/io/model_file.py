"""A model as one file: what it is and how its inputs are scaled, then its weights, zeros left out.

All numbers are little-endian::

    file       "SFED", version 1, uint32 length of the header, header, weights, crc32 of all before
    header     a JSON object, UTF-8: `compression` (null or "zstd") and what `write` was given
    weights    a payload of `sparsyfed_jax.wire`, as one zstd frame where it is compressed
"""

import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from sparsyfed_jax.io.writers import json_value, replace_file
from sparsyfed_jax.types import Variables
from sparsyfed_jax.wire.codec import decode, encode
from sparsyfed_jax.wire.reader import CodecError

PathLike: TypeAlias = str | os.PathLike[str]

MAGIC = b"SFED"
VERSION = 1
SUFFIX = ".sfed"
COMPRESSIONS = (None, "zstd")
_HEAD = len(MAGIC) + 1 + 4
_CRC = 4
_LEVEL = 19  # of zstd: half a second for eleven million weights of which 5 % are not zero


class ModelFileError(ValueError):
  """A file that is no model; the one-line message names it and what is wrong."""


class ModelFile(NamedTuple):
  """What a file of a model holds."""

  description: dict[str, Any]
  variables: Variables  # NumPy arrays


def write(
  path: PathLike,
  description: Mapping[str, Any],
  variables: Variables,
  value_dtype: Any = None,
  compression: str | None = None,
) -> int:
  """Writes a model in one step that survives a crash; a file of that name is replaced.

  Args:
    path: the file.
    description: of what strict JSON knows, NumPy's arrays and scalars besides.
    variables: arrays in nested dicts.
    value_dtype: as in `sparsyfed_jax.wire.encode`; None is lossless.
    compression: None, or "zstd", for which the package zstandard is needed.

  Returns:
    How many bytes the file has.

  Raises:
    ModelFileError: another compression, or "zstd" without the package.
    OSError: the file cannot be written.
    TypeError, ValueError: as `sparsyfed_jax.wire.encode`.

  Example:
    >>> import tempfile, numpy as np
    >>> path = tempfile.mkdtemp() + "/model.sfed"
    >>> write(path, {"round": 3}, {"params": {"kernel": np.eye(2, dtype=np.float32)}}) < 200
    True
    >>> read(path).description["round"]
    3
  """
  if compression not in COMPRESSIONS:
    raise ModelFileError(f"compression={compression!r}: must be None or 'zstd'")
  payload = encode(variables, value_dtype=value_dtype)
  if compression:
    payload = _zstandard(path).ZstdCompressor(level=_LEVEL).compress(payload)
  told = json_value({"compression": compression, **description})
  header = json.dumps(told, allow_nan=False, separators=(",", ":")).encode()
  content = b"".join([MAGIC, bytes([VERSION]), len(header).to_bytes(4, "little"), header, payload])
  content += zlib.crc32(content).to_bytes(_CRC, "little")
  replace_file(path, content)
  return len(content)


def read(path: PathLike, max_bytes: int = 2**32) -> ModelFile:
  """Reads a model.

  Args:
    path: the file, which may come from anybody: nothing in it is run.
    max_bytes: limit of the arrays together; zeros are short in a file, however many they are.

  Raises:
    ModelFileError: the file is damaged, of another kind or version, or too large; or it needs the
      package zstandard.
    OSError: it cannot be read.
  """
  content = pathlib.Path(path).read_bytes()
  if content[: len(MAGIC)] != MAGIC or len(content) < _HEAD + _CRC:
    raise ModelFileError(f"{path}: is no model file, which begins with {MAGIC.decode()}")
  if content[len(MAGIC)] != VERSION:
    raise ModelFileError(f"{path}: has version {content[len(MAGIC)]}; this reads version {VERSION}")
  if zlib.crc32(content[:-_CRC]) != int.from_bytes(content[-_CRC:], "little"):
    raise ModelFileError(f"{path}: is damaged: its crc32 does not fit")
  end = _HEAD + int.from_bytes(content[_HEAD - 4 : _HEAD], "little")
  try:
    description = json.loads(content[_HEAD:end].decode())
  except (ValueError, RecursionError) as error:
    raise ModelFileError(f"{path}: its header is not JSON ({error})") from error
  if not isinstance(description, dict) or end > len(content) - _CRC:
    raise ModelFileError(f"{path}: its header must be a JSON object within the file")
  compression = description.pop("compression", None)
  payload = content[end:-_CRC]
  if compression == "zstd":
    payload = _decompressed(payload, path, max_bytes)
  elif compression is not None:
    raise ModelFileError(f"{path}: its compression is {compression!r}, must be null or zstd")
  try:
    variables = decode(payload, max_bytes=max_bytes)
  except CodecError as error:
    raise ModelFileError(f"{path}: {error}") from error
  if not isinstance(variables, dict) or "params" not in variables:
    raise ModelFileError(f"{path}: its weights must be a dict with `params`")
  return ModelFile(description, variables)


def _decompressed(frame: bytes, path: PathLike, max_bytes: int) -> bytes:
  zstandard = _zstandard(path)
  try:
    size = zstandard.frame_content_size(frame)
    if not 0 <= size <= max_bytes:
      raise ModelFileError(f"{path}: decompresses to {size} bytes, more than max_bytes={max_bytes}")
    return bytes(zstandard.ZstdDecompressor().decompress(frame))
  except zstandard.ZstdError as error:
    raise ModelFileError(f"{path}: is damaged: {error}") from error


def _zstandard(path: PathLike) -> Any:
  try:
    import zstandard
  except ImportError:
    raise ModelFileError(
      f"{path}: is compressed by zstd, for which the package zstandard is needed; the extra"
      " `export` brings it"
    ) from None
  return zstandard
