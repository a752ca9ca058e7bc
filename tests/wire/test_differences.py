"""Values as differences to a reference: a bijection, small where the two are close, and checked."""

import jax
import numpy as np
import pytest

from sparsyfed_jax.wire import CodecError, decode, encode
from sparsyfed_jax.wire.differences import add, subtract
from tests.wire.fuzz_codec import assert_same_bits

pytest.importorskip("zstandard")


@pytest.mark.parametrize(
  ("dtype", "width"), [("u1", 4), ("u1", 8), ("u2", 16), ("u4", 32), ("u8", 64)]
)
def test_differences_can_be_undone(dtype, width):
  rng = np.random.default_rng(0)
  new, old = rng.integers(0, 2**width - 1, (2, 3000), dtype, endpoint=True)
  numbers = subtract(new, old, width)
  assert numbers.dtype == new.dtype and (width == 64 or int(numbers.max()) < 2**width)
  np.testing.assert_array_equal(add(numbers, old, width), new)
  assert not subtract(new, new, width).any()


def test_of_all_values_of_four_bits_each_has_its_own():
  every = np.arange(16, dtype=np.uint8)
  for old in every:
    assert np.unique(subtract(every, np.full(16, old), 4)).tolist() == every.tolist()


def test_by_hand():
  def of(new, old, dtype):
    bits = (np.array([x], dtype).view(f"u{np.dtype(dtype).itemsize}") for x in (new, old))
    return int(subtract(*bits, 8 * np.dtype(dtype).itemsize)[0])

  def after(x):
    return np.nextafter(np.float32(x), np.float32(np.inf))

  assert [of(1, 1, "f4"), of(1, after(1), "f4"), of(after(1), 1, "f4")] == [0, 1, 2]
  assert of(2, np.nextafter(np.float32(2), np.float32(0)), "f4") == 2  # where exponents change
  assert of(-1, -after(1), "f4") == 2 and of(-after(1), -1, "f4") == 1
  assert [of(0.0, -0.0, "f4"), of(-0.0, 0.0, "f4")] == [2, 1]  # either side of zero


def models(seed=0):
  """As after a round of training: most entries moved by some percent, a few came and went."""
  rng = np.random.default_rng(seed)
  old = {
    "kernel": np.float32(rng.normal(size=(100, 90)) * (rng.random((100, 90)) < 0.1)),
    "bias": np.float32(rng.normal(size=90)),
    "scores": rng.normal(size=(30, 3)),
    "half": rng.normal(size=(20, 3)).astype(np.float16),
    "count": np.int64([5, -1, 0]),
    "mask": rng.random((9, 9)) < 0.5,
  }

  def move(leaf):
    if leaf.dtype == bool or leaf.dtype.kind == "i":
      return leaf.copy()
    moved = leaf * (1 + 0.02 * rng.normal(size=leaf.shape))
    moved = np.where(rng.random(leaf.shape) < 0.01, 0, moved)
    return np.where(rng.random(leaf.shape) < 0.003, 0.7, moved).astype(leaf.dtype)

  return jax.tree.map(move, old), old


@pytest.mark.parametrize("value_dtype", [None, "float32", "bfloat16", "float16", "int8", "int4"])
@pytest.mark.parametrize("signs", [False, True])
def test_differences_say_the_same_in_fewer_bytes(value_dtype, signs):
  new, old = models()
  way = old, value_dtype, signs
  plain, streams = encode(new, *way), encode(new, *way, 3)
  small = encode(new, *way, 3, True)
  assert_same_bits(decode(small, old), decode(plain, old))
  assert_same_bits(decode(streams, old), decode(plain, old))
  assert len(small) < 0.92 * len(streams) < len(plain)


def test_special_values_survive():
  bits = np.uint32([0, 1, 0x80000000, 0x80000001, 0x7F800000, 0xFF800000, 0x7FC00001, 0x3F800000])
  old, new = (np.tile(bits, 8).view(np.float32), np.repeat(bits, 8).view(np.float32))
  for shape in ((64,), (8, 8)):
    pair = new.reshape(shape), old.reshape(shape)
    assert_same_bits(decode(encode(*pair, None, True, 1, True), pair[1]), pair[0])
    # A reference may be anything, even where values are rounded.
    finite = np.where(np.isfinite(pair[0]), pair[0], 1)
    for value_dtype in ("bfloat16", "int8", "int4"):
      small = encode(finite, pair[1], value_dtype, True, 1, True)
      assert_same_bits(decode(small, pair[1]), decode(encode(finite, None, value_dtype, True)))


def test_a_reference_of_other_values_is_refused():
  new, old = models()
  other = jax.tree.map(np.copy, old)
  place = np.flatnonzero(other["kernel"])[0]
  other["kernel"].reshape(-1)[place] *= 2
  assert_same_bits(decode(encode(new, old), other), decode(encode(new, old), old))
  with pytest.raises(CodecError, match="against another reference: its values are others"):
    decode(encode(new, old, compression_level=1, differences=True), other)


@pytest.mark.parametrize("options", [dict(), dict(compression_level=1), dict(reference=np.ones(3))])
def test_differences_need_a_reference_and_streams(options):
  with pytest.raises(ValueError, match="differences=True: needs a reference and a compression_"):
    encode(np.ones(3), differences=True, **options)
