"""The server step: a weighted mean, a pseudo-gradient, an optimizer.

Reddi et al., Adaptive federated optimization, ICLR 2021, arXiv 2003.00295, algorithm 2. What is
sent and averaged is float32 at least, whatever the dtypes of the model.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from sparsyfed_jax import trees
from sparsyfed_jax.fed.optimizers import apply_updates
from sparsyfed_jax.types import Params, Variables


class Upload(NamedTuple):
  """The upload of a client: its model times its weight, so that uploads can be summed.

  Example:
    >>> import jax.numpy as jnp
    >>> upload = weigh({"params": {"kernel": jnp.full(2, 3.0)}}, jnp.float32(10))
    >>> upload.variables["params"]["kernel"]
    Array([30., 30.], dtype=float32)
  """

  variables: Variables
  weight: jax.Array  # () float32


def by_size(size: jax.Array) -> jax.Array:
  """Weighs clients by their numbers of examples, as FedAvg does."""
  return size.astype(jnp.float32)


def alike(size: jax.Array) -> jax.Array:
  """Gives all clients that have examples the same weight."""
  return (size > 0).astype(jnp.float32)


CLIENT_WEIGHTS = {"size": by_size, "uniform": alike}


def weigh(variables: Variables, weight: jax.Array) -> Upload:
  """Multiplies a client's model by its weight, () float32.

  Example:
    >>> import jax.numpy as jnp
    >>> weigh({"params": jnp.ones(2)}, jnp.float32(5)).weight
    Array(5., dtype=float32)
  """
  chex.assert_rank(weight, 0)
  return Upload(weighed(dict(variables), weight), weight)


def weighed(tree: Any, weight: jax.Array) -> Any:
  """Multiplies the leaves of a tree by a weight, () float32, in float32 at least."""

  def multiply(leaf: jax.Array) -> jax.Array:
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return weight * (leaf if is_float else leaf.astype(jnp.float32))

  return jax.tree.map(multiply, trees.widened(tree))


def mean(upload: Upload, fallback: Variables) -> Variables:
  """Divides the summed uploads by the summed weights; `fallback` if no client had examples."""
  chex.assert_rank(upload.weight, 0)
  is_empty = upload.weight == 0
  weight = jnp.where(is_empty, 1.0, upload.weight)

  def divide(total: jax.Array, otherwise: jax.Array) -> jax.Array:
    return jnp.where(is_empty, otherwise.astype(total.dtype), total / weight)

  return jax.tree.map(divide, upload.variables, dict(fallback))


def unless_nobody(weight: jax.Array, new: Any, old: Any) -> Any:
  """Returns the state after a round, or the one before it if no client had examples.

  Such a round has no update: only its number counts. Momentum does not decay, no mask is chosen,
  and what a method does in its first round it does in the next one.

  Args:
    weight: () float32, of the summed upload.
    new: state after the server's step.
    old: state before the round, of the same structure.
  """
  kept = jax.tree.map(lambda before, after: jnp.where(weight == 0, before, after), old, new)
  return kept._replace(round=new.round)


def step(
  optimizer: optax.GradientTransformation,
  opt_state: optax.OptState,
  params: Params,
  target: Params,
) -> tuple[Params, optax.OptState]:
  """Moves the server's parameters towards the clients' mean.

  The pseudo-gradient is params - target, so that gradient descent at rate 1 adopts the mean. Where
  a prunable parameter is 0 in the mean, no client kept it, and it becomes exactly 0 whatever the
  optimizer makes of it; momentum alone would bring it back.

  Args:
    optimizer: of the server.
    opt_state: its state.
    params: the server's parameters.
    target: mean of the clients' parameters, float32 at least.

  Returns:
    New parameters and optimizer state.
  """
  pseudo_gradient = jax.tree.map(jnp.subtract, trees.widened(params), target)
  updates, opt_state = optimizer.update(pseudo_gradient, opt_state, params)
  moved = apply_updates(params, updates)
  kept = trees.map_prunable(lambda new, goal: jnp.where(goal == 0, 0, new), moved, target)
  return kept, opt_state
