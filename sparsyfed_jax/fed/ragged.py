"""A `fori_loop` whose trip count may differ between vmapped clients.

Under `vmap` a loop with a traced trip count runs every client for the longest count. Here the
clients that have finished are dropped in stages, and the step is compiled for each smaller batch.
That saves time when clients are sorted by their number of steps, as they are in a cohort; the
result does not depend on the order. One client, or a few, use an ordinary loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

SHRINKAGE = 0.75  # of the clients that go on, from part to part
LEAST_WIDTH = 3  # clients side by side that go on to the end
UNEVEN = 1.5  # longest loop, relative to the mean
MAX_PARTS = 11  # each is compiled for itself


def are_uneven(sizes: np.ndarray, batch_size: int) -> bool:
  """Tells whether clients differ so much that `ragged_loop` is worth its compilation.

  Args:
    sizes: (num_clients,) numbers of examples.
    batch_size: of a step.
  """
  num_steps = -(-np.asarray(sizes) // batch_size)
  return bool(num_steps.max() > UNEVEN * num_steps.mean())


def ragged_loop(body: Callable[[jax.Array, Any], Any], num_steps: jax.Array, carry: Any) -> Any:
  """Does as `lax.fori_loop(0, num_steps, body, carry)`, in less time where many are vmapped.

  Those of few steps should come first.

  Args:
    body: (step, carry) -> carry; may use whatever is around it.
    num_steps: () int32.
    carry: pytree of arrays.

  Returns:
    The last carry.
  """
  # What the body uses has to be handed in, for some of it may be each client's own.
  closed, shapes = jax.make_jaxpr(body, return_shape=True)(jnp.int32(0), carry)
  treedef = jax.tree.structure(shapes)

  def step(around: Any, i: jax.Array, carry: Any) -> Any:
    leaves = jax.core.eval_jaxpr(closed.jaxpr, around, i, *jax.tree.leaves(carry))
    return jax.tree.unflatten(treedef, leaves)

  @custom_vmap
  def loop(around: Any, num_steps: jax.Array, carry: Any) -> Any:
    return lax.fori_loop(0, num_steps, lambda i, carry: step(around, i, carry), carry)

  @loop.def_vmap
  def loop_side_by_side(
    size: int, is_batched: Any, around: Any, num_steps: jax.Array, carry: Any
  ) -> Any:
    around_axes, steps_axis, carry_axes = (
      jax.tree.map(lambda has_axis: 0 if has_axis else None, part) for part in is_batched
    )
    num_steps = _broadcast(num_steps, steps_axis, size)
    carry = _map(lambda leaf, axis: _broadcast(leaf, axis, size), carry, carry_axes)

    def run(first: int, begin: jax.Array, end: jax.Array, carry: Any) -> Any:
      """Runs steps of the clients from a place on."""
      left = num_steps[first:]
      mine = _map(lambda leaf, axis: leaf if axis is None else leaf[first:], around, around_axes)
      step_all = jax.vmap(step, (around_axes, None, 0))

      def step_unless_done(i: jax.Array, carry: Any) -> Any:
        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
          return jnp.where((i < left).reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, step_all(mine, i, carry), carry)

      return lax.fori_loop(begin, end, step_unless_done, carry)

    begin, result = jnp.int32(0), carry
    widths = _widths(size)
    for width, left in zip(widths, [*widths[1:], 0], strict=True):
      first, leaving = size - width, width - left
      end = jnp.maximum(begin, jnp.max(num_steps[first : first + leaving]))
      carry = run(first, begin, end, carry)

      def put(whole: jax.Array, part: jax.Array, first: int = first, n: int = leaving) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(whole, part[:n], first, axis=0)

      result = jax.tree.map(put, result, carry) if first else carry
      carry = jax.tree.map(lambda leaf, n=leaving: leaf[n:], carry)
      begin = end
    return result, jax.tree.map(lambda _: True, result)

  return loop(closed.consts, jnp.asarray(num_steps, jnp.int32), carry)


def _widths(size: int) -> list[int]:
  widths = [size]
  while len(widths) < MAX_PARTS and int(SHRINKAGE * widths[-1]) >= LEAST_WIDTH:
    widths.append(int(SHRINKAGE * widths[-1]))
  return widths


def _broadcast(leaf: jax.Array, axis: int | None, size: int) -> jax.Array:
  return jnp.broadcast_to(leaf, (size, *leaf.shape)) if axis is None else leaf


def _map(fn: Callable[..., Any], tree: Any, axes: Any) -> Any:
  """As `jax.tree.map`, for axes of which some are None."""
  leaves, treedef = jax.tree.flatten(tree)
  each = jax.tree.leaves(axes, is_leaf=lambda axis: axis is None)
  return jax.tree.unflatten(treedef, [fn(*pair) for pair in zip(leaves, each, strict=True)])
