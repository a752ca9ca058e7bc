"""Epochs of one client: every example once, whatever the padding."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsyfed_jax.data import batches
from sparsyfed_jax.data import shuffle as shuffles
from sparsyfed_jax.types import ClientData

NUM_EXAMPLES = 40
# Row i holds i + 1 everywhere, so that no row looks like padding.
X = np.arange(1, NUM_EXAMPLES + 1, dtype=np.uint8)[:, None, None] * np.ones((2, 3), np.uint8)
Y = np.arange(1, NUM_EXAMPLES + 1, dtype=np.int32)

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def client(rows, max_size, filler=0, x=X):
  """A client with these rows, its index list filled up."""
  indices = np.full(max_size, filler, np.int32)
  indices[: len(rows)] = rows
  return ClientData(x, Y, indices, np.int32(len(rows)), np.float32(1), np.float32(1))


def as_key(seed):
  return jax.random.wrap_key_data(np.uint32([0, seed]), impl="threefry2x32")


shuffle = jax.jit(shuffles.shuffle)


@partial(jax.jit, static_argnums=(1, 2))
def take_batches(data, batch_size, most):
  """All batches up to number `most`, and how many there are."""
  take = partial(batches.take_batch, data, batch_size=batch_size)
  return jax.vmap(take)(jnp.arange(most)), batches.num_batches(data, batch_size)


@st.composite
def cases(draw):
  max_size = draw(st.sampled_from([1, 12]))
  rows = draw(st.lists(st.integers(0, NUM_EXAMPLES - 1), max_size=max_size, unique=True))
  return rows, max_size, draw(st.sampled_from([1, 5, 12, 16]))


@quick
@given(cases(), seeds, st.sampled_from([0, NUM_EXAMPLES - 1]))
def test_an_epoch_takes_every_example_once(case, seed, filler):
  rows, max_size, batch_size = case
  most = -(-max_size // batch_size)
  shuffled = shuffle(as_key(seed), client(rows, max_size, filler))
  taken, count = take_batches(shuffled, batch_size, most)
  assert count == -(-len(rows) // batch_size) and count.dtype == jnp.int32
  assert taken.x.shape == (most, batch_size, 2, 3) and taken.x.dtype == jnp.uint8
  assert taken.y.dtype == jnp.int32 and taken.valid.dtype == bool

  x, y, valid = (np.asarray(array).reshape(most * batch_size, -1) for array in taken)
  # Valid rows come first, without a gap: only the last batch is partial.
  assert valid[:, 0].tolist() == [i < len(rows) for i in range(most * batch_size)]
  assert sorted(y[: len(rows), 0] - 1) == sorted(rows)
  assert (x[: len(rows)] == y[: len(rows)]).all()
  assert not x[len(rows) :].any() and not y[len(rows) :].any()


@quick
@given(cases(), seeds, st.sampled_from([0, 3]))
def test_padding_of_the_index_list_changes_nothing(case, seed, filler):
  rows, max_size, batch_size = case
  key, most = as_key(seed), -(-max_size // batch_size)
  taken, padded = (
    take_batches(shuffle(key, data), batch_size, most)[0]
    for data in (client(rows, max_size), client(rows, 29, filler))
  )
  for a, b in zip(taken, padded, strict=True):
    np.testing.assert_array_equal(a, b)


@jax.jit
def orders(keys, data):
  return jax.vmap(lambda key: shuffles.shuffle(key, data).indices)(keys)


class TestShuffle:
  def test_keys_decide_the_order(self, key):
    data = client(range(12), 12)
    found, again = (orders(jax.random.split(key, 20), data) for _ in range(2))
    np.testing.assert_array_equal(found, again)
    assert len(set(map(tuple, found.tolist()))) == 20

  def test_orders_are_equally_likely(self, key):
    # 1200 draws of the 6 orders of 3 rows, padding among them: 200 each, deviation 13.
    found = orders(jax.random.split(key, 1200), client([4, 2, 9], 5, filler=7))
    assert (found[:, 3:] == 7).all()
    counts = Counter(map(tuple, found[:, :3].tolist()))
    assert len(counts) == 6 and all(abs(count - 200) < 60 for count in counts.values())

  def test_only_the_indices_change(self, key):
    data = client([4, 2, 9], 5)
    shuffled = shuffle(key, data)
    assert sorted(shuffled.indices[:3].tolist()) == [2, 4, 9]
    for name in ("x", "y", "size"):
      np.testing.assert_array_equal(getattr(shuffled, name), getattr(data, name))


@pytest.mark.parametrize("shape", [(), (5,), (2, 2, 1)])
def test_examples_of_any_shape(shape):
  x = np.float32(np.broadcast_to(Y.reshape(-1, *[1] * len(shape)), (NUM_EXAMPLES, *shape)))
  taken = batches.take_batch(client([7, 3, 5], 4, x=x), jnp.int32(1), 2)
  assert taken.y.tolist() == [6, 0] and taken.valid.tolist() == [True, False]
  np.testing.assert_array_equal(taken.x, np.stack([np.full(shape, 6), np.zeros(shape)]))
  assert taken.x.dtype == jnp.float32


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 1), (7, 1), (8, 1), (9, 2), (16, 2)])
def test_number_of_batches(size, expected):
  assert batches.num_batches(client(range(size), 16), 8) == expected


@pytest.mark.parametrize("size", [0, 1, 7, 2048])
def test_long_lists_are_shuffled_in_the_same_order(size):
  # Up to 2,048 entries rank and position share a number; beyond they do not.
  rows = np.arange(size) % NUM_EXAMPLES
  short, long = (
    shuffles.shuffle(as_key(3), client(rows, length, filler=39)).indices for length in (2048, 2049)
  )
  np.testing.assert_array_equal(short[:size], long[:size])
  assert sorted(short[:size].tolist()) == sorted(rows.tolist())
  assert size < 7 or short[:size].tolist() != rows.tolist()


def test_shuffling_is_uniform():
  three = jax.tree.map(jnp.asarray, client([0, 1, 2], 5))
  orders = jax.vmap(lambda seed: shuffles.shuffle(jax.random.key(seed), three).indices)(
    jnp.arange(6000)
  )[:, :3]
  counts = Counter(map(tuple, orders.tolist()))
  assert len(counts) == 6 and all(abs(count - 1000) < 150 for count in counts.values())


SIZES = {
  "uneven": [0, 1, 3, 24, 25, 26, 200, 399],
  "short": [0, 5, 24, 6],
  "at an edge": [100, 25],
  "whole": [400],
}


@pytest.mark.parametrize("name", SIZES)
def test_uneven_lists_are_shuffled_in_the_same_order(name, key):
  assert shuffles._lengths(400) == [25, 100, 400]
  sizes = jnp.array(SIZES[name], jnp.int32)
  keys = jax.random.split(key, len(sizes))
  indices = jnp.tile(jnp.arange(400, dtype=jnp.int32), (len(sizes), 1))

  def order(key, size, indices, is_ragged):
    data = ClientData(X, Y, indices, size, jnp.float32(1), jnp.float32(1))
    return shuffles.shuffle(key, data, is_ragged).indices

  for axes, lists in (((0, 0, 0), indices), ((0, 0, None), indices[0]), ((None, 0, 0), indices)):
    given_keys = keys if axes[0] == 0 else key
    plain, ragged = (
      jax.jit(jax.vmap(partial(order, is_ragged=is_ragged), axes))(given_keys, sizes, lists)
      for is_ragged in (False, True)
    )
    np.testing.assert_array_equal(plain, ragged)
  for i in range(len(sizes)):
    alone = jax.jit(partial(order, is_ragged=True))(key, sizes[i], indices[i])
    np.testing.assert_array_equal(alone, ragged[i])  # of the one key that all shared


def test_lengths_of_lists():
  assert shuffles._lengths(1) == [1] and shuffles._lengths(63) == [63]
  assert shuffles._lengths(64) == [16, 64]
  assert shuffles._lengths(4096) == [64, 256, 1024, 4096]
