"""How much memory a client takes while it trains, estimated without compiling anything."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.fed.task import plain_layers
from sparsyfed_jax.types import Batch, Params

# Of the parameters, in a step: those trained and their update, the gradient, powers of them with
# their derivative, and what the optimizer or the method keeps.
_COPIES = 6


def client_bytes(setup: Setup, example: jax.ShapeDtypeStruct) -> int:
  """Estimates the bytes that each client of a chunk takes besides what all clients share.

  Counts what a gradient step keeps for its backward pass, as it is traced, and copies of the
  parameters. The compiler may need less, because it keeps not everything at the same time.

  Args:
    setup: of the method.
    example: shape and dtype of one example, as stored.
  """
  task, size = setup.task, setup.local.batch_size
  key = jax.eval_shape(lambda: jax.random.key(0))
  variables = jax.eval_shape(task.init, key)

  def zeros() -> Batch:
    x = jnp.zeros((size, *example.shape), example.dtype)
    return Batch(x, jnp.zeros(size, jnp.int32), jnp.zeros(size, bool))

  batch = jax.eval_shape(zeros)

  def kept(params: Params, rest: Any, batch: Batch, key: jax.Array) -> Any:
    def loss(params: Params) -> jax.Array:
      return task.loss({**rest, "params": params}, batch, plain_layers, key)[0]

    return jax.vjp(loss, params)[1]  # whose leaves are what the backward pass needs

  rest = {name: leaf for name, leaf in variables.items() if name != "params"}
  residuals = jax.eval_shape(kept, variables["params"], rest, batch, key)
  return _bytes(residuals) + _COPIES * _bytes(variables["params"]) + _bytes(batch)


def _bytes(tree: Any) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
