"""The counted size is the encoded one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsyfed_jax.ops import untuned
from sparsyfed_jax.wire import codec
from sparsyfed_jax.wire.size import INTEGERS, UINT32, dense_bytes, form_bytes, payload_bytes
from tests.wire.fuzz_codec import draw_change, draw_leaf

NUM_TREES = 40
SHAPES = {"a": (), "b": (1,), "c": (7, 9), "d": (0, 3), "e": (40, 30)}


def draw_tree(rng, dtypes):
  """Densities from 0 to 1, many of them small."""
  return {
    f"{dtype}-{name}": draw_leaf(rng, dtype, shape, rng.choice([0.0, rng.random() ** 4, 1.0]))
    for dtype in dtypes
    for name, shape in SHAPES.items()
  }


def draw_pair(rng, dtypes):
  old = draw_tree(rng, dtypes)
  return {name: draw_change(rng, leaf, rng.random() ** 4) for name, leaf in old.items()}, old


def stack(rows):
  return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *rows)


def check_law(dtypes, value_dtype=None, keep_signed_zeros=False, seed=0):
  """Without a reference, with one each, and with one for all; under jit and vmap."""
  options = value_dtype, keep_signed_zeros
  rng = np.random.default_rng(seed)
  pairs = [draw_pair(rng, dtypes) for _ in range(NUM_TREES)]
  tree, old = stack([new for new, _ in pairs]), stack([old for _, old in pairs])
  shared = pairs[0][1]

  @jax.jit
  def count(tree, old, shared):
    alone = jax.vmap(lambda new: payload_bytes(new, None, *options))(tree)
    against = jax.vmap(lambda new, old: payload_bytes(new, old, *options))(tree, old)
    same = jax.vmap(lambda new: payload_bytes(new, shared, *options))(tree)
    return alone, against, same

  # Random bits may be too large for value_dtype, and the size is that of any values.
  def finite(tree):
    def mark(leaf):
      return leaf.view(f"u{leaf.itemsize}") != 0 if keep_signed_zeros else leaf != 0

    with np.errstate(invalid="ignore"):  # NaNs of bfloat16
      return jax.tree.map(lambda leaf: mark(leaf).astype(leaf.dtype), tree)

  counted = count(tree, old, shared)
  encoded = [
    [len(codec.encode(finite(new), None, *options)) for new, _ in pairs],
    [len(codec.encode(finite(new), old, *options)) for new, old in pairs],
    [len(codec.encode(finite(new), shared, *options)) for new, _ in pairs],
  ]
  for actual, expected in zip(counted, encoded, strict=True):
    assert actual.dtype == jnp.uint32
    np.testing.assert_array_equal(actual, expected)
  assert np.unique(encoded).size > NUM_TREES


def test_accelerators_count_the_same_in_one_reading():
  with untuned():
    check_law(["float32", "bool"], seed=1)

  def count(new, old):
    return payload_bytes({"kernel": new}, {"kernel": old})

  arguments = jnp.ones((9, 7)), jnp.ones((9, 7))
  module = jax.export.export(jax.jit(count), platforms=["tpu"])(*arguments).mlir_module()
  assert module.count("stablehlo.reduce(") == 2  # one of the leaf, and one of all leaves


@pytest.mark.parametrize(
  ("value_dtype", "signs"),
  [(None, True), ("bfloat16", True), ("int4", False)]
  + [pytest.param(*one, marks=pytest.mark.slow) for one in ((None, False), ("int8", True))],
)
def test_size_is_that_of_the_payload(value_dtype, signs):
  check_law(("float32", "bfloat16", "bool", "int8"), value_dtype, signs)


def test_size_is_that_of_the_payload_for_64_bits():
  with jax.enable_x64(True):
    check_law(("float64", "uint64", "float16", "int16"), "float32")


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_uint32_is_enough(data):
  """Sizes of leaves far larger than a test could hold, in both arithmetics."""
  size = data.draw(st.integers(0, 2**27) | st.integers(2**27 - 9, 2**27))
  near = st.integers(0, min(size, 9)) | st.integers(max(size - 9, 0), size)
  n = data.draw(near | st.integers(0, size))
  r = data.draw(near | st.integers(0, size))
  grown = data.draw(st.integers(max(n - r, 0), min(n, size - r)))
  one = data.draw(st.sampled_from([0, 1, 2, 4, 8]))
  paired = data.draw(st.integers(0, int(one == 1)))
  dense = dense_bytes(size, one, paired)
  exact = form_bytes(n, size, one, dense, (r, grown), INTEGERS, paired)
  traced = _on_device(*(jnp.uint32(x) for x in (n, size, one, dense, r, grown, paired)))
  assert [int(x) for x in traced] == list(exact)


@jax.jit
def _on_device(n, size, one, dense, r, grown, paired):
  return form_bytes(n, size, one, dense, (r, grown), UINT32, paired)


def test_size_from_bits_that_backends_flush():
  tiny = np.zeros(4000, np.float32)
  tiny[:100] = -0.0
  tiny[100:300] = 1e-42
  for signs in (False, True):
    count = jax.jit(partial(payload_bytes, keep_signed_zeros=signs))
    for reference in (None, 0 * tiny, -1 * tiny):
      expected = len(codec.encode(tiny, reference, keep_signed_zeros=signs))
      assert int(count(tiny, reference)) == expected


@pytest.mark.parametrize("tree", [(), {"a": None}, [{}, np.float32(1), (np.zeros((2, 0), bool),)]])
def test_size_of_next_to_nothing(tree):
  alone, against = jax.jit(lambda tree: (payload_bytes(tree), payload_bytes(tree, tree)))(tree)
  assert int(alone) == len(codec.encode(tree))
  assert int(against) == len(codec.encode(tree, tree))


def test_what_cannot_be_counted_is_refused():
  with pytest.raises(TypeError, match="leaf 'a': float64 needs jax_enable_x64"):
    payload_bytes({"a": np.ones(3)})
  with pytest.raises(ValueError, match="leaf 'a': float32.*in reference"):
    payload_bytes({"a": jnp.ones(3)}, {"a": jnp.ones(4)})
  with pytest.raises(ValueError, match="value_dtype must be"):
    payload_bytes(jnp.ones(3), value_dtype="int16")
  large = [jax.ShapeDtypeStruct((2**27,), jnp.float32)] * 8
  with pytest.raises(ValueError, match="below 2.32 bytes"):
    jax.eval_shape(payload_bytes, large)
  assert jax.eval_shape(payload_bytes, large[:7]).dtype == jnp.uint32
