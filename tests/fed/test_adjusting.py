"""Exchanges of weights by hand: no more is dropped than can grow."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.fed import adjusting

W = jnp.float32([[1, -5, 3, 0.5, -2, 4]])


@pytest.mark.parametrize(
  ("mask", "score", "density", "kept", "grown"),
  [
    # As many grow as are dropped: two of four, half of which at density 2/3 and rate 0.5.
    ([1, 1, 1, 0, 1, 0], [0, 0, 0, 2, 0, 1], 2 / 3, [0, -5, 3, 0, 0, 0], [0, 0, 0, 1, 0, 1]),
    # Of a dense layer nothing is outside the mask.
    ([1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], 1.0, W[0], [0, 0, 0, 0, 0, 0]),
    # One may grow, as the other's gradient is 0: one is dropped.
    ([1, 1, 1, 0, 1, 0], [0, 0, 0, 2, 0, 0], 2 / 3, [0, -5, 3, 0, -2, 0], [0, 0, 0, 1, 0, 0]),
    # What was dropped may grow, from 0.
    ([1, 1, 1, 0, 1, 0], [9, 9, 9, 1, 9, 1], 2 / 3, [0, -5, 3, 0, 0, 0], [1, 0, 0, 0, 1, 0]),
  ],
)
def test_as_many_are_dropped_as_grow(mask, score, density, kept, grown):
  params, mask = {"Dense_0": {"kernel": W * jnp.float32([mask])}}, jnp.array([mask], bool)
  arguments = [mask], [jnp.float32([score])], jnp.float32([density]), jnp.float32(0.5)
  new, (found,) = adjusting.exchange(params, *arguments)
  np.testing.assert_array_equal(new["Dense_0"]["kernel"], [kept])
  np.testing.assert_array_equal(found, np.array([kept]).astype(bool) | np.array([grown], bool))
