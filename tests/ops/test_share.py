"""Counts of shares, against integers and fractions."""

from fractions import Fraction
from math import ceil, floor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import ops

LARGEST = 2**31 - 1
RESNET18 = 11_164_352
SPARSITIES = ("0", "0.05", "0.31", "0.5", "0.9", "0.95", "0.99", "0.995", "0.999", "0.123456")
count = jax.jit(
  jax.vmap(
    lambda size, share: (
      ops.num_kept(size, share),
      ops.ceil_of_share(size, share),
      ops.floor_of_share(size, share),
    ),
    (0, None),
  )
)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_counts_of_decimals_are_exact_up_to_the_largest_integer(sparsity):
  rng = np.random.default_rng(0)
  sizes = [*range(1, 3000), *rng.integers(1, LARGEST, 3000), *(LARGEST - np.arange(1000)), RESNET18]
  s = Fraction(sparsity)
  found = count(jnp.asarray(sizes, jnp.int32), jnp.float32(1 - float(sparsity)))
  sizes = [int(size) for size in sizes]
  expected = (
    [size - round(s * size) for size in sizes],  # half to even
    [ceil((1 - s) * size) for size in sizes],
    [floor((1 - s) * size) for size in sizes],
  )
  np.testing.assert_array_equal(found, expected)
  # As Python's float64 has it.
  assert expected[0] == [size - round(float(sparsity) * size) for size in sizes]


@pytest.mark.parametrize(
  ("function", "size", "sparsity", "expected"),
  [
    (ops.num_kept, 11, 0.5, 5),
    (ops.num_kept, 10, 0.95, 0),  # 9.5 to 10
    (ops.num_kept, 30, 0.95, 2),  # 28.5 to 28
    (ops.num_kept, RESNET18, 0.95, 558_218),
    (ops.ceil_of_share, 64 * 64 * 3 * 3, 0.95, 1844),
    (ops.floor_of_share, 3 * 3 * 3 * 16, 1 - 0.00903, 3),
  ],
)
def test_counts_by_hand(function, size, sparsity, expected):
  assert int(function(size, 1 - sparsity)) == expected
  assert int(jax.jit(function)(size, jnp.float32(1 - sparsity))) == expected


@pytest.mark.parametrize("part", [1, 3, 77, 199_999, 299_997])
def test_a_ratio_of_counts_is_whole_however_float32_rounds_it(part):
  # 3 / 432 * 432 may be 2.9999998.
  for size in (432, 36_864, 300_000):
    share = jnp.float32(part) / jnp.float32(size)
    if part <= size:
      assert int(ops.floor_of_share(size, share)) == int(ops.ceil_of_share(size, share)) == part


def test_shares_that_are_no_decimals_are_as_exact_as_float32():
  rng = np.random.default_rng(1)
  for share in rng.random(50).astype(np.float32):
    for size in (7, 1000, 123_456):
      found = int(ops.num_kept(size, share))
      assert abs(found - float(share) * size) <= 0.5 + size * 2.0**-20


def test_densities_of_weaker_clients_are_decimals_too():
  # 1 - 0.975 as a multiple of 1 - 0.95, in float32.
  density = jnp.float32(1 - 0.95) * jnp.float32((1 - 0.975) / (1 - 0.95))
  assert int(ops.num_kept(RESNET18, density)) == RESNET18 - round(Fraction("0.975") * RESNET18)
