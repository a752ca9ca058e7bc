"""Hyperparameters that are traced, so that changing them does not recompile."""

from typing import Any, NamedTuple

import jax


class Hyper(NamedTuple):
  """Traced hyperparameters: () float32 arrays, which the state carries.

  Example:
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> task = sf.classification(sf.models.MLP(10), data)
    >>> run = sf.simulate(sf.sparsyfed(sparsity=0.75), task, sf.data.iid(data))
    >>> run.hyper.density
    Array(0.25, dtype=float32)
  """

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
  total_weight: jax.Array  # of all clients together, those that are not sampled included
  own: Any = ()  # the numbers of the method, the `Hyper` of its file
