"""Pruned residuals: exact values and input gradients, weight gradients of the pruned input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparsyfed_jax import ops
from tests import reference


def convolution(strides, padding, dilation=(1, 1), conv=lax.conv_general_dilated):
  return lambda x, w: conv(
    x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


IMAGES = (4, 7, 6, 3)
PAD_1 = ((1, 1), (1, 1))
# An operation and the shapes of its arguments.
OPS = {
  "matmul": (jnp.matmul, (5, 8), (8, 6)),
  "3x3": (convolution((1, 1), "VALID"), IMAGES, (3, 3, 3, 4)),
  "3x3 stride 2": (convolution((2, 2), PAD_1), IMAGES, (3, 3, 3, 4)),
  "1x1 stride 2": (convolution((2, 2), "VALID"), IMAGES, (1, 1, 3, 4)),
  "3x3 dilated": (convolution((1, 1), "VALID", (2, 2)), IMAGES, (3, 3, 3, 4)),
  "3x3 stride 2 by patches": (
    convolution((2, 2), PAD_1, conv=ops.conv_general_dilated),
    IMAGES,
    (3, 3, 3, 4),
  ),
}
PRUNED = {name: ops.prune_residual(op) for name, (op, *_) in OPS.items()}


def arguments(*shapes, seed=0):
  """Multiples of 1/8: magnitudes tie."""
  rng = np.random.default_rng(seed)
  return [np.float32(rng.integers(-16, 17, shape)) / 8 for shape in shapes]


@partial(jax.jit, static_argnums=0)
def value_and_gradients(op, x, w, *rest):
  y, vjp = jax.vjp(op, x, w, *rest)
  return y, *vjp(reference.cotangent(y))


def assert_pruned(found, op, x, kept, w):
  """Value and input gradient are those of op(x, w), the weight gradient that of op(kept, w)."""
  y, by_x, _ = value_and_gradients(op, x, w)
  _, _, by_w = value_and_gradients(op, kept, w)
  np.testing.assert_array_equal(found[0], y)
  np.testing.assert_array_equal(found[1], by_x)
  np.testing.assert_allclose(found[2], by_w, rtol=1e-6, atol=1e-6)


class TestPruneResidual:
  @pytest.mark.parametrize("name", OPS)
  def test_against_explicit_pruning(self, name):
    op, *shapes = OPS[name]
    x, w = arguments(*shapes)
    for k in (x.size // 3, 0):
      threshold = np.float32(reference.kth_magnitude(x, k))
      found = value_and_gradients(PRUNED[name], x, w, threshold)
      assert_pruned(found[:3], op, x, reference.keep_largest(x, k), w)
      assert found[3] == 0
    # A third is kept, and ties: the gradient of no other share could pass.
    kept = np.count_nonzero(reference.keep_largest(x, x.size // 3))
    assert x.size // 3 < kept < x.size // 2

  @pytest.mark.parametrize("name", OPS)
  def test_threshold_zero_prunes_nothing(self, name):
    op, *shapes = OPS[name]
    x, w = arguments(*shapes)
    found = value_and_gradients(PRUNED[name], x, w, np.float32(0))
    for a, b in zip(found, value_and_gradients(op, x, w), strict=False):
      np.testing.assert_array_equal(a, b)

  def test_matmul_by_hand(self):
    x = jnp.array([[1.0, -2.0], [0.5, 3.0]])
    w = jnp.array([[1.0], [10.0]])
    y, vjp = jax.vjp(ops.prune_residual(jnp.matmul), x, w, jnp.float32(2))
    by_x, by_w, by_threshold = vjp(jnp.array([[1.0], [100.0]]))
    assert y.tolist() == [[-19], [30.5]]
    assert by_x.tolist() == [[1, 10], [100, 1000]]
    assert by_w.tolist() == [[0], [-2 + 300]]
    assert by_threshold == 0

  @pytest.mark.parametrize("name", ["matmul", "3x3 stride 2", "3x3 stride 2 by patches"])
  def test_clients_under_vmap_equal_a_loop(self, name):
    _, x_shape, w_shape = OPS[name]
    x, w = arguments((3, *x_shape), (3, *w_shape))
    thresholds = np.float32([0, 0.75, 1.5])
    run = partial(value_and_gradients, PRUNED[name])
    batched = jax.vmap(run)(x, w, thresholds)
    for i in range(3):
      for a, b in zip(batched, run(x[i], w[i], thresholds[i]), strict=True):
        np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)

  @pytest.mark.parametrize("threshold", [0, -0.0, 1e-40, 1.5, 2.0, np.inf, np.nan])
  def test_a_large_input(self, threshold):
    x, w = arguments((64, 80), (80, 3))
    x[0, :3] = 1e-40, np.inf, 0
    _, vjp = jax.vjp(PRUNED["matmul"], x, w, jnp.float32(threshold))
    saved = next(leaf for leaf in jax.tree.leaves(vjp) if leaf.shape == x.shape)
    # Subnormals count, and nothing reaches NaN.
    expected = np.where(np.isnan(threshold) | (np.abs(x) < np.abs(np.float32(threshold))), 0, x)
    np.testing.assert_array_equal(saved, expected)

  @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
  def test_16_bits(self, dtype):
    x, w = (array.astype(dtype) for array in arguments((5, 8), (8, 6)))
    threshold = np.asarray(reference.kth_magnitude(x, 13), dtype)
    found = value_and_gradients(PRUNED["matmul"], x, w, threshold)
    assert {array.dtype for array in found} == {jnp.dtype(dtype)}
    assert_pruned(found[:3], jnp.matmul, x, reference.keep_largest(x, 13), w)

  def test_only_the_pruned_input_is_kept_for_backward(self):
    x, w = arguments((5, 8), (8, 6))
    _, vjp = jax.vjp(ops.prune_residual(jnp.matmul), x, w, jnp.float32(1))
    saved = [leaf for leaf in jax.tree.leaves(vjp) if leaf.shape == x.shape]
    assert len(saved) == 1
    np.testing.assert_array_equal(saved[0], np.where(np.abs(x) >= 1, x, 0))


threshold_of = jax.jit(ops.activation_threshold)


def weights_of_density(density, size=100):
  return (np.arange(size) < round(density * size)).astype(np.float32)


class TestActivationThreshold:
  # Magnitudes 12, 11, ..., 1 in three rows of two pairs; the k-th largest is 13 - k.
  X = np.float32([12, -11, 10, -9, 8, -7, 6, -5, 4, -3, 2, -1]).reshape(3, 2, 2)

  @pytest.mark.parametrize(
    ("density", "floor", "valid", "expected"),
    [
      (0.5, 0.0, [1, 1, 1], 13 - 6),
      (0.51, 0.0, [1, 1, 1], 13 - 7),  # ceil(6.12)
      (0.01, 0.0, [1, 1, 1], 13 - 1),
      (1.0, 0.0, [1, 1, 1], 1),
      (0.0, 0.0, [1, 1, 1], np.inf),
      (0.0, 0.25, [1, 1, 1], 13 - 3),
      (0.5, 0.25, [1, 1, 1], 13 - 6),
      (0.5, 0.0, [1, 1, 0], 13 - 4),  # half of 8
      (0.5, 0.0, [0, 1, 1], 9 - 4),
      (0.25, 0.0, [0, 1, 0], 8),
      (1.0, 0.0, [0, 0, 0], np.inf),
    ],
  )
  def test_by_hand(self, density, floor, valid, expected):
    args = weights_of_density(density), np.array(valid, bool), np.float32(floor)
    threshold = threshold_of(self.X, *args)
    assert threshold.dtype == jnp.float32 and threshold == expected

  def test_keeps_the_dtype(self):
    x = self.X.astype(jnp.bfloat16)
    threshold = threshold_of(x, weights_of_density(0.5), np.ones(3, bool), np.float32(0))
    assert threshold.dtype == jnp.bfloat16 and threshold == 7

  @pytest.mark.parametrize(
    ("kept", "size", "entries"),
    [
      (56, 558, 558),  # 57 in float32
      (1, 3, 100_000),
      (71_999, 72_000, 100_000),  # the product does not fit into 32 bits
      (50_001, 72_000, 100_000),
    ],
  )
  def test_k_is_exact(self, kept, size, entries):
    x = np.arange(1, entries + 1, dtype=np.float32).reshape(1, -1)
    w = (np.arange(size) < kept).astype(np.float32)
    k = -(-entries * kept // size)
    assert ops.activation_threshold(x, w, np.ones(1, bool)) == entries + 1 - k


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_share_threshold_keeps_a_share_of_valid_rows(share):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(5, 7, 3)).astype(np.float32)
  valid = np.array([True, False, True, True, False])
  x[~valid] = 1e9
  found = jax.jit(ops.share_threshold)(x, valid, jnp.float32(share))
  k = int(np.ceil(np.float32(share) * np.float32(3 * 21)))
  assert float(found) == np.float32(reference.kth_magnitude(x[valid], k))
