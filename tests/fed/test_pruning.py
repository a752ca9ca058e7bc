"""Masks of whole models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.fed import pruning

KERNELS = [jnp.float32([[1, -5], [3, 0]]), jnp.float32([[-2, 4]])]
PARAMS = {
  "Dense_0": {"kernel": KERNELS[0], "bias": jnp.float32([0.1, 0])},
  "Dense_1": {"kernel": KERNELS[1], "bias": jnp.float32([9.0, 9.0])},
}


def kernels(params):
  return [params[name]["kernel"].tolist() for name in ("Dense_0", "Dense_1")]


def test_globally_all_layers_are_ranked_together():
  pruned = pruning.prune_globally(PARAMS, jnp.float32(0.5))
  assert kernels(pruned) == [[[0, -5], [3, 0]], [[0, 4]]]
  assert pruned["Dense_0"]["bias"] is PARAMS["Dense_0"]["bias"]


def test_layerwise_each_has_its_budget():
  masks = pruning.largest_masks(PARAMS, jnp.float32([0.25, 1.0]))
  assert kernels(pruning.apply_masks(PARAMS, masks)) == [[[0, -5], [0, 0]], [[-2, 4]]]
  np.testing.assert_allclose(pruning.mask_densities(masks), [0.25, 1])
  overall = pruning.overall_density(pruning.mask_densities(masks), PARAMS)
  assert float(overall) == pytest.approx(3 / 6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_random_masks_hold_their_budget_and_follow_the_key(share):
  params = {"kernel": jnp.zeros((40, 50))}  # where the parameters are 0 does not matter
  draw = jax.jit(lambda key: pruning.random_masks(params, [jnp.float32(share)], key)[0])
  masks = [np.asarray(draw(jax.random.key(seed))) for seed in (0, 0, 1)]
  assert [int(mask.sum()) for mask in masks] == [round(share * 2000)] * 3
  assert (masks[0] == masks[1]).all()
  assert (masks[0] != masks[2]).any() == (0 < share < 1)
