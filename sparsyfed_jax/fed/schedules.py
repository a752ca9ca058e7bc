"""Schedules over rounds: the clients' learning rate and the density of their uploads."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from sparsyfed_jax.fed.hyper import Hyper

# Share of the way from dense to the target density, as a function of the share of the ramp done.
SparsitySchedule: TypeAlias = Callable[[jax.Array], jax.Array]
# (rate of round 0, rate of the last round, share of the rounds done) -> rate
RateSchedule: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def constant(progress: jax.Array) -> jax.Array:
  """Prunes to the target from round 1 on, as SparsyFed does."""
  return jnp.ones_like(progress)


def linear(progress: jax.Array) -> jax.Array:
  """Raises the sparsity by the same amount each round of the ramp."""
  return progress


def cubic(progress: jax.Array) -> jax.Array:
  """Raises the sparsity fast at first, slowly near the target.

  Zhu & Gupta, To prune, or not to prune, 2017, arXiv 1710.01878, equation 1.
  """
  return 1 - (1 - progress) ** 3


# How the sparsity grows over the rounds, by name.
SPARSITY_SCHEDULES: dict[str, SparsitySchedule] = {
  "constant": constant,
  "cubic": cubic,
  "linear": linear,
}


def density_at(schedule: SparsitySchedule, hyper: Hyper, round_number: jax.Array) -> jax.Array:
  """Computes the density to which clients prune in a round.

  Args:
    schedule: the form of the ramp.
    hyper: of the run.
    round_number: () int32 from 1.

  Returns:
    () float32: exactly `hyper.density` from round `hyper.ramp_rounds` on.
  """
  t = round_number.astype(jnp.float32)
  progress = jnp.minimum(t / jnp.maximum(hyper.ramp_rounds, 1.0), 1.0)
  return hyper.density + (1 - hyper.density) * (1 - schedule(progress))


def exponential_rate(first: jax.Array, last: jax.Array, share: jax.Array) -> jax.Array:
  """Falls by the same factor each round, lr_0 (lr_T / lr_0)^(t / T), as SparsyFed's does."""
  return first * (last / first) ** share


def linear_rate(first: jax.Array, last: jax.Array, share: jax.Array) -> jax.Array:
  """Falls by the same amount each round."""
  return first + (last - first) * share


def cosine_rate(first: jax.Array, last: jax.Array, share: jax.Array) -> jax.Array:
  """Falls slowly at both ends (Loshchilov & Hutter, SGDR, ICLR 2017, arXiv 1608.03983)."""
  return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2


def constant_rate(first: jax.Array, last: jax.Array, share: jax.Array) -> jax.Array:
  """Keeps the first rate."""
  return first


# How the clients' rate falls over the rounds, by name.
RATE_SCHEDULES: dict[str, RateSchedule] = {
  "exponential": exponential_rate,
  "linear": linear_rate,
  "cosine": cosine_rate,
  "constant": constant_rate,
}


def client_lr_at(schedule: RateSchedule, hyper: Hyper, round_number: jax.Array) -> jax.Array:
  """Computes the clients' rate in a round.

  Args:
    schedule: the form of the decay.
    hyper: whose rates are positive.
    round_number: () int32 from 1.

  Returns:
    () float32.
  """
  share = round_number.astype(jnp.float32) / hyper.rounds
  return schedule(hyper.client_lr, hyper.client_lr_final, share)
