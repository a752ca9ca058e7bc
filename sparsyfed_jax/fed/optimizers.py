"""The optimizers of clients and of the server, all optax's.

A client's takes its rate and the L2 coefficient of the round; the server's takes its rate.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import optax

from sparsyfed_jax.types import Params

# (learning rate, weight decay) -> optimizer of a client's round
ClientOptimizer: TypeAlias = Callable[[jax.Array, jax.Array], optax.GradientTransformation]
# learning rate -> optimizer on the pseudo-gradient
ServerOptimizer: TypeAlias = Callable[[jax.Array], optax.GradientTransformation]


def sgd(momentum: float = 0.0, nesterov: bool = False) -> ClientOptimizer:
  """Makes SGD whose L2 term is added to the gradient of all parameters, as in PyTorch."""

  def make(lr: jax.Array, weight_decay: jax.Array) -> optax.GradientTransformation:
    # No momentum keeps no trace, which would cost memory and time.
    step = optax.sgd(lr, momentum or None, nesterov)
    return optax.chain(optax.add_decayed_weights(weight_decay), step)

  return make


def adamw(lr: jax.Array, weight_decay: jax.Array) -> optax.GradientTransformation:
  """Makes AdamW, whose decay is decoupled from the gradient."""
  return optax.adamw(lr, weight_decay=weight_decay)


def clipped(optimizer: ClientOptimizer, max_norm: float) -> ClientOptimizer:
  """Clips the gradient of each step by its global norm, before the L2 term."""

  def make(lr: jax.Array, weight_decay: jax.Array) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(max_norm), optimizer(lr, weight_decay))

  return make


def proximal(coefficient: jax.Array, anchor: Params) -> optax.GradientTransformation:
  """Adds the gradient of coefficient / 2 * |params - anchor|^2 to that of the loss.

  FedProx: Li et al., Federated optimization in heterogeneous networks, MLSys 2020, arXiv
  1812.06127, equation 2.

  Args:
    coefficient: () float32, the paper's mu.
    anchor: what the client received.
  """

  def pull(updates: Params, params: Params | None) -> Params:
    def add(gradient: jax.Array, here: jax.Array, there: jax.Array) -> jax.Array:
      return gradient + coefficient * (here - there)

    return jax.tree.map(add, updates, params, anchor)

  return optax.stateless(pull)


SERVER_OPTIMIZERS: dict[str, ServerOptimizer] = {
  "sgd": optax.sgd,
  "momentum": partial(optax.sgd, momentum=0.9),
  # The adaptivity of Reddi et al. 2021 (arXiv 2003.00295), whose moments start small.
  "adagrad": partial(optax.adagrad, initial_accumulator_value=0.0, eps=1e-3),
  "adam": partial(optax.adam, b1=0.9, b2=0.99, eps=1e-3),
  "yogi": partial(optax.yogi, b1=0.9, b2=0.99, eps=1e-3),
}
