"""The optimizers of clients and of the server, made of optax's parts.

A client's takes its rate and the L2 coefficient of the round; the server's takes its rate, and
those of Reddi et al. their tau too.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.types import Params

# (learning rate, weight decay) -> optimizer of a client's round
ClientOptimizer: TypeAlias = Callable[[jax.Array, jax.Array], optax.GradientTransformation]


class FedOpt(NamedTuple):
  """A server optimizer of Reddi et al."""

  make: Callable[[jax.Array, jax.Array], optax.GradientTransformation]  # (learning rate, tau) -> it


# learning rate -> optimizer on the pseudo-gradient; or one that takes tau too
ServerOptimizer: TypeAlias = Callable[[jax.Array], optax.GradientTransformation] | FedOpt

_EXPONENT_BITS = 0x7F800000  # of a float32
_LARGE = 2.0**126  # whose inverse is a normal number too
_LEAST_SQUARE = 2.0**-70  # above it, squares that float32 loses are no part worth counting


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """Makes an optimizer compute in float32 at least, whatever the dtypes of the parameters.

  Its state and its updates are float32 where parameters are bfloat16 or float16; `apply_updates`
  adds them. With float32 parameters it is the optimizer itself, to the bit.
  """

  def init(params: Params) -> optax.OptState:
    return optimizer.init(trees.widened(params))

  def update(
    updates: Params, state: optax.OptState, params: Params | None = None
  ) -> tuple[Params, optax.OptState]:
    return optimizer.update(trees.widened(updates), state, trees.widened(params))

  return optax.GradientTransformation(init, update)


def apply_updates(params: Params, updates: Params) -> Params:
  """Adds updates in their own dtypes; the result has those of the parameters."""
  return jax.tree.map(lambda p, u: (p.astype(u.dtype) + u).astype(p.dtype), params, updates)


def sgd(momentum: float = 0.0, nesterov: bool = False) -> ClientOptimizer:
  """Makes SGD whose L2 term is added to the gradient of all parameters, as in PyTorch.

  Example:
    >>> import jax.numpy as jnp
    >>> step = sgd(momentum=0.9)(jnp.float32(0.1), jnp.float32(0))
    >>> updates, _ = step.update(jnp.ones(1), step.init(jnp.ones(1)), jnp.ones(1))
    >>> updates
    Array([-0.1], dtype=float32)
  """

  def make(lr: jax.Array, weight_decay: jax.Array) -> optax.GradientTransformation:
    # No momentum keeps no trace, which would cost memory and time.
    step = optax.sgd(lr, momentum or None, nesterov)
    return optax.chain(optax.add_decayed_weights(weight_decay), step)

  return make


def adamw(lr: jax.Array, weight_decay: jax.Array) -> optax.GradientTransformation:
  """Makes AdamW, whose decay is decoupled from the gradient.

  Example:
    >>> import jax.numpy as jnp
    >>> step = adamw(jnp.float32(0.01), jnp.float32(0))
    >>> updates, _ = step.update(jnp.ones(1), step.init(jnp.ones(1)), jnp.ones(1))
    >>> updates.round(4)
    Array([-0.01], dtype=float32)
  """
  return optax.adamw(lr, weight_decay=weight_decay)


def clipped(optimizer: ClientOptimizer, max_norm: float) -> ClientOptimizer:
  """Clips the gradient of each step by its global norm, before the L2 term.

  Example:
    >>> import jax.numpy as jnp
    >>> step = clipped(sgd(), max_norm=1.0)(jnp.float32(1), jnp.float32(0))
    >>> updates, _ = step.update(jnp.array([3.0, 4.0]), step.init(jnp.ones(2)), jnp.ones(2))
    >>> updates
    Array([-0.6, -0.8], dtype=float32)
  """

  def make(lr: jax.Array, weight_decay: jax.Array) -> optax.GradientTransformation:
    return optax.chain(clip_by_global_norm(max_norm), optimizer(lr, weight_decay))

  return make


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales updates whose global norm is above `max_norm` down to it.

  Equals optax's of that name to the bit, but for updates whose squares float32 cannot hold, of
  which optax's makes 0 or which it does not clip. A NaN or an infinity makes NaN of the updates.
  """

  def clip(updates: Params, params: Params | None) -> Params:
    del params
    factor, norm = _scaled_norm(jax.tree.leaves(updates))
    is_small = norm < max_norm * factor

    def scale(update: jax.Array) -> jax.Array:
      of_dtype = factor.astype(update.dtype), norm.astype(update.dtype)
      return jnp.where(is_small, update, update * of_dtype[0] / of_dtype[1] * max_norm)

    return jax.tree.map(scale, updates)

  return optax.stateless(clip)


