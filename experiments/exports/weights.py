"""The weights of a loaded model as flat tables, rounded where they are asked for in fewer bits."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax import trees
from sparsyfed_jax.loaded import Loaded
from sparsyfed_jax.wire.rounding import round_to_wire

Table = Mapping[str, np.ndarray]


def flat(variables: Any) -> dict[str, np.ndarray]:
  """Lists arrays by their paths, such as `params/Conv_0/kernel`, each contiguous in memory."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
  return {trees.path_name(path): np.asarray(leaf, order="C") for path, leaf in leaves}


def nested(table: Mapping[str, Any], like: Any) -> Any:
  """Puts a table as `flat` makes it into a tree like another, whose keys may hold a `/`."""
  return jax.tree_util.tree_map_with_path(lambda path, _: table[trees.path_name(path)], like)


def prunable(variables: Any) -> dict[str, np.ndarray]:
  """Lists the prunable parameters by their layers' names."""
  leaves, _ = trees.split_prunable(variables["params"])
  names = trees.layer_names(variables["params"])
  return {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}


def rounded(loaded: Loaded, dtype: str) -> Loaded:
  """Rounds the weights to what a dtype holds, so that no weight becomes 0; they stay float32.

  The model's own `variables` and `predict` are left as they are.
  """
  return loaded._replace(trained=round_to_wire(loaded.trained, jnp.dtype(dtype)))


def outputs(loaded: Loaded, trained: Any, x: np.ndarray) -> np.ndarray:
  """Computes what the network makes of examples with other weights, in nested dicts."""
  return np.asarray(loaded.compute(jax.tree.map(jnp.asarray, dict(trained)), jnp.asarray(x)))


def scaled(loaded: Loaded, x: np.ndarray) -> np.ndarray:
  """Scales examples as the network sees them."""
  mean, std = np.float32(loaded.signature.mean), np.float32(loaded.signature.std)
  return (np.asarray(x, np.float32) - mean) / std
