"""The numbers of a run that do not change the compiled program."""

from typing import NamedTuple

import jax


class Hyper(NamedTuple):
  """What an ablation varies continuously: () float32 arrays in the state, so nothing recompiles."""

  rounds: jax.Array  # planned length of the run, T
  client_lr: jax.Array  # rate of round 0
  client_lr_final: jax.Array  # rate of round T
  weight_decay: jax.Array  # L2 on all trained parameters
  server_lr: jax.Array
  density: jax.Array  # share of prunable weights that a client may upload at the end of the ramp
  ramp_rounds: jax.Array  # rounds over which the density falls from 1, 0 for none
  beta: jax.Array  # exponent of powerpropagation
  activation_floor: jax.Array  # least share of activations kept for the backward pass
