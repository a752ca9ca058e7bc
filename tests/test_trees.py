"""Which leaves are pruned, and what is put in their place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparsyfed_jax import trees


class Layer(NamedTuple):
  kernel: np.ndarray
  bias: np.ndarray


# Six entries in prunable leaves: Conv_0/kernel and block/1/kernel.
TREE = {
  "Conv_0": {"kernel": np.ones((1, 1, 2, 2)), "bias": np.zeros(2)},
  "norm": {"scale": np.ones((2, 2)), "bias": np.zeros((2, 2)), "kernel": np.ones(3)},
  "block": [{"embedding": np.ones((3, 2))}, Layer(np.array([[0.0, 5.0]]), np.array([[1.0]]))],
}
PRUNABLE = ["Conv_0/kernel", "block/1/kernel"]


def names(tree, wanted):
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [trees.path_name(path) for path, leaf in flat if wanted(path, leaf)]


def test_kernels_with_two_axes_are_prunable_and_nothing_else():
  assert sorted(names(TREE, trees.is_prunable)) == PRUNABLE


def test_a_bare_array_is_not_prunable():
  assert not trees.is_prunable((), np.ones((2, 2)))


def test_of_a_flax_model_biases_and_norms_are_not_prunable():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))
      x = nn.LayerNorm()(nn.GroupNorm(2)(x))
      return nn.Dense(2)(nn.Embed(5, 3)(jnp.arange(5)) + nn.Dense(3)(x.reshape(1, -1)))

  shapes = jax.eval_shape(Model().init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
  prunable = names(shapes["params"], trees.is_prunable)
  assert sorted(prunable) == ["Conv_0/kernel", "Dense_0/kernel", "Dense_1/kernel"]
  assert len(jax.tree.leaves(shapes["params"])) == 6 + 2 * 3 + 1
  assert not names(shapes["batch_stats"], trees.is_prunable)


class TestSplitPrunable:
  def test_round_trip(self):
    leaves, rebuild = trees.split_prunable(TREE)
    assert sorted(leaf.shape for leaf in leaves) == [(1, 1, 2, 2), (1, 2)]
    again = rebuild(leaves)
    assert jax.tree.structure(again) == jax.tree.structure(TREE)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(TREE), strict=True):
      assert a is b

  def test_puts_others_in_place_and_leaves_the_tree_alone(self):
    leaves, rebuild = trees.split_prunable(TREE)
    rebuilt = rebuild([leaf + 10 for leaf in leaves])
    assert (rebuilt["Conv_0"]["kernel"] == 11).all()
    assert rebuilt["block"][1].kernel.tolist() == [[10, 15]]
    assert rebuilt["norm"]["scale"] is TREE["norm"]["scale"]
    assert (TREE["Conv_0"]["kernel"] == 1).all()

  def test_asks_for_as_many_as_it_gave(self):
    leaves, rebuild = trees.split_prunable(TREE)
    for wrong in (leaves[:1], [*leaves, leaves[0]]):
      with pytest.raises(ValueError):
        rebuild(wrong)

  @pytest.mark.parametrize("tree", [{}, {"bias": np.ones(2)}])
  def test_nothing_to_prune(self, tree):
    leaves, rebuild = trees.split_prunable(tree)
    assert leaves == [] and rebuild([]) == tree


class TestMapPrunable:
  def test_pairs_leaves_of_several_trees(self):
    twice = jax.tree.map(lambda leaf: 2 * leaf, TREE)
    mapped = trees.map_prunable(lambda a, b: a - b, TREE, twice)
    np.testing.assert_array_equal(mapped["Conv_0"]["kernel"], -TREE["Conv_0"]["kernel"])
    np.testing.assert_array_equal(mapped["block"][1].kernel, [[0, -5]])
    assert mapped["norm"]["scale"] is TREE["norm"]["scale"]

  def test_the_trees_must_agree(self):
    with pytest.raises(ValueError):
      trees.map_prunable(lambda a, b: a, TREE, {"kernel": np.ones((2, 2))})


@pytest.mark.parametrize(
  ("tree", "expected"),
  [
    ({}, 0),
    ({"a": np.zeros((0, 3))}, 0),
    (TREE, 4 + 2 + 4 + 4 + 3 + 6 + 2 + 1),
    ([jnp.float32(1), jax.ShapeDtypeStruct((5, 7), jnp.float32)], 36),
  ],
)
def test_size_counts_entries(tree, expected):
  assert trees.size(tree) == expected


def test_layers_are_named_in_the_order_of_their_leaves():
  names = trees.layer_names(TREE)
  leaves, _ = trees.split_prunable(TREE)
  assert len(names) == len(leaves) and names[0] == "Conv_0"


@pytest.mark.parametrize(
  ("pattern", "found"),
  [("", []), ("shortcut", ["Block_0/shortcut"]), ("^Conv_0$", ["Conv_0"]), ("Conv|D", ["Conv_0"])],
)
def test_name_finder(pattern, found):
  names = ["Conv_0", "Block_0/shortcut", "other"]
  assert [name for name in names if trees.name_finder(pattern)(name)] == found
