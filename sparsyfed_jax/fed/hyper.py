"""The numbers of a run that do not change the compiled program."""

from typing import NamedTuple

import jax


class Hyper(NamedTuple):
  """What an ablation varies continuously: () float32 arrays in the state, so nothing recompiles."""

  rounds: jax.Array  # planned length of the run, T
  client_lr: jax.Array  # rate of round 0
  client_lr_final: jax.Array  # rate of round T
  weight_decay: jax.Array  # L2 on all trained parameters
  proximal_mu: jax.Array  # FedProx's coefficient
  server_lr: jax.Array
  server_tau: jax.Array  # adaptivity of the server optimizers of Reddi et al.
  client_dropout: jax.Array  # probability that a sampled client vanishes
  straggler_fraction: jax.Array  # probability that a client does only a part of its work
  density: jax.Array  # share of prunable weights that a client may upload at the end of the ramp
  ramp_rounds: jax.Array  # rounds over which the density falls from 1, 0 for none
  beta: jax.Array  # exponent of powerpropagation
  activation_floor: jax.Array  # least share of activations kept for the backward pass
  zerofl_mask_ratio: jax.Array  # by how much more ZeroFL's clients send than they compute with
  flash_warmup_rounds: jax.Array  # rounds in which FLASH's clients only look for layer densities
  flash_warmup_epochs: jax.Array  # local epochs in those
  flash_update_every: jax.Array  # rounds between two masks of FLASH's JMWST
  flash_drop_rate: jax.Array  # share of weights FLASH exchanges, falling to 0 over the epochs
  feddst_update_every: jax.Array  # rounds between two readjustments of FedDST
  feddst_update_until: jax.Array  # round from which on FedDST's masks stay
  feddst_drop_rate: jax.Array  # share of weights that FedDST exchanges at first
