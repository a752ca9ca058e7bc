"""A model as one file: what it is and how its inputs are scaled, then its weights, zeros left out.

All numbers are little-endian::

    file       "SFED", version, uint32 length of the header, header, weights, crc32 of all before
    header     what `write` was given, a JSON object, UTF-8; in version 2 as a frame of zstd
    weights    a payload of `sparsyfed_jax.wire`, in version 2 with its second stage
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
_PLAIN, _COMPRESSED = VERSIONS = (1, 2)
SUFFIX = ".sfed"
COMPRESSIONS = (None, "zstd")
_HEAD = len(MAGIC) + 1 + 4
_CRC = 4
_LEVEL = 19  # of zstd: a third of a second for eleven million weights of which 5 % are not zero
_MAX_HEADER = 2**24  # bytes that a compressed one may become


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
  header = json.dumps(
    json_value(dict(description)), allow_nan=False, separators=(",", ":")
  ).encode()
  if compression:
    header = _zstandard(path).ZstdCompressor(level=_LEVEL).compress(header)
  payload = encode(
    variables, value_dtype=value_dtype, compression_level=_LEVEL if compression else None
  )
  version = _COMPRESSED if compression else _PLAIN
  content = b"".join([MAGIC, bytes([version]), len(header).to_bytes(4, "little"), header, payload])
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
  version = content[len(MAGIC)]
  if version not in VERSIONS:
    known = " and ".join(map(str, VERSIONS))
    raise ModelFileError(f"{path}: has version {version}; this reads versions {known}")
  if zlib.crc32(content[:-_CRC]) != int.from_bytes(content[-_CRC:], "little"):
    raise ModelFileError(f"{path}: is damaged: its crc32 does not fit")
  end = _HEAD + int.from_bytes(content[_HEAD - 4 : _HEAD], "little")
  header = content[_HEAD:end]
  if version == _COMPRESSED:
    header = _decompressed(header, path)
  try:
    description = json.loads(header.decode())
  except (ValueError, RecursionError) as error:
    raise ModelFileError(f"{path}: its header is not JSON ({error})") from error
  if not isinstance(description, dict) or end > len(content) - _CRC:
    raise ModelFileError(f"{path}: its header must be a JSON object within the file")
  if description.pop("compression", None) is not None:
    raise ModelFileError(f"{path}: was compressed by an early version; export the model again")
  try:
    variables = decode(content[end:-_CRC], max_bytes=max_bytes)
  except CodecError as error:
    raise ModelFileError(f"{path}: {error}") from error
  if not isinstance(variables, dict) or "params" not in variables:
    raise ModelFileError(f"{path}: its weights must be a dict with `params`")
  return ModelFile(description, variables)


def _decompressed(frame: bytes, path: PathLike) -> bytes:
  zstandard = _zstandard(path)
  try:
    size = zstandard.frame_content_size(frame)
    if not 0 <= size <= _MAX_HEADER:
      raise ModelFileError(f"{path}: has a header of {size} bytes, may have {_MAX_HEADER}")
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
