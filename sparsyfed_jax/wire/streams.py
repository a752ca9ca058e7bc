"""The second stage of a payload: what is alike together, each stream in a frame of zstd.

Exponents of trained weights are few, their last bits are noise, and positions are neither. So the
first bytes of all values make a stream, the second ones another, and all else a third.
"""

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from sparsyfed_jax.wire.reader import CodecError, Reader

Part: TypeAlias = bytes | memoryview | np.ndarray  # an array holds values

_WIDTHS = (2, 4, 8, 1)  # bytes of values that are taken apart, by their bits of the flags
_WINDOW_LOG = 20  # a reader keeps as many bytes of each stream


def compress(parts: Sequence[Part], level: int) -> list[bytes]:
  """Writes the parts of a payload as streams.

  Raises:
    ValueError: zstd has no such level, or the package zstandard is missing.
  """
  zstd = _zstandard(ValueError)
  if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= 22:
    raise ValueError(f"compression_level={level!r}: must be None or an int from 1 to 22")
  rest: list[Part] = []
  values: dict[int, list[np.ndarray]] = {}
  for part in parts:
    if isinstance(part, np.ndarray) and part.itemsize in _WIDTHS:
      values.setdefault(part.itemsize, []).append(part)
    else:
      rest.append(part)
  streams = [b"".join(map(as_bytes, rest))]
  for width in sorted(values):
    columns = np.concatenate(values[width]).view(np.uint8).reshape(-1, width)
    streams += [columns[:, i].tobytes() for i in range(width)]
  settings = zstd.ZstdCompressionParameters.from_level(
    level, window_log=_WINDOW_LOG, write_content_size=False, write_checksum=False
  )
  frames = [zstd.ZstdCompressor(compression_params=settings).compress(each) for each in streams]
  widths = sum(1 << _WIDTHS.index(width) for width in values)
  return [bytes([widths]), *(struct.pack("<I", len(frame)) for frame in frames), *frames]


def decompress(reader: Reader) -> Reader:
  """Makes a reader of what `compress` wrote, which unpacks only what is asked for.

  Raises:
    CodecError: the package zstandard is missing, or the streams are damaged.
  """
  zstd = _zstandard(CodecError)
  flags = reader.uint(1)
  if flags >= 1 << len(_WIDTHS):
    raise CodecError(f"widths of values must be below {1 << len(_WIDTHS)}, found {flags}")
  widths = sorted(width for i, width in enumerate(_WIDTHS) if flags >> i & 1)
  sizes = [reader.uint(4) for _ in range(1 + sum(widths))]
  # A reader each, as a context of zstd reads one frame at a time.
  frames = [_Frame(zstd, reader.take(size)) for size in sizes]
  if left := reader.left():
    raise CodecError(f"{left} bytes follow the last stream")
  planes = iter(frames[1:])
  return Reader(frames[0], {width: [next(planes) for _ in range(width)] for width in widths})


def as_bytes(part: Part) -> bytes | memoryview:
  """Sees a part as bytes."""
  return part.data if isinstance(part, np.ndarray) else part


class _Frame:
  """The source of a reader: a frame of zstd, unpacked as far as it is read."""

  def __init__(self, zstd: Any, frame: bytes | memoryview) -> None:
    self._error = zstd.ZstdError
    context = zstd.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
    self._stream = context.stream_reader(frame, read_across_frames=False)

  def left(self) -> int:
    """Reads one byte more; returns 1 if there was one, else 0."""
    return len(self._read(1))

  def take(self, count: int) -> bytes:
    """The next bytes; CodecError where there are fewer."""
    taken = self._read(count)
    if len(taken) < count:
      raise CodecError(f"{count} bytes announced, {len(taken)} left")
    return taken

  def _read(self, count: int) -> bytes:
    parts = []
    while count:  # a stream may give less than it is asked for
      try:
        part = self._stream.read(min(count, _AT_ONCE))
      except self._error as error:
        raise CodecError(f"a stream is damaged: {error}") from error
      if not part:
        break
      parts.append(part)
      count -= len(part)
    return b"".join(parts)


_AT_ONCE = 2**20  # bytes: what is announced may not be there


def _zstandard(error: type[ValueError]) -> Any:
  try:
    import zstandard
  except ImportError:
    raise error(
      "compression by zstd needs the package zstandard, which the extra `export` brings"
    ) from None
  return zstandard
