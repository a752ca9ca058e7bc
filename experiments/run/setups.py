"""From flags to the static settings of a run, which determine its programs."""

import jax.numpy as jnp
import numpy as np

from experiments.run.config import Config
from experiments.run.tasks import make_task
from sparsyfed_jax.data.batches import batch_rows
from sparsyfed_jax.data.sources import Dataset
from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.measures import NO_MEASURES
from sparsyfed_jax.fed.measures import measures as make_measures
from sparsyfed_jax.fed.optimizers import SERVER_OPTIMIZERS, ClientOptimizer, adamw, clipped, sgd
from sparsyfed_jax.fed.ragged import are_uneven
from sparsyfed_jax.fed.schedules import RATE_SCHEDULES, SPARSITY_SCHEDULES
from sparsyfed_jax.fed.server import CLIENT_WEIGHTS
from sparsyfed_jax.fed.task import of_flat
from sparsyfed_jax.wire.rounding import wire_dtypes


def make_setup(config: Config, sizes: np.ndarray, dataset: Dataset) -> Setup:
  """Makes the static settings of a run.

  Args:
    config: checked and resolved flags.
    sizes: (num_clients,) numbers of examples, of both phases.
    dataset: that the clients share.
  """
  return Setup(
    task=of_flat(make_task(config, dataset), dataset.x_train.shape[1:]),
    local=LocalTraining(
      batch_rows(config.batch_size, sizes),
      config.local_epochs,
      _client_optimizer(config),
      is_proximal=config.proximal_mu > 0,
      is_ragged=config.straggler_fraction > 0 or are_uneven(sizes, config.batch_size),
    ),
    server_optimizer=SERVER_OPTIMIZERS[config.server_optimizer],
    sparsity_schedule=SPARSITY_SCHEDULES[config.sparsity_schedule],
    rate_schedule=RATE_SCHEDULES[config.client_lr_schedule],
    client_weight=CLIENT_WEIGHTS[config.client_weighting],
    is_heterogeneous=bool(config.client_sparsities),
    measures=make_measures(jnp.dtype(config.wire_dtype)) if config.metrics else NO_MEASURES,
    wire_dtype=wire_dtypes(config.wire_dtype)[0],
  )


def _client_optimizer(config: Config) -> ClientOptimizer:
  if config.client_optimizer == "adamw":
    optimizer: ClientOptimizer = adamw
  else:
    optimizer = sgd(config.client_momentum, nesterov=config.client_optimizer == "nesterov")
  return clipped(optimizer, config.client_clip_norm) if config.client_clip_norm else optimizer
