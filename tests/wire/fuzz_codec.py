"""Damaged and hostile payloads for the codec: python tests/wire/fuzz_codec.py --payloads=200000.

Whatever the bytes, `decode` returns a tree or raises CodecError, at once and in little memory. What
it returns must survive being encoded and decoded again, to the bit, and so must its equals.
"""

import argparse
import sys
import time
import tracemalloc
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsyfed_jax.wire import codec, streams
from sparsyfed_jax.wire.rounding import LEVEL_BITS, VALUE_DTYPES
from sparsyfed_jax.wire.schema import DTYPES

MAX_BYTES = 2**16
MAX_SECONDS = 1.0
# For the positions of a leaf of one byte an entry, for bitmaps, and for Python's own objects.
PEAK_BYTES = 8 * MAX_BYTES + 2**17
PEAK_PER_BYTE = 64
EXTREMES = (0, 1, 2, 7, 2**8, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


class Entry(NamedTuple):
  """A payload as `encode` made it, and what it was encoded against."""

  payload: bytes
  reference: Any


class Summary(NamedTuple):
  accepted: int
  refused: int
  seconds: float
  slowest: float  # seconds
  peak: int  # bytes


def draw_leaf(rng, dtype, shape, density):
  """Random bits, -0.0, subnormals and NaNs among them, at a share of the places."""
  dtype = jax.numpy.dtype(dtype)
  size = int(np.prod(shape))
  mask = rng.random(size) < density
  if dtype == np.bool_:
    return mask.reshape(shape)
  width = 8 * dtype.itemsize
  bits = rng.integers(1, 2**width, size, f"u{dtype.itemsize}")
  special = np.array([1, 2 ** (width - 1), 2**width - 1], bits.dtype)
  bits = np.where(rng.random(size) < 0.2, rng.choice(special, size), bits)
  return np.where(mask, bits, np.zeros_like(bits)).view(dtype).reshape(shape)


def draw_change(rng, old, share):
  """Another leaf whose zeros differ from those of `old` at some places only."""
  mask = (np.ravel(old).view(f"u{old.dtype.itemsize}") != 0) ^ (rng.random(old.size) < share)
  new = draw_leaf(rng, old.dtype, (old.size,), 1.0)
  return np.where(mask, new, np.zeros_like(new)).reshape(old.shape)


def corpus():
  """Every form of every dtype, alone and in trees, with and without reference and rounding."""
  rng = np.random.default_rng(0)
  entries = []

  def add(tree, reference=None, value_dtype=None):
    ways = [(None, False), (1, False), *([] if reference is None else [(1, True)])]
    for keep_signed_zeros in (False, True):
      for way in ways:
        payload = codec.encode(tree, reference, value_dtype, keep_signed_zeros, *way)
        entries.append(Entry(payload, reference))

  for tree in ({}, (), [], None, {"a": {}, "b": [None, ()]}, np.float32(1), {"": np.zeros(0)}):
    add(tree)
  for dtype in DTYPES:
    leaves = {
      "full": draw_leaf(rng, dtype, (3, 5), 1.0),
      "half": draw_leaf(rng, dtype, (10, 9), 0.5),
      "few": draw_leaf(rng, dtype, (400,), 0.03),
      "one": draw_leaf(rng, dtype, (1,), 1.0),
      "none": draw_leaf(rng, dtype, (2, 3, 4), 0.0),
      "nothing": draw_leaf(rng, dtype, (0, 3), 0.0),
      "scalar": draw_leaf(rng, dtype, (), 1.0),
    }
    add(leaves)
    for name in ("full", "half", "few"):
      add(leaves[name])
    old = [draw_leaf(rng, dtype, (300,), density) for density in (0.0, 0.1, 0.5, 1.0)]
    add([draw_change(rng, leaf, 0.02) for leaf in old], old)
    add([draw_change(rng, leaf, 0.2) for leaf in old], old)
    add(old, old)
  for value_dtype in VALUE_DTYPES[1:]:
    old = {"x": rng.normal(size=200) * (rng.random(200) < 0.2)}
    old["y"] = old["x"].astype(np.float32)
    new = jax.tree.map(lambda x: np.where(rng.random(200) < 0.02, 0, 2 * x).astype(x.dtype), old)
    add(new, None, value_dtype)
    add(new, old, value_dtype)
  for value_dtype in LEVEL_BITS:
    for density in (0.0, 0.05, 0.5, 1.0):
      mask = rng.random((20, 15)) < density
      old = {"x": np.float32(rng.normal(size=(20, 15)) * mask), "y": np.float32([1, 0, -3])}
      is_other = rng.random(mask.shape) < 0.02
      new = {"x": np.where(is_other, np.float32(mask - 0.5), np.float32(1.1) * old["x"])}
      new["y"] = 2 * old["y"]
      add(new, None, value_dtype)
      add(new, old, value_dtype)
  deep = np.int8(1)
  for _ in range(60):
    deep = (deep,)
  add(deep)
  return entries


def with_crc(body: bytes) -> bytes:
  return body + zlib.crc32(body).to_bytes(4, "little")


def streamed(payload: bytes) -> bytes:
  """Puts what follows the flags of a payload without streams into one stream."""
  flags, rest = payload[4], payload[5:-4]
  if flags >= 16:
    return payload
  return with_crc(payload[:4] + bytes([flags | 16]) + b"".join(streams.compress([rest], 1)))


def mutant(rng, entries: list[Entry]) -> Entry:
  """Damages a payload in one to four ways; mostly behind the magic, mostly with the right crc."""

  def number(stop: int) -> int:
    return int(rng.random() * max(stop, 1))  # much faster than `integers`

  entry = entries[number(len(entries))]
  data = bytearray(entry.payload)
  for _ in range(1 + number(4)):
    first = 0 if number(20) == 0 else 4
    at = first + number(len(data) - first)
    length = 1 + number(16)
    match number(8):
      case 0:
        data[at : at + 1] = bytes([data[at] ^ 1 << number(8)]) if at < len(data) else b""
      case 1:
        data[at : at + 1] = bytes([number(256)])
      case 2:
        del data[at:]
      case 3:
        data[at:at] = rng.bytes(length)
      case 4:
        data[at:at] = data[at : at + length]
      case 5:
        del data[at : at + length]
      case 6:
        other = entries[number(len(entries))].payload
        data[at:] = other[number(len(other)) :]
      case 7:
        extreme = EXTREMES[number(len(EXTREMES))]
        data[at : at + 4] = extreme.to_bytes(4, "little")
  payload = with_crc(bytes(data[:-4])) if number(10) else bytes(data)
  if number(5) == 0 and len(payload) > 9:
    payload = streamed(payload)
  reference = entry.reference if number(50) else entries[number(len(entries))].reference
  return Entry(payload, reference)


def assert_same_bits(actual, expected) -> None:
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check(entry: Entry) -> tuple[bool, float, int]:
  """Decodes; returns whether that gave a tree, the seconds, and the bytes at the peak."""
  tracemalloc.reset_peak()
  before, _ = tracemalloc.get_traced_memory()
  start = time.thread_time()
  tree, accepted = None, True
  try:
    tree = codec.decode(entry.payload, entry.reference, MAX_BYTES)
  except codec.CodecError as error:
    accepted = False
    assert "\n" not in str(error)
  seconds = time.thread_time() - start
  peak = tracemalloc.get_traced_memory()[1] - before
  assert seconds < MAX_SECONDS, f"{seconds} s for {len(entry.payload)} bytes"
  assert peak < PEAK_BYTES + PEAK_PER_BYTE * len(entry.payload), f"{peak} bytes allocated"
  if accepted:
    signed = codec.encode(tree, entry.reference, keep_signed_zeros=True)
    again = codec.decode(signed, entry.reference)
    assert_same_bits(again, tree)
    differences = entry.reference is not None
    again = codec.encode(tree, entry.reference, None, True, 1, differences)
    assert_same_bits(codec.decode(again, entry.reference), tree)
    plain = codec.encode(tree, entry.reference)
    with np.errstate(invalid="ignore"):  # NaNs of bfloat16
      unsigned = jax.tree.map(lambda x: np.where(x == 0, np.zeros_like(x), x), tree)
    assert plain == codec.encode(unsigned, entry.reference)
    assert_same_bits(codec.decode(plain, entry.reference), unsigned)
  return accepted, seconds, peak


def run(payloads: int, seed: int, progress: int = 0) -> Summary:
  """Checks mutants; the first that fails is named in the exception."""
  entries = corpus()
  rng = np.random.default_rng(seed)
  accepted, slowest, highest = 0, 0.0, 0
  start = time.perf_counter()
  was_tracing = tracemalloc.is_tracing()
  tracemalloc.start()
  try:
    for entry in entries:  # as they are, which also warms up
      assert check(entry)[0]
    for i in range(payloads):
      entry = mutant(rng, entries)
      try:
        result, seconds, peak = check(entry)
      except Exception as error:
        error.add_note(f"payload {i} of seed {seed}: {entry.payload.hex()}")
        raise
      accepted += result
      slowest, highest = max(slowest, seconds), max(highest, peak)
      if progress and (i + 1) % progress == 0:
        print(f"{i + 1} payloads, {accepted} accepted, {time.perf_counter() - start:.0f} s")
  finally:
    if not was_tracing:
      tracemalloc.stop()
  return Summary(accepted, payloads - accepted, time.perf_counter() - start, slowest, highest)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--payloads", type=int, default=200_000)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  summary = run(arguments.payloads, arguments.seed, progress=20_000)
  print(
    f"{arguments.payloads} payloads: {summary.refused} refused, {summary.accepted} accepted, "
    f"nothing else; {summary.seconds:.0f} s, slowest {1000 * summary.slowest:.1f} ms, "
    f"at most {summary.peak / 1024:.0f} KiB at once"
  )


if __name__ == "__main__":
  sys.exit(main())
