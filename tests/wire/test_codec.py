"""The wire format: lossless to the bit, written as documented, safe to read whatever comes."""

import hashlib
import struct
import zlib
from collections import OrderedDict, namedtuple
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsyfed_jax import trees
from sparsyfed_jax.models import ResNet18
from sparsyfed_jax.wire import codec
from sparsyfed_jax.wire.rounding import VALUE_DTYPES
from sparsyfed_jax.wire.schema import DTYPES
from tests.cases import same_bits
from tests.wire import fuzz_codec
from tests.wire.fuzz_codec import draw_change, draw_leaf, with_crc

quick = settings(deadline=None, max_examples=40)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
Pair = namedtuple("Pair", "a b")


@st.composite
def leaves(draw):
  shape = draw(st.sampled_from([(), (0,), (1,), (7,), (3, 0, 2), (2, 3, 4), (65,), (40, 30)]))
  density = draw(st.sampled_from([0.0, 0.005, 0.05, 0.3, 0.6, 0.97, 1.0]))
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  return draw_leaf(rng, draw(st.sampled_from(DTYPES)), shape, density)


nested = st.recursive(
  st.none() | leaves(),
  lambda nodes: (
    st.dictionaries(st.text(max_size=4), nodes, max_size=4)
    | st.lists(nodes, max_size=3)
    | st.lists(nodes, max_size=3).map(tuple)
  ),
  max_leaves=8,
)