def _scaled_norm(leaves: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
  """Computes a power of two, and the global norm times it, whose square float32 can hold.

  The power is 1 unless the square of the norm is beyond float32, so that gradients are read once
  more only where that is so. A power of two rounds nothing.
  """

  def square(factor: jax.Array) -> jax.Array:
    squares = [jnp.sum(jnp.square(leaf * factor.astype(leaf.dtype))) for leaf in leaves]
    return sum((part.astype(jnp.float32) for part in squares), jnp.float32(0))

  def rescale() -> tuple[jax.Array, jax.Array]:
    tops = [jnp.max(jnp.abs(leaf), initial=0).astype(jnp.float32) for leaf in leaves]
    factor = _inverse_power_of_two(reduce(jnp.maximum, tops, jnp.float32(0)))
    return factor, square(factor)

  whole = sum((jnp.sum(jnp.square(leaf)).astype(jnp.float32) for leaf in leaves), jnp.float32(0))
  is_held = (whole > _LEAST_SQUARE) & (whole < jnp.inf)
  usual = jnp.float32(1), whole
  found = lax.cond(_of_any(~is_held), rescale, lambda: usual)
  factor, total = (jnp.where(is_held, a, b) for a, b in zip(usual, found, strict=True))
  return factor, jnp.sqrt(total)


@jax.custom_batching.custom_vmap
def _of_any(is_needed: jax.Array) -> jax.Array:
  """Makes one answer of those of clients side by side, so that a branch on it stays a branch."""
  return is_needed


@_of_any.def_vmap
def _of_any_batched(axis_size: int, in_batched: list[bool], is_needed: jax.Array) -> Any:
  del axis_size, in_batched
  return _of_any(jnp.any(is_needed)), False


def _inverse_power_of_two(x: jax.Array) -> jax.Array:
  """Computes 1 / 2^floor(log2(x)) of a float32 that is not negative, as far as it is normal."""
  bits = lax.bitcast_convert_type(jnp.clip(x, 1 / _LARGE, _LARGE), jnp.uint32)
  return 1 / lax.bitcast_convert_type(bits & jnp.uint32(_EXPONENT_BITS), jnp.float32)


def proximal(coefficient: jax.Array, anchor: Params) -> optax.GradientTransformation:
  """Adds the gradient of `coefficient / 2 * |params - anchor|^2` to that of the loss.

  FedProx: Li et al., Federated optimization in heterogeneous networks, MLSys 2020, arXiv
  1812.06127, equation 2.

  Args:
    coefficient: () float32, the paper's mu.
    anchor: what the client received.
  """

  def pull(updates: Params, params: Params | None) -> Params:
    def add(gradient: jax.Array, here: jax.Array, there: jax.Array) -> jax.Array:
      return gradient + coefficient * (here - there.astype(here.dtype))

    return jax.tree.map(add, updates, params, anchor)

  return optax.stateless(pull)


class Moments(NamedTuple):
  """The state of a `fedopt` optimizer; both like the parameters."""

  mean: Params  # m
  square: Params  # v


# v of a round, of v of the round before and the square of the pseudo-gradient.
SecondMoment: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def fedopt(second_moment: SecondMoment, b1: float) -> FedOpt:
  """Makes an adaptive server optimizer of algorithm 2 of Reddi et al.

  With the pseudo-gradient g = -Delta, m = b1 m + (1 - b1) g, v = second_moment(v, g^2) and the
  update -lr m / (sqrt(v) + tau); m starts at 0 and v at tau^2. Unlike optax's adam nothing is
  corrected for the start, and unlike optax's adagrad tau is not under the root.

  Reddi et al., Adaptive federated optimization, ICLR 2021, arXiv 2003.00295.

  Args:
    second_moment: the rule of v, entry by entry.
    b1: weight of the old m, in [0, 1).

  Example:
    >>> import jax.numpy as jnp
    >>> adagrad = fedopt(lambda v, square: v + square, b1=0.0)
    >>> step = adagrad.make(jnp.float32(1), jnp.float32(0))
    >>> updates, _ = step.update(jnp.full(1, 2.0), step.init(jnp.ones(1)))
    >>> updates
    Array([-1.], dtype=float32)
  """

  def make(lr: jax.Array, tau: jax.Array) -> optax.GradientTransformation:
    def init(params: Params) -> Moments:
      square = jax.tree.map(lambda p: jnp.full_like(p, jnp.square(tau)), params)
      return Moments(jax.tree.map(jnp.zeros_like, params), square)

    def update(updates: Params, state: Moments, params: Any = None) -> tuple[Params, Moments]:
      del params
      mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
      square = jax.tree.map(lambda v, g: second_moment(v, jnp.square(g)), state.square, updates)
      steps = jax.tree.map(lambda m, v: -lr * m / (jnp.sqrt(v) + tau), mean, square)
      return steps, Moments(mean, square)

    return optax.GradientTransformation(init, update)

  return FedOpt(make)


def server_optimizer(
  optimizer: ServerOptimizer, lr: jax.Array, tau: jax.Array
) -> optax.GradientTransformation:
  """Makes a server's optimizer at a rate and, if it takes one, a tau; it computes in float32."""
  return in_float32(optimizer.make(lr, tau) if isinstance(optimizer, FedOpt) else optimizer(lr))


_B2 = 0.99  # section 5 of Reddi et al., as b1 is below
FEDOPT: dict[str, FedOpt] = {
  "fedadagrad": fedopt(lambda v, square: v + square, b1=0.0),
  "fedadam": fedopt(lambda v, square: _B2 * v + (1 - _B2) * square, b1=0.9),
  "fedyogi": fedopt(lambda v, square: v - (1 - _B2) * square * jnp.sign(v - square), b1=0.9),
}
# The server optimizers by name.
SERVER_OPTIMIZERS: dict[str, ServerOptimizer] = {
  "sgd": optax.sgd,
  "momentum": partial(optax.sgd, momentum=0.9),
  # Optax's own, with a fixed eps: adagrad has it under the root, adam and yogi correct the bias.
  "adagrad": partial(optax.adagrad, initial_accumulator_value=0.0, eps=1e-3),
  "adam": partial(optax.adam, b1=0.9, b2=0.99, eps=1e-3),
  "yogi": partial(optax.yogi, b1=0.9, b2=0.99, eps=1e-3),
  **FEDOPT,
}
