"""The bytes of a serialised tf.Example, parsed without TensorFlow.

The messages are those of tensorflow/core/example/{example,feature}.proto: an Example has Features
in field 1, these a map of names (1) to Feature (2) in field 1, and a Feature one list of bytes (1),
floats (2) or int64 (3), whose values are in field 1, packed or one by one.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

Value: TypeAlias = list[bytes] | np.ndarray

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def parse(data: bytes) -> dict[str, Value]:
  r"""Parses a tf.Example.

  Args:
    data: its serialised bytes.

  Returns:
    Each feature by its name: a list of bytes, float32 or int64.

  Raises:
    ValueError: they are no tf.Example.

  Example:
    >>> parse(bytes.fromhex("0a0d0a0b0a017812061a040a020700"))
    {'x': array([7, 0])}
  """
  found: dict[str, Value] = {}
  for number, kind, features in _fields(data):
    if number == 1 and kind == _BYTES:
      for inner, inner_kind, entry in _fields(features):
        if inner == 1 and inner_kind == _BYTES:
          name, value = _entry(entry)
          found[name] = value
  return found


def _entry(data: bytes) -> tuple[str, Value]:
  parts = {number: value for number, kind, value in _fields(data) if kind == _BYTES}
  return parts.get(1, b"").decode("utf-8"), _feature(parts.get(2, b""))


def _feature(data: bytes) -> Value:
  readers = {1: _byte_strings, 2: _floats, 3: _integers}
  for number, kind, content in _fields(data):
    if number in readers and kind == _BYTES:
      return readers[number](content)
  return []


def _byte_strings(data: bytes) -> Value:
  return [value for number, kind, value in _fields(data) if number == 1 and kind == _BYTES]


def _floats(data: bytes) -> Value:
  parts = [value for number, kind, value in _fields(data) if number == 1 and kind != _VARINT]
  return np.frombuffer(b"".join(parts), "<f4").astype(np.float32)


def _integers(data: bytes) -> Value:
  values: list[int] = []
  for number, kind, content in _fields(data):
    if number == 1 and kind == _BYTES:
      at = 0
      while at < len(content):
        value, at = _varint(content, at)
        values.append(value)
    elif number == 1 and kind == _VARINT:
      values.append(_varint(content, 0)[0])
  return np.array([value - 2**64 if value >= 2**63 else value for value in values], np.int64)


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
  """Yields number, kind and bytes of each field of a message."""
  at = 0
  while at < len(data):
    tag, at = _varint(data, at)
    number, kind = tag >> 3, tag & 7
    if kind == _VARINT:
      _, end = _varint(data, at)
    elif kind == _BYTES:
      length, at = _varint(data, at)
      end = at + length
    elif kind in (_FIXED64, _FIXED32):
      end = at + (8 if kind == _FIXED64 else 4)
    else:
      raise ValueError(f"has a field of kind {kind}")
    if end > len(data):
      raise ValueError("is cut short")
    yield number, kind, data[at:end]
    at = end


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """Reads an integer of 7 bits a byte; returns it and where the next byte is."""
  value = shift = 0
  while True:
    if at >= len(data) or shift > 63:
      raise ValueError("is cut short")
    byte = data[at]
    value |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return value, at