def assert_same(actual, expected):
  """The same structure, dtypes, shapes and bits."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  assert same_bits(actual, expected)
  assert jax.tree.map(np.shape, actual) == jax.tree.map(np.shape, expected)


def changed(tree, share, seed=3):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: draw_change(rng, leaf, share), tree)


# The format once more, entry by entry.


def slow_pack(bits):
  filled = [*bits, *[0] * (-len(bits) % 8)]
  return bytes(
    sum(bit << i for i, bit in enumerate(filled[at : at + 8])) for at in range(0, len(filled), 8)
  )


def slow_positions(positions, size):
  k = len(positions)
  if k in (0, size):
    return b""
  num_low = sum(1 for j in range(1, 40) if size >> j >= k)
  low = [position >> plane & 1 for plane in range(num_low) for position in positions]
  high = [0] * (k + (size - 1 >> num_low))
  for i, position in enumerate(positions):
    high[i + (position >> num_low)] = 1
  coded = slow_pack(low) + slow_pack(high)
  bitmap = slow_pack([i in positions for i in range(size)])
  return bitmap if len(bitmap) <= len(coded) else coded


def slow_leaf(new, old):
  """`new` and `old` have the bytes of every entry; those of a bool are its value."""

  def places(leaf):
    return [i for i, entry in enumerate(leaf) if any(entry)]

  def send(entries):
    return b"" if new.dtype == bool else b"".join(entries)

  entries = [entry.tobytes() for entry in new.reshape(-1)]
  kept = places(entries)
  all_values = slow_pack([any(entry) for entry in entries]) if new.dtype == bool else send(entries)
  values = send([entries[i] for i in kept])
  forms = [
    b"\0" + all_values,
    b"\1" + struct.pack("<I", len(kept)) + slow_positions(kept, new.size) + values,
  ]
  if old is not None:
    before = places([entry.tobytes() for entry in old.reshape(-1)])
    free = [i for i in range(new.size) if i not in before]
    dropped = [i for i, place in enumerate(before) if place not in kept]
    grown = [i for i, place in enumerate(free) if place in kept]
    forms.append(
      b"\2"
      + struct.pack("<II", len(grown), len(dropped))
      + slow_positions(dropped, len(before))
      + slow_positions(grown, len(free))
      + values
    )
  return min(forms, key=len)


def slow_payload(new, old=None):
  """Of a single array, whose zeros keep their signs."""
  if old is None:
    number = DTYPES.index(new.dtype.name)
    schema = struct.pack(f"<BB{new.ndim}I", 16 + number, new.ndim, *new.shape)
  else:
    schema = struct.pack("<I", zlib.crc32(f"'' {old.dtype.name}{list(old.shape)}\n".encode()))
    places = slow_pack([any(entry.tobytes()) for entry in old.reshape(-1)])
    schema += hashlib.blake2b(places, digest_size=8).digest()
  flags = (old is not None) + 8
  return with_crc(b"SFJ" + bytes([2, flags]) + schema + slow_leaf(new, old))


def body(dtype, shape, *rest):
  """A payload by hand: a single array without a reference, and what comes behind its schema."""
  number = DTYPES.index(jnp.dtype(dtype).name)
  schema = struct.pack(f"<BB{len(shape)}I", 16 + number, len(shape), *shape)
  return with_crc(b"SFJ\2\0" + schema + b"".join(rest))


def signed(tree, reference=None, value_dtype=None):
  """Encodes with the signs of zeros."""
  return codec.encode(tree, reference, value_dtype, keep_signed_zeros=True)


def unsigned(tree):
  """Makes every -0.0 a 0.0, and leaves all other bits alone."""
  with np.errstate(invalid="ignore"):  # NaNs of bfloat16
    return jax.tree.map(lambda x: np.where(x == 0, np.zeros_like(x), x), tree)


def uint32(*numbers):
  return struct.pack(f"<{len(numbers)}I", *numbers)


@quick
@given(nested)
def test_what_is_decoded_is_what_was_encoded(tree):
  assert_same(codec.decode(signed(tree)), tree)
  assert_same(codec.decode(codec.encode(tree)), unsigned(tree))


@quick
@given(nested, st.sampled_from([0.0, 0.01, 0.3, 1.0]), st.integers(0, 99))
def test_also_against_a_reference(reference, share, seed):
  if reference is None:
    return
  tree = changed(reference, share, seed)
  assert_same(codec.decode(signed(tree, reference), reference), tree)
  assert_same(codec.decode(codec.encode(tree, reference), reference), unsigned(tree))


@quick
@given(leaves(), st.none() | st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_bytes_are_those_of_the_format(old, share):
  if share is None:
    assert signed(old) == slow_payload(old)
  else:
    new = changed(old, share)
    assert signed(new, old) == slow_payload(new, old)


@quick
@given(nested, st.sampled_from([0.0, 0.01, 0.3, 1.0]), st.sampled_from(VALUE_DTYPES))
def test_equal_arrays_have_equal_payloads(old, share, value_dtype):
  rng = np.random.default_rng(1)

  def scatter_signs(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    return np.where((x == 0) & (rng.random(x.shape) < 0.5), -x, x)

  def finite(tree):  # random bits may be too large for value_dtype
    with np.errstate(invalid="ignore"):  # NaNs of bfloat16
      return jax.tree.map(lambda x: (x != 0).astype(x.dtype), tree)

  old, new = finite(old), finite(changed(old, share))
  others = jax.tree.map(scatter_signs, (old, new))
  for a, b in zip(*map(jax.tree.leaves, (others, (old, new))), strict=True):
    np.testing.assert_array_equal(a, b)
  assert codec.encode(others[1], None, value_dtype) == codec.encode(new, None, value_dtype)
  if old is not None:
    expected = codec.encode(new, old, value_dtype)
    assert codec.encode(others[1], others[0], value_dtype) == expected
    assert_same(codec.decode(expected, others[0]), codec.decode(expected, old))


@quick
@given(st.integers(1, 3000), st.data())
def test_positions_are_those_of_the_format(size, data):
  positions = data.draw(st.sets(st.integers(0, size - 1), max_size=60))
  mask = np.isin(np.arange(size), list(positions))
  assert signed(mask) == slow_payload(mask)
  np.testing.assert_array_equal(codec.decode(codec.encode(mask)), mask)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 128])
def test_every_count_of_positions(size):
  for k in range(size + 1):
    mask = np.zeros(size, bool)
    mask[np.linspace(0, size - 1, k).astype(int)] = True
    assert signed(mask) == slow_payload(mask)


def test_elias_fano_by_hand():
  # u = 100 and k = 3 give l = 5 low bits: 4 = 0 00100, 37 = 1 00101, 99 = 11 00011.
  # Planes from the lowest: 011 001 110 000 000, first bit first; the high bits 0, 1 + 1 and 2 + 3.
  positions = bytes([0b11100110, 0b0000000, 0b100101])
  mask = np.isin(np.arange(100), [4, 37, 99])
  assert codec.encode(mask) == body("bool", (100,), b"\1", uint32(3), positions)


def test_huge_gaps():
  mask = np.zeros(2**22, bool)
  mask[[0, 1, 2**21, 2**22 - 1]] = True
  payload = codec.encode(mask)
  assert len(payload) < 60
  np.testing.assert_array_equal(codec.decode(payload), mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
  "form, density, share", [(0, 0.995, None), (1, 0.02, None), (1, 0.02, 0.9), (2, 0.2, 0.001)]
)
def test_every_form_is_taken_where_it_is_smallest(dtype, form, density, share):
  density = 0.5 if dtype == "bool" and form == 0 else density
  leaf = draw_leaf(np.random.default_rng(1), dtype, (3000,), density)
  if share == 0.9:  # a dense reference that says nothing of the places
    reference = draw_leaf(np.random.default_rng(2), dtype, (3000,), 0.5)
  else:
    reference = None if share is None else changed(leaf, share)
  payload = signed(leaf, reference)
  assert payload[5 + (6 if reference is None else 12)] == form
  assert_same(codec.decode(payload, reference), leaf)


def test_arrays_of_all_kinds_are_taken():
  x = np.arange(12, dtype=np.float32).reshape(3, 4)
  tree = FrozenDict({"b": {"jax": jnp.asarray(x), "order": x.T, "step": x[:, ::2]}, "a": (1, True)})
  decoded = codec.decode(codec.encode(tree))
  assert type(decoded) is dict and list(decoded) == ["a", "b"]
  assert_same(
    decoded, {"a": (np.int64(1), np.True_), "b": {"jax": x, "order": x.T, "step": x[:, ::2]}}
  )
  swapped = codec.decode(codec.encode(x.astype(">f4")))
  assert swapped.dtype == np.float32 and np.array_equal(swapped, x)


def test_decoded_arrays_own_their_memory():
  payload = codec.encode([np.ones(9, np.float32), np.eye(9), np.eye(3, dtype=bool)])
  for leaf in codec.decode(payload):
    leaf[:] = 0
  assert all(np.any(leaf) for leaf in codec.decode(payload))


def test_any_pytree_does_against_a_reference():
  reference = Pair(FrozenDict({3: jnp.ones(4)}), OrderedDict(z=np.zeros(5), a=None))
  tree = Pair(FrozenDict({3: jnp.zeros(4)}), OrderedDict(z=np.ones(5), a=None))
  assert_same(codec.decode(codec.encode(tree, reference), reference), tree)


def test_signed_zeros_are_positions_where_they_are_kept():
  x = np.zeros(1000, np.float32)
  x[[3, 500]] = -0.0
  assert np.flatnonzero(np.signbit(codec.decode(signed(x)))).tolist() == [3, 500]
  zeros = codec.encode(np.zeros(1000, np.float32))
  assert len(zeros) < len(signed(x)) < len(zeros) + 15
  assert codec.encode(x) == zeros and not np.signbit(codec.decode(zeros)).any()


def test_a_model_times_its_mask_costs_what_the_masked_model_costs():
  rng = np.random.default_rng(0)
  theta = rng.normal(size=20_000).astype(np.float32)
  mask = rng.random(20_000) < 0.05
  moved = mask.copy()
  moved[[np.flatnonzero(mask)[0], np.flatnonzero(~mask)[0]]] ^= True
  assert np.signbit((theta * mask)[~mask]).any()
  assert codec.encode(theta * mask) == codec.encode(np.where(mask, theta, np.float32(0)))
  reference = np.where(mask, theta, np.float32(0))
  expected = codec.encode(np.where(moved, theta, np.float32(0)), reference)
  assert codec.encode(theta * moved, theta * mask) == expected
  assert len(expected) < 4 * moved.sum() + 50 < len(codec.encode(reference))


@pytest.mark.parametrize("form", [b"\0", b"\1" + struct.pack("<I", 1) + b"\1"])
def test_a_zero_has_no_sign_unless_the_payload_says_so(form):
  rest = form + np.float32([-0.0] if len(form) > 1 else [-0.0, 1]).tobytes()
  with pytest.raises(codec.CodecError, match="a value is -0.0, and the payload does not keep"):
    codec.decode(body("float32", (2,), rest))


def test_other_trees_than_the_reference_are_refused():
  reference = {"w": np.ones((2, 3), np.float32), "b": np.ones(3)}
  for tree in ({"w": reference["w"]}, (1, 2), {**reference, "b": None}):
    with pytest.raises(ValueError, match="one structure"):
      codec.encode(tree, reference)
  for w in (np.ones((3, 2), np.float32), np.ones((2, 3))):
    with pytest.raises(ValueError, match="leaf 'w': float.*in reference"):
      codec.encode({**reference, "w": w}, reference)


def test_other_references_than_the_encoders_are_refused():
  reference = {"w": np.ones((2, 3), np.float32)}
  payload = codec.encode(reference, reference)
  others = (
    {"v": np.ones((2, 3), np.float32)},
    {"w": np.ones((3, 2), np.float32)},
    {"w": np.ones(6)},
  )
  for other in others:
    with pytest.raises(codec.CodecError, match="another reference"):
      codec.decode(payload, other)
  with pytest.raises(codec.CodecError, match="needs the reference"):
    codec.decode(payload)
  assert_same(codec.decode(payload, {"w": -7 * reference["w"]}), reference)  # its values are free
  with pytest.raises(codec.CodecError, match="has no reference"):
    codec.decode(codec.encode(reference), reference)


@pytest.mark.parametrize("num_moved", [1, 3, 200])
@pytest.mark.parametrize("keep_signed_zeros", [False, True])
def test_a_change_decoded_with_the_model_of_another_round_is_refused(num_moved, keep_signed_zeros):
  rng = np.random.default_rng(0)
  mask = rng.permutation(np.arange(4000) < 400)
  other = mask.copy()
  other[np.flatnonzero(mask)[:num_moved]] = False
  other[np.flatnonzero(~mask)[:num_moved]] = True
  reference, later = ({"a": np.ones(3), "w": np.float32(where)} for where in (mask, other))
  payload = codec.encode(later, reference, keep_signed_zeros=keep_signed_zeros)
  assert_same(codec.decode(payload, reference), later)
  with pytest.raises(codec.CodecError, match="another reference: its zeros are at other places"):
    codec.decode(payload, later)


def test_payloads_of_the_version_before_are_refused():
  payload = codec.encode(np.ones(3))
  with pytest.raises(codec.CodecError, match="has version 1; this reads version 2"):
    codec.decode(with_crc(payload[:3] + b"\1" + payload[4:-4]))


def test_whole_numbers_are_sent_exactly():
  steps = {"step": np.int32(2**31 - 1), "seen": np.array([2**62 + 1, -3, 0])}
  for value_dtype in VALUE_DTYPES:
    assert_same(codec.decode(codec.encode(steps, None, value_dtype)), steps)
    again = codec.decode(codec.encode(steps, steps, value_dtype), steps)
    assert_same(again, steps)


@pytest.mark.parametrize(
  "tree, error, message",
  [
    (np.zeros(2, complex), TypeError, "complex128"),
    ({"a": "text"}, TypeError, "leaf 'a'.*str"),
    ({"a": [object()]}, TypeError, "leaf 'a/0'.*object"),
    ({"k": jax.random.key(0)}, TypeError, "leaf 'k'.*key"),
    ({1: np.zeros(2)}, TypeError, "keys must be str.*1"),
    ([Pair(1, 2)], TypeError, "without a reference.*Pair at '0'"),
    ({"\ud800": 1}, ValueError, "UTF-8"),
    ({"a" * 70_000: 1}, ValueError, "65536 bytes"),
    (np.broadcast_to(np.int8(1), (2**31,)), ValueError, "2147483647 entries"),
    ([None] * 2**16, ValueError, "65536 leaves"),
  ],
)
def test_what_cannot_be_written_is_refused(tree, error, message):
  with pytest.raises(error, match=message) as caught:
    codec.encode(tree)
  assert "\n" not in str(caught.value)


def test_depth_is_limited():
  tree = np.ones(1)
  for _ in range(64):
    tree = [tree]
  assert_same(codec.decode(codec.encode(tree)), tree)
  with pytest.raises(ValueError, match="64 deep"):
    codec.encode([tree])
  endless = []
  endless.append(endless)
  with pytest.raises(ValueError, match="64 deep"):
    codec.encode(endless)
  with pytest.raises(codec.CodecError, match="64 deep"):
    codec.decode(with_crc(b"SFJ\2\0" + (b"\2" + uint32(1)) * 10_000))


def test_max_bytes_bounds_what_is_small_on_the_wire():
  zeros = codec.encode({"a": np.zeros(1000), "b": np.zeros(1000, np.float32)})
  assert len(zeros) < 60
  assert codec.decode(zeros, max_bytes=12_000)["a"].size == 1000
  with pytest.raises(codec.CodecError, match="12000 bytes, more than max_bytes=11999"):
    codec.decode(zeros, max_bytes=11_999)
  full = body("bool", (2**31 - 1,), b"\1", uint32(2**31 - 1))
  with pytest.raises(codec.CodecError, match="max_bytes"):
    codec.decode(full)


# Rounding.


def slow_round(x, dtype):
  """The nearest number of a format among the two around x; ties to the even one."""
  bits, span = {"float32": (24, -126), "bfloat16": (8, -126), "float16": (11, -14)}[dtype.name]
  exact = abs(Fraction(float(x)))
  if exact == 0:
    return x
  exponent = max(len(bin(exact.numerator)) - len(bin(exact.denominator)), span)
  while exponent > span and Fraction(2) ** exponent > exact:
    exponent -= 1
  unit = Fraction(2) ** (exponent - bits + 1)
  rounded = round(exact / unit) * unit or Fraction(2) ** span  # the mask survives
  return np.copysign(float(rounded), x)


def awkward_floats(dtype, rng, size=300):
  """Ties and their neighbours, subnormals of the narrow formats, and what rounds to 0."""
  scale = np.exp2(rng.integers(-150, 15, size).astype(np.float64))
  steps = rng.integers(1, 2**12, size) / 2**11
  nudge = rng.choice([0, 0, 2.0**-40, -(2.0**-40), 2.0**-23, -(2.0**-23)], size)
  return (rng.choice([-1, 1], size) * scale * steps * (1 + nudge)).astype(dtype)


@pytest.mark.parametrize("value_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_values_are_rounded_to_nearest_even(dtype, value_dtype, density):
  rng = np.random.default_rng(4)
  x = np.where(rng.random(300) < density, awkward_floats(dtype, rng), 0).astype(dtype)
  actual = codec.decode(codec.encode({"x": x}, value_dtype=value_dtype))["x"]
  assert actual.dtype == dtype
  narrow = jnp.dtype(value_dtype)
  expected = x if narrow.itemsize >= x.itemsize else [slow_round(v, narrow) for v in x]
  np.testing.assert_array_equal(actual, np.asarray(expected, dtype))
  np.testing.assert_array_equal(actual != 0, x != 0)
  if dtype == np.float32 and narrow.itemsize == 2:
    with np.errstate(all="ignore"):
      cast = x.astype(narrow)
    stays = cast != 0
    assert actual[stays].astype(narrow).tobytes() == cast[stays].tobytes()


@pytest.mark.parametrize("value_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_rounding_keeps_signs_masks_and_what_is_not_finite(value_dtype):
  x = np.array([0.0, -0.0, 1e-300, -1e-300, np.inf, -np.inf, np.nan])
  y = codec.decode(signed(x, value_dtype=value_dtype))
  smallest = float(jnp.finfo(value_dtype).smallest_normal)
  np.testing.assert_array_equal(y, [0, 0, smallest, -smallest, np.inf, -np.inf, np.nan])
  np.testing.assert_array_equal(np.signbit(y[:6]), np.signbit(x[:6]))


def test_rounding_leaves_other_dtypes_alone():
  rng = np.random.default_rng(5)
  for name in ("float16", "bfloat16", "int32", "uint64", "bool"):
    tree = [draw_leaf(rng, name, (50,), density) for density in (0.1, 1.0)]
    for value_dtype in VALUE_DTYPES[1:]:
      assert_same(codec.decode(signed(tree, value_dtype=value_dtype)), tree)


def test_rounding_works_against_a_reference():
  old = draw_leaf(np.random.default_rng(6), "float32", (400,), 0.2)
  new = np.where(old.view("u4") != 0, np.float32(1.1), np.float32(0))
  y = codec.decode(codec.encode(new, old, "bfloat16"), old)
  np.testing.assert_array_equal(y, new.astype(bfloat16).astype(np.float32))


@pytest.mark.parametrize("value_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sign", [1, -1])
def test_values_too_large_for_the_wire_are_refused(sign, value_dtype):
  # Halfway between the largest number and the one that would follow it.
  bits = {"float32": 24, "bfloat16": 8, "float16": 11}[value_dtype]
  halfway = sign * float(jnp.finfo(value_dtype).max) * (1 + 0.5 / (2**bits - 1))
  for x in (np.float64(halfway), np.float64(sign * 1e300)):
    with pytest.raises(ValueError, match=f"leaf 'a/w': .*too large for value_dtype={value_dtype}"):
      codec.encode({"a": {"w": x}}, value_dtype=value_dtype)
  below = np.nextafter(halfway, 0.0)
  assert codec.decode(codec.encode(below, value_dtype=value_dtype)) == sign * float(
    jnp.finfo(value_dtype).max
  )


@pytest.mark.parametrize("value_dtype", ["float64", "uint8", np.int32, "nonsense", 7])
def test_unknown_value_dtypes_are_refused(value_dtype):
  with pytest.raises(
    ValueError, match="value_dtype must be None, float32, bfloat16, float16, int8 or int4"
  ):
    codec.encode(np.ones(3), value_dtype=value_dtype)


# Damage.


def test_damage_is_told_apart():
  payload = codec.encode(np.ones(3))
  for bad, message in [
    (b"", "at least"),
    (payload[:8], "at least"),
    (b"PK" + payload[2:], "begins with b'SFJ'"),
    (payload[:3] + b"\7" + payload[4:], "version 7"),
    (payload[:-1], "crc32"),
    (payload[:-6] + b"\0" + payload[-5:], "crc32"),
    (payload + b"\0", "crc32"),
    (with_crc(payload), "4 bytes follow the last leaf"),
    (with_crc(payload[:4] + b"\x20" + payload[5:-4]), "flags 32 are unknown"),
  ]:
    with pytest.raises(codec.CodecError, match=message):
      codec.decode(bad)


def elias_fano(*positions, size=100):
  return slow_positions(positions, size)


@pytest.mark.parametrize(
  "bad, message",
  [
    (body("int8", (3,), b"\0ab"), "3 bytes announced, 2 left"),
    (body("int8", (3,), b"\3abc"), "form 3"),
    (body("int8", (3,), b"\2" + uint32(0, 0)), "form 2 is unknown without a reference"),
    (body("int8", (3,), b"\1" + uint32(4) + b"abcd"), "4 entries among 3"),
    (body("int8", (3,), b"\1" + uint32(2) + b"\3a\0"), "is zero"),
    (body("int8", (3,), b"\1" + uint32(2) + b"\7ab"), "3 entries marked, 2 announced"),
    (body("int8", (3,), b"\1" + uint32(1) + b"\x09a"), "not 0"),
    (body("bool", (3,), b"\0\x09"), "not 0"),
    (body("bool", (100,), b"\1" + uint32(3) + elias_fano(4, 4, 99)), "ascend below 100"),
    (body("bool", (100,), b"\1" + uint32(3) + elias_fano(5, 4, 99)), "ascend below 100"),
    (body("bool", (100,), b"\1" + uint32(3) + elias_fano(4, 37, 100)), "ascend below 100"),
    (body("bool", (100,), b"\1" + uint32(3) + b"\0\0\7"), "ascend below 100"),
    (body("bool", (100,), b"\1" + uint32(3) + b"\0\0\1"), "1 entries coded, 3 announced"),
    (body("bool", (100,), b"\1" + uint32(3) + b"\0\x80\7"), "not 0"),
    (body("bool", (2**30,), b"\1" + uint32(2**29)), "134217728 bytes announced, 0 left"),
    (body("float64", (2**27,), b"\0"), "1073741824 bytes announced, 0 left"),
    (body("int8", (2**16, 2**15), b"\1" + uint32(0)), "entries, found .65536, 32768"),
    (body("int8", (0, 2**32 - 1, 2**32 - 1)), "entries, found .0, "),
    (body("int8", (0,) * 65), "entries, found"),
    (with_crc(b"SFJ\2\0\x1d"), "begins with 29"),
    (with_crc(b"SFJ\2\0\4"), "begins with 4"),
    (with_crc(b"SFJ\2\0\2" + uint32(2**32 - 1) + bytes(2**17)), "65536 leaves"),
    (with_crc(b"SFJ\2\0\2" + uint32(2**32 - 1)), "1 bytes announced, 0 left"),
    (with_crc(b"SFJ\2\0\1" + uint32(2) + b"\1\0b\0\1\0a\0"), "do not ascend at 'a'"),
    (with_crc(b"SFJ\2\0\1" + uint32(2) + b"\1\0a\0\1\0a\0"), "do not ascend at 'a'"),
    (with_crc(b"SFJ\2\0\1" + uint32(1) + b"\1\0\xff\0"), "not UTF-8"),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_payloads_are_refused(bad, message):
  with pytest.raises(codec.CodecError, match=message):
    codec.decode(bad)


@pytest.mark.parametrize(
  "grown, dropped, rest, message",
  [
    (0, 4, b"", "4 dropped entries among 3"),
    (6, 0, b"", "6 grown entries among 5"),
    (1, 1, b"\1\x21abc", "not 0"),
    (1, 1, b"\1\3abc", "2 grown entries marked, 1 announced"),
    (1, 1, b"\1\1ab", "3 bytes announced, 2 left"),
    (1, 1, b"\1\1abcd", "1 bytes follow"),
  ],
)
def test_hostile_changes_are_refused(grown, dropped, rest, message):
  old = np.array([1, 0, 2, 0, 0, 3, 0, 0], np.int8)
  schema = codec.encode(old, old)[5:17]
  start = b"SFJ\2\1" + schema + b"\2"
  good = codec.decode(with_crc(start + uint32(1, 1) + b"\2\2abc"), old)
  np.testing.assert_array_equal(good, [ord("a"), 0, 0, ord("b"), 0, ord("c"), 0, 0])
  with pytest.raises(codec.CodecError, match=message):
    codec.decode(with_crc(start + uint32(grown, dropped) + rest), old)


@pytest.mark.parametrize("payloads", [400, pytest.param(1500, marks=pytest.mark.slow)])
def test_mutants_give_trees_or_codec_errors(payloads):
  summary = fuzz_codec.run(payloads=payloads, seed=1)
  assert summary.accepted > payloads / 30 and summary.refused > payloads / 1.5


# Ratios at the size of ResNet-18.


@pytest.fixture(scope="module")
def resnet():
  """A model whose prunable parameters are non-zero at 5 % of the places, others everywhere."""
  rng = np.random.default_rng(0)
  model = ResNet18(10)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  full = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) + 1, shapes)

  def prune(leaf):
    return leaf * (rng.random(leaf.shape, np.float32) < 0.05)

  return {**full, "params": trees.map_prunable(prune, full["params"])}


def moved(params, share):
  """Drops and grows the same number of prunable parameters, and changes all values."""
  rng = np.random.default_rng(1)
  kernels, rebuild = trees.split_prunable(params)
  flat = np.concatenate([np.ravel(leaf) for leaf in kernels])
  count = round(share * flat.size)
  kept, free = np.flatnonzero(flat), np.flatnonzero(flat == 0)
  flat *= np.float32(0.9)
  flat[rng.choice(kept, count, replace=False)] = 0
  flat[rng.choice(free, count, replace=False)] = 0.5
  parts = np.split(flat, np.cumsum([leaf.size for leaf in kernels])[:-1])
  return rebuild([part.reshape(leaf.shape) for part, leaf in zip(parts, kernels, strict=True)])


def test_ratios_of_resnet_18(resnet):
  old = resnet["params"]
  new = moved(old, 0.001)
  dense = 4 * trees.size(old)
  assert dense > 44e6
  sparse = codec.encode(old)
  assert_same(codec.decode(sparse), old)
  assert dense / len(sparse) >= 15
  delta = codec.encode(new, old)
  assert_same(codec.decode(delta, old), new)
  assert dense / len(delta) >= 19.29
  assert dense / len(codec.encode(new, old, "bfloat16")) >= 36
