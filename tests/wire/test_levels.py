"""Values in 8 or 4 bits: without bias, on levels to the bit, and no zeros where there were none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.wire import CodecError, decode, dequantise, encode, quantise
from sparsyfed_jax.wire.levels import codes_of, ends_of, values_of
from sparsyfed_jax.wire.rounding import round_to_levels
from sparsyfed_jax.wire.schema import HEADER_BYTES
from tests.wire.fuzz_codec import assert_same_bits, with_crc

BITS = pytest.mark.parametrize("bits", [8, 4])


@jax.jit
def draw_8(x, key):
  return dequantise(quantise(x, 8, key), 8)


@jax.jit
def draw_4(x, key):
  return dequantise(quantise(x, 4, key), 4)


def draw(x, bits, key=0):
  return (draw_8 if bits == 8 else draw_4)(x, jax.random.key(key))


def entries(seed=0, scale=1.0, offset=0.0, size=500):
  rng = np.random.default_rng(seed)
  return np.float32((scale * (rng.normal(size=size) + offset)) * (rng.random(size) < 0.4))


@BITS
def test_without_bias(bits):
  x, num_draws = entries(size=60), 4000
  run = jax.vmap(lambda key: dequantise(quantise(x, bits, key), bits))
  drawn = np.asarray(run(jax.random.split(jax.random.key(3), num_draws)), np.float64)
  step = (np.abs(x).max() - np.abs(x[x != 0]).min()) / (2 ** (bits - 1) - 2)
  assert np.abs(drawn - x).max() < 1.0001 * step
  # A draw between two levels has a standard deviation of half a step at most.
  assert np.abs(drawn.mean(axis=0) - x).max() < 4.5 * 0.5 * step / np.sqrt(num_draws)
  nearest = np.asarray(dequantise(quantise(x, bits), bits))
  assert np.abs(nearest - x).max() < 0.5001 * step
  assert np.abs(nearest - x).max() > 5 * np.abs(drawn.mean(axis=0) - x).max()  # it has one
  assert np.ptp(drawn, axis=0).max() > 0.9 * step


@BITS
@pytest.mark.parametrize(
  ("scale", "offset"), [(1, 0), (1e-3, 1), (1e-30, 0), (1e30, 0), (1, 1000), (1e-37, 0)]
)
def test_levels_stay_as_they_are_on_host_and_device(bits, scale, offset):
  x = entries(scale=scale, offset=offset)
  levels = quantise(x, bits, jax.random.key(0))
  y = np.asarray(draw(x, bits))
  np.testing.assert_array_equal(y != 0, x != 0)
  assert np.all(np.signbit(y) == (np.signbit(x) & (x != 0)))
  assert ends_of(y) == (levels.least, levels.largest)
  codes = codes_of(y, *ends_of(y), bits)
  assert_same_bits(values_of(codes, *ends_of(y), bits), y)
  assert_same_bits(values_of(np.asarray(levels.codes), *ends_of(y), bits), y)
  assert_same_bits(np.asarray(draw(y, bits, 1)), y)


def test_by_hand():
  x = np.float32([0, 1, -8, 4.4, 3.2, -0.0])
  levels = quantise(x, 4)
  assert levels.codes.tolist() == [0, 1, 8 + 7, 4, 3, 0]
  assert float(levels.least) == 1 and float(levels.largest) == 8
  step = 7 / 6
  expected = np.float32([0, 1, -8, 1 + 3 * step, 1 + 2 * step, 0])
  np.testing.assert_allclose(dequantise(levels, 4), expected, rtol=1e-6)
  assert codes_of(x, np.float32(1), np.float32(8), 4).tolist() == [0, 1, 15, 4, 3, 8]
  # Of a reference: beyond the ends.
  beyond = np.float32([0.2, 100, -100])
  assert codes_of(beyond, np.float32(1), np.float32(8), 4).tolist() == [1, 7, 15]


@BITS
@pytest.mark.parametrize("x", [[0.0, 0.0], [], [3.0, 0.0, -3.0], [1e-45, 0.0], [-0.0]])
def test_of_few_values(x, bits):
  x = np.float32(x)
  y = np.asarray(draw(x, bits))
  expected = np.where(x == 0, 0, np.copysign(np.maximum(np.abs(x), 2.0**-126), x))
  np.testing.assert_array_equal(y, expected)


@BITS
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_leaves_nothing_finite(bad, bits):
  y = np.asarray(draw(np.float32([0, 1, bad, -2]), bits))
  assert not np.isfinite(y[1:]).any() and y[0] == 0


def test_of_a_tree_arrays_of_two_axes_alone_are_rounded():
  tree = {"kernel": jnp.float32(entries()).reshape(50, 10), "bias": jnp.float32(entries())}
  tree |= {"counts": jnp.arange(6).reshape(2, 3)}
  rounded = round_to_levels(tree, 8, jax.random.key(0))
  for name in ("bias", "counts"):
    assert rounded[name] is tree[name]
  assert np.unique(np.abs(rounded["kernel"])).size <= 128
  other = round_to_levels({"a": tree["kernel"], "b": tree["kernel"]}, 8, jax.random.key(0))
  assert np.any(other["a"] != other["b"])  # each has its own chance


@pytest.mark.parametrize("bits", [0, 2, 16])
def test_other_numbers_of_bits_are_refused(bits):
  with pytest.raises(ValueError, match=f"bits={bits}: must be 8 or 4"):
    quantise(jnp.ones(3), bits)


# On the wire.


def model(seed=0):
  rng = np.random.default_rng(seed)
  mask = rng.random((40, 50)) < 0.1
  return {
    "kernel": np.float32(rng.normal(size=mask.shape) * mask),
    "bias": np.float32(rng.normal(size=7)),
    "double": rng.normal(size=(2, 2)),
    "count": np.int32([[1, 2]]),
  }


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_payloads_have_the_nearest_levels(name, bits):
  tree = model()
  expected = np.asarray(dequantise(quantise(tree["kernel"], bits), bits))
  for level in (None, 3):
    found = decode(encode(tree, None, name, compression_level=level))
    np.testing.assert_allclose(found["kernel"], expected, rtol=2e-6)
    plain = decode(encode(tree, None, "bfloat16"))
    for other in ("bias", "double", "count"):
      assert_same_bits(found[other], plain[other])
    again = encode(found, None, name, compression_level=level)
    assert_same_bits(decode(again), found)
    assert len(again) == len(encode(tree, None, name, compression_level=level)) or level


def test_drawn_levels_are_sent_to_the_bit():
  old, tree = model(), model()
  tree["kernel"] = np.asarray(round_to_levels(tree["kernel"], 8, jax.random.key(5)))
  tree["bias"], tree["double"] = np.float32([1, 2, 4, 0, 1, -1, 8]), np.zeros((2, 2))
  for options in ((None, False), (3, False), (3, True)):
    assert_same_bits(decode(encode(tree, old, "int8", False, *options), old), tree)


def test_payload_by_hand():
  tree = np.float32([[0, 1, -8], [4.4, 3.2, 0]])
  payload = encode(tree, None, "int4")
  ends = np.float32([1, 8]).tobytes()
  schema = bytes([16 + 11, 2, 2, 0, 0, 0, 3, 0, 0, 0])
  values = bytes([0 | 1 << 4, 15 | 4 << 4, 3 | 0 << 4])  # dense: six codes in three bytes
  flags = 2 << 1 | 64
  assert payload == with_crc(b"SFJ" + bytes([2, flags]) + schema + b"\0" + ends + values)


def body(flags, ends, values):
  schema = bytes([16 + 11, 2, 1, 0, 0, 0, 3, 0, 0, 0])
  ends = np.float32(ends).tobytes()
  return with_crc(b"SFJ" + bytes([2, flags]) + schema + b"\0" + ends + bytes(values))


@pytest.mark.parametrize(
  ("payload", "message"),
  [
    (body(4 | 32, (2, 1), [1, 2, 3]), "levels must go from 0 or more"),
    (body(4 | 32, (-1, 1), [1, 2, 3]), "levels must go from 0 or more"),
    (body(4 | 32, (1, np.inf), [1, 2, 3]), "levels must go from 0 or more"),
    (body(4 | 32, (np.nan, 1), [1, 2, 3]), "levels must go from 0 or more"),
    (body(4 | 32, (1, 2), [1, 2]), "3 bytes announced, 2 left"),
    (body(4 | 32, (1, 2), [1, 128, 3]), "a value is -0.0"),
    (body(4 | 64, (1, 2), [1, 0x10]), "bits that fill up a byte are not 0"),
    (body(32, (1, 2), [1, 2, 3]), "flags 32 are unknown"),
    (body(4 | 32 | 64, (1, 2), [1, 2, 3]), "flags 100 are unknown"),
    (body(4 | 128, (1, 2), [1, 2, 3]), "flags 132 are unknown: differences need"),
  ],
)
def test_damaged_levels_are_refused(payload, message):
  with pytest.raises(CodecError, match=message):
    decode(payload)
  assert len(payload) > HEADER_BYTES


def test_what_has_no_level_is_refused():
  with pytest.raises(ValueError, match="leaf 'k': has what is not finite; value_dtype=int8"):
    encode({"k": np.float32([[1, np.nan]])}, None, "int8")
