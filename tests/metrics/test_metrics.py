"""Sparsity, movement of masks and bytes by hand-worked numbers."""

import jax
import numpy as np
import pytest

from sparsyfed_jax.metrics import cost, masks, sparsity


def params(conv, dense, bias=(0, 0, 3)):
  """A conv kernel with 4 entries, a dense one with 6, a bias with 3."""
  return {
    "Conv_0": {"kernel": np.float32(conv).reshape(1, 1, 2, 2), "bias": np.float32(bias)},
    "Dense_0": {"kernel": np.float32(dense).reshape(2, 3)},
  }


A = params([1, 0, 0, 0], [0, 2, 0, -3, 0, 0])
B = params([0, 1, 0, 0], [5, 2, 0, 0, 0, 1e-30], bias=(1, 1, 1))


class TestSparsity:
  def test_global_counts_all_parameters(self):
    # Zeros: 3 of 4, 4 of 6, 2 of 3.
    assert jax.jit(sparsity.global_sparsity)(A) == np.float32(9 / 13)

  def test_prunable_counts_kernels_only(self):
    assert jax.jit(sparsity.prunable_sparsity)(A) == np.float32(7 / 10)

  def test_extremes(self):
    zeros = params([0] * 4, [0] * 6, [0] * 3)
    ones = params([1] * 4, [1] * 6, [1] * 3)
    for metric in (sparsity.global_sparsity, sparsity.prunable_sparsity):
      assert metric(zeros) == 1 and metric(ones) == 0 and metric({}) == 0

  def test_negative_zero_is_a_zero_and_what_is_tiny_is_not(self):
    assert sparsity.prunable_sparsity(params([-0.0, 1, 1, 1e-37], [1] * 6)) == np.float32(0.1)

  def test_layer_densities(self):
    densities = sparsity.layer_densities(A)
    assert densities == {
      "Conv_0/kernel": pytest.approx(1 / 4),
      "Dense_0/kernel": pytest.approx(2 / 6),
    }


class TestRegrowth:
  def test_counts_zeros_that_became_weights(self):
    # A -> B: one conv weight, the first and the last dense weight; biases do not count.
    assert jax.jit(masks.regrowth)(A, B) == np.float32(3 / 10)
    assert masks.regrowth(B, A) == np.float32(2 / 10)
    assert masks.regrowth(A, A) == 0

  def test_a_sign_change_of_zero_is_no_regrowth(self):
    assert masks.regrowth(params([0] * 4, [0] * 6), params([-0.0] * 4, [-0.0] * 6)) == 0

  def test_without_prunable_leaves(self):
    assert masks.regrowth({"bias": np.zeros(2)}, {"bias": np.ones(2)}) == 0


class TestMaskIou:
  def test_by_hand(self):
    # Kept in both: one dense weight. In either: two conv weights, four dense ones.
    assert jax.jit(masks.mask_iou)(A, B) == np.float32(1 / 6)
    assert masks.mask_iou(B, A) == np.float32(1 / 6)
    assert masks.mask_iou(A, A) == 1

  def test_two_empty_masks_are_the_same(self):
    zeros = params([0] * 4, [0] * 6)
    assert masks.mask_iou(zeros, zeros) == 1
    assert masks.mask_iou(zeros, A) == 0
    assert masks.mask_iou({"bias": np.zeros(2)}, {"bias": np.ones(2)}) == 1


def test_dense_bytes_count_everything():
  variables = {"params": A, "batch_stats": {"norm": {"mean": np.zeros(4), "var": np.ones(4)}}}
  assert cost.dense_bytes(variables) == 4 * (4 + 6 + 3 + 8)
