"""The second stage of payloads: lossless, smaller, bounded, and refused in a line."""

import numpy as np
import pytest

from sparsyfed_jax.wire import codec
from sparsyfed_jax.wire.schema import DTYPES
from sparsyfed_jax.wire.streams import compress
from tests.wire.fuzz_codec import assert_same_bits, corpus, draw_leaf, with_crc

zstandard = pytest.importorskip("zstandard")


def weights(seed=0, size=20_000):
  """As trained weights are: close to 0, and zero at most places."""
  rng = np.random.default_rng(seed)
  mask = rng.random(size) < 0.05
  return {"kernel": np.float32(rng.normal(0, 0.05, size) * mask), "bias": np.float32([1, 2])}


def test_every_payload_survives():
  num_apart = 0
  for payload, reference in corpus():
    tree = codec.decode(payload, reference)
    num_apart += payload[4] >= 16
    for level in (1, 19):
      again = codec.encode(tree, reference, None, True, level)
      assert_same_bits(codec.decode(again, reference), tree)
  assert num_apart > 50


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tree_of_many_widths(dtype):
  rng = np.random.default_rng(0)
  tree = {name: draw_leaf(rng, name, (40, 3), 0.4) for name in (dtype, "bool", "bfloat16", "int64")}
  assert_same_bits(codec.decode(codec.encode(tree, None, None, True, 3)), tree)


def test_values_are_smaller_than_in_one_frame():
  for value_dtype, gain in ((None, 1.13), ("bfloat16", 1.27)):
    plain = codec.encode(weights(), value_dtype=value_dtype)
    apart = codec.encode(weights(), value_dtype=value_dtype, compression_level=19)
    whole = zstandard.ZstdCompressor(level=19).compress(plain)
    assert len(apart) < len(whole) and len(plain) > gain * len(apart)
    assert_same_bits(codec.decode(apart), codec.decode(plain))


def frames(*contents, widths=0, window_log=20):
  """A payload whose streams hold anything."""
  settings = zstandard.ZstdCompressionParameters.from_level(
    3, window_log=window_log, write_content_size=False
  )
  made = [zstandard.ZstdCompressor(compression_params=settings).compress(each) for each in contents]
  sizes = b"".join(len(each).to_bytes(4, "little") for each in made)
  return with_crc(b"SFJ\2\x10" + bytes([widths]) + sizes + b"".join(made))


INT8 = bytes([17, 1]) + (3).to_bytes(4, "little")  # the schema of three numbers
INT16 = bytes([19, 1]) + (3).to_bytes(4, "little")


def test_streams_by_hand():
  np.testing.assert_array_equal(codec.decode(frames(INT8 + b"\0\1\2\3")), np.int8([1, 2, 3]))
  found = codec.decode(frames(INT16 + b"\0", b"\1\2\3", b"\0\0\1", widths=1))
  np.testing.assert_array_equal(found, np.int16([1, 2, 259]))


@pytest.mark.parametrize(
  ("payload", "message"),
  [
    (frames(INT8 + b"\0\1\2"), "3 bytes announced, 2 left"),
    (frames(INT8 + b"\0\1\2\3\4"), "1 bytes follow the last leaf"),
    (frames(INT16 + b"\0", b"\1\2\3", b"\0\0", widths=1), "3 bytes announced, 2 left"),
    (frames(INT16 + b"\0", b"\1\2\3", b"\0\0\1\2", widths=1), "1 bytes follow the last leaf"),
    (frames(INT8 + b"\0\1\2\3", widths=16), "widths of values must be below 16, found 16"),
    (frames(INT8 + b"\0\1\2\3", b""), "bytes follow the last stream"),
    (frames(INT8 + b"\0\1\2\3", widths=1), "19 bytes announced, 11 left"),
    (with_crc(b"SFJ\2\x10\0" + bytes([5, 0, 0, 0]) + b"nothi"), "a stream is damaged: "),
  ],
)
def test_streams_that_are_damaged_are_refused(payload, message):
  with pytest.raises(codec.CodecError, match=message):
    codec.decode(payload)


def test_what_is_announced_is_unpacked_and_no_more():
  # Thirty-two million bytes in a few thousand, of which a leaf of three asks for four.
  bomb = frames(INT8 + b"\0\1\2\3" + bytes(2**25))
  assert len(bomb) < 5000
  with pytest.raises(codec.CodecError, match="1 bytes follow the last leaf"):
    codec.decode(bomb, max_bytes=1000)
  large = bytes([17, 1]) + (2**25).to_bytes(4, "little") + b"\0" + bytes(2**25)
  with pytest.raises(codec.CodecError, match="max_bytes=1000"):
    codec.decode(frames(large), max_bytes=1000)


def test_a_frame_of_a_large_window_is_refused():
  payload = frames(np.random.default_rng(0).bytes(2**22), window_log=24)
  with pytest.raises(codec.CodecError, match="a stream is damaged: .*memory"):
    codec.decode(payload)


@pytest.mark.parametrize("level", [0, 23, True, 3.0, "zstd"])
def test_levels_that_zstd_does_not_have_are_refused(level):
  right = f"compression_level={level!r}: must be None or an int from 1 to 22"
  with pytest.raises(ValueError, match=right):
    codec.encode(weights(), compression_level=level)
  with pytest.raises(ValueError, match=right):
    compress([b""], level)


def test_the_package_is_named_where_it_is_missing(monkeypatch):
  payload = codec.encode(weights(), compression_level=1)
  monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
  right = "compression by zstd needs the package zstandard, which the extra `export` brings"
  with pytest.raises(codec.CodecError, match=right):
    codec.decode(payload)
  with pytest.raises(ValueError, match=right):
    codec.encode(weights(), compression_level=1)
