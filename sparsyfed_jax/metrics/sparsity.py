"""Sparsity of a model."""

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.ops import count_each
from sparsyfed_jax.types import Params


def global_sparsity(params: Params) -> jax.Array:
  """Computes the share of zeros among all parameters; () float32 in [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> global_sparsity({"Dense_0": {"kernel": jnp.zeros((2, 3)), "bias": jnp.ones(2)}})
    Array(0.75, dtype=float32)
  """
  return _sparsity(params)


def prunable_sparsity(params: Params) -> jax.Array:
  """Computes the share of zeros among the prunable parameters; () float32 in [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> prunable_sparsity({"Dense_0": {"kernel": jnp.zeros((2, 3)), "bias": jnp.ones(2)}})
    Array(1., dtype=float32)
  """
  return _sparsity(trees.split_prunable(params)[0])


def layer_densities(params: Params) -> dict[str, jax.Array]:
  """Computes the share of non-zeros of each prunable leaf, by the name of its path.

  Example:
    >>> import jax.numpy as jnp
    >>> layer_densities({"Dense_0": {"kernel": jnp.eye(2)}})
    {'Dense_0/kernel': Array(0.5, dtype=float32)}
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  return {
    trees.path_name(path): 1 - _sparsity(leaf)
    for path, leaf in flat
    if trees.is_prunable(path, leaf)
  }


def _sparsity(tree: Params) -> jax.Array:
  num_entries = trees.size(tree)
  (kept,) = count_each(lambda leaf: [leaf != 0], jax.tree.leaves(tree))
  return (num_entries - jnp.sum(kept, dtype=jnp.int32)).astype(jnp.float32) / max(num_entries, 1)
