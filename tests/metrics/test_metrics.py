"""Sparsity, regrowth and bytes by hand-worked numbers."""

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


def kernel(size, nonzero):
  leaf = np.zeros(size, np.float32)
  leaf[:nonzero] = 1
  return {"params": {"kernel": leaf.reshape(1, -1)}}


payload_bytes = jax.jit(cost.payload_bytes)


class TestBytes:
  @pytest.mark.parametrize(
    ("size", "nonzero", "expected"),
    [
      (100, 0, 0),  # no index, no value
      (100, 1, 4 + 4),
      (100, 3, 3 * 8),
      (100, 4, 4 * 4 + 13),  # 29, where indices take 32
      (100, 96, 96 * 4 + 13),
      (100, 97, 400),  # 388 + 13 is more
      (100, 100, 400),
      (104, 50, 50 * 4 + 13),
      (105, 50, 50 * 4 + 14),
    ],
  )
  def test_the_cheapest_form_of_a_kernel(self, size, nonzero, expected):
    assert payload_bytes(kernel(size, nonzero)) == expected

  def test_each_kernel_has_its_own_form_and_the_rest_is_sent_whole(self):
    variables = {
      "params": {
        "sparse": {"kernel": np.float32([[7] + [0] * 99]), "bias": np.zeros(5, np.float32)},
        "dense": {"kernel": np.ones((2, 3), np.float32)},
        "norm": {"scale": np.zeros(4, np.float32)},
      },
      "batch_stats": {"norm": {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}},
    }
    assert payload_bytes(variables) == 8 + 4 * 6 + 4 * (5 + 4 + 4 + 4)
    assert cost.dense_bytes(variables) == 4 * (100 + 5 + 6 + 4 + 4 + 4)

  def test_a_dense_model_is_no_larger_than_dense(self):
    variables = {"params": params([1] * 4, [1] * 6, [0] * 3)}
    assert payload_bytes(variables) == cost.dense_bytes(variables) == 4 * 13
