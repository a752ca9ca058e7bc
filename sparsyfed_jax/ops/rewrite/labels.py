"""What is known of a value in a traced function: which parameter it is, where the batch is."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax.ops.rows import Rows, Unknown, Where
from sparsyfed_jax.trees import path_name


class Label(NamedTuple):
  """What is known of a value."""

  path: str | None = None  # of the one parameter that it is a view of
  sources: frozenset[str] = frozenset()  # the parameters on which it depends
  rows: Where = None
  is_data: bool = False  # whether it depends on the examples
  is_random: bool = False  # whether it depends on a key, and may differ from row to row


NOTHING = Label()
LONE = Rows(0, 1, 1)  # of a batch of one


def join_rows(first: Where, second: Where, primitive: str) -> Where:
  """Finds where the batch is in a value that is made of two, entry by entry."""
  if first is None or first == second:
    return second
  if second is None:
    return first
  return next((one for one in (first, second) if isinstance(one, Unknown)), Unknown(primitive))


def join(labels: Iterable[Label], primitive: str) -> Label:
  """Makes the label of a value that is made of others, entry by entry, or is one of them."""
  labels = list(labels)
  paths = {label.path for label in labels}
  return Label(
    paths.pop() if len(paths) == 1 else None,
    sources_of(labels),
    functools.reduce(
      lambda rows, label: join_rows(rows, label.rows, primitive), labels, NOTHING.rows
    ),
    any(label.is_data for label in labels),
    any(label.is_random for label in labels),
  )


def sources_of(labels: Sequence[Label]) -> frozenset[str]:
  """Collects the parameters on which values depend."""
  distinct = {label.sources for label in labels if label.sources}
  return distinct.pop() if len(distinct) == 1 else frozenset().union(*distinct)


def of_arguments(params: object, args: tuple, axes: tuple) -> list[Label]:
  """Makes the labels of the leaves of a function's arguments.

  Args:
    params: pytree of parameters.
    args: pytrees of arrays.
    axes: a prefix of `args`: where the batch is, None in what holds no examples.

  Raises:
    ValueError: an array has no such axis, or two have batches of different sizes.
  """
  labels = [
    Label(path_name(path), frozenset([path_name(path)]))
    for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
  ]

  def is_axis(entry: object) -> bool:
    return entry is None or isinstance(entry, int)

  sizes: dict[int, str] = {}

  def label(axis: int | None, path: tuple, leaf: jax.Array) -> Label:
    if axis is None:
      return Label(is_random=jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))
    name = f"batch_axes: {axis} for argument{jax.tree_util.keystr(path)} of shape {leaf.shape}"
    if not 0 <= axis < leaf.ndim:
      raise ValueError(f"{name}: must be one of its axes, or None where it holds no examples")
    sizes.setdefault(leaf.shape[axis], name)
    if len(sizes) > 1:
      raise ValueError(f"{name}: must hold as many examples as other arguments: {max(sizes)}")
    rows = Rows(axis, 1, leaf.shape[axis]) if leaf.shape[axis] > 1 else LONE
    return Label(rows=rows, is_data=True)

  flat = jax.tree_util.tree_flatten_with_path(args)[0]
  spread = jax.tree.leaves(
    jax.tree.map(
      lambda axis, part: jax.tree.map(lambda _: [axis], part), axes, args, is_leaf=is_axis
    ),
    is_leaf=lambda entry: isinstance(entry, list),
  )
  return labels + [label(axis, *entry) for (axis,), entry in zip(spread, flat, strict=True)]
