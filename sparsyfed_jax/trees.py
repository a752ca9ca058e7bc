"""Pytrees of parameters: which leaves are pruned, and their size."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparsyfed_jax.types import Params


def is_prunable(path: tuple[Any, ...], leaf: jax.Array) -> bool:
  """Tells whether a leaf is the kernel of a dense or convolutional layer.

  Biases, norm scales and statistics never are. Follows flax's names: such a leaf is called
  `kernel` and has at least two axes.

  Args:
    path: the key path of the leaf, as `jax.tree_util.tree_flatten_with_path` gives it.
    leaf: an array, or anything with `ndim`.
  """
  last = path[-1] if path else None
  name = getattr(last, "key", getattr(last, "name", None))
  return name == "kernel" and leaf.ndim >= 2


def path_name(path: tuple[Any, ...]) -> str:
  """Writes a key path as flax users do: `Conv_0/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def split_prunable(
  params: Params,
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Params]]:
  """Takes the prunable leaves out of a tree.

  Args:
    params: a pytree of arrays.

  Returns:
    The prunable leaves in tree order, and a function that puts others in their place and leaves
    the rest of `params` as it is.
  """
  flat, treedef = jax.tree_util.tree_flatten_with_path(params)
  leaves = [leaf for _, leaf in flat]
  places = [i for i, (path, leaf) in enumerate(flat) if is_prunable(path, leaf)]

  def rebuild(replacements: Sequence[jax.Array]) -> Params:
    new = list(leaves)
    for place, leaf in zip(places, replacements, strict=True):
      new[place] = leaf
    return jax.tree_util.tree_unflatten(treedef, new)

  return [leaves[i] for i in places], rebuild


def layer_names(params: Params) -> list[str]:
  """Names the layers of the prunable leaves, in the order of `split_prunable`: `Conv_0`."""
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  return [path_name(path[:-1]) for path, leaf in flat if is_prunable(path, leaf)]


def name_finder(pattern: str) -> Callable[[str], bool]:
  """Makes a test of layers' names: whether a regular expression is found; "" finds nothing."""
  found = re.compile(pattern)
  return lambda name: bool(pattern) and found.search(name) is not None


def is_pattern(text: str) -> bool:
  """Tells whether `name_finder` can read a text."""
  try:
    re.compile(text)
  except re.error:
    return False
  return True


def map_prunable(fn: Callable[..., jax.Array], params: Params, *others: Params) -> Params:
  """Applies `fn` to the prunable leaves of `params` and to those of `others` beside them."""
  leaves, rebuild = split_prunable(params)
  beside = [split_prunable(other)[0] for other in others]
  return rebuild([fn(*group) for group in zip(leaves, *beside, strict=True)])


def widened(tree: Any) -> Any:
  """Makes float32 of the leaves of fewer bits, to compute with; leaves the others as they are."""

  def widen(leaf: jax.Array) -> jax.Array:
    is_narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if is_narrow else leaf

  return jax.tree.map(widen, tree)


def cast_like(tree: Any, other: Any) -> Any:
  """Gives leaves the dtypes of the leaves of another tree; what becomes an integer is rounded."""

  def cast(leaf: jax.Array, like: jax.Array) -> jax.Array:
    is_integer = not jnp.issubdtype(like.dtype, jnp.inexact)
    return (jnp.round(leaf) if is_integer else leaf).astype(like.dtype)

  return jax.tree.map(cast, tree, other)


def size(tree: Any) -> int:
  """Counts the entries of all leaves."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
