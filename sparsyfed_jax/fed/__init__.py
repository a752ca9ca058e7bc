"""The engine: what a method is, local training, the cohort, the server step, the simulation.

`averaging` and `masked` hold what methods share that average models, or that train inside masks;
`adjusting` what those share whose masks are readjusted every few rounds.
"""

from sparsyfed_jax.fed import adjusting, averaging, masked
from sparsyfed_jax.fed.algorithm import (
  Algorithm,
  Broadcast,
  Client,
  Init,
  MakeMemory,
  Model,
  ReadMasks,
  Server,
  Setup,
  require_prunable,
  require_rows,
)
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.cohort import Federation, federation_of
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.method import Configured, Method, factory
from sparsyfed_jax.fed.metric import Metric
from sparsyfed_jax.fed.optimizers import SERVER_OPTIMIZERS, adamw, clipped, fedopt, sgd
from sparsyfed_jax.fed.pruning import (
  apply_masks,
  global_masks,
  largest_masks,
  prune_globally,
  random_masks,
)
from sparsyfed_jax.fed.rule import LocalRule, train_client
from sparsyfed_jax.fed.rules import Choice, Knob, Pattern
from sparsyfed_jax.fed.schedules import RATE_SCHEDULES, SPARSITY_SCHEDULES
from sparsyfed_jax.fed.server import Upload, weigh
from sparsyfed_jax.fed.simulation import Simulation, simulate
from sparsyfed_jax.fed.task import Task, classification, supervised

__all__ = [
  "RATE_SCHEDULES",
  "SERVER_OPTIMIZERS",
  "SPARSITY_SCHEDULES",
  "Algorithm",
  "Broadcast",
  "Choice",
  "Client",
  "Configured",
  "Federation",
  "Hyper",
  "Init",
  "Knob",
  "LocalRule",
  "LocalTraining",
  "MakeMemory",
  "Method",
  "Metric",
  "Model",
  "Pattern",
  "ReadMasks",
  "Server",
  "Setup",
  "Simulation",
  "Task",
  "Upload",
  "adamw",
  "adjusting",
  "apply_masks",
  "averaging",
  "classification",
  "clipped",
  "factory",
  "federation_of",
  "fedopt",
  "global_masks",
  "largest_masks",
  "masked",
  "prune_globally",
  "random_masks",
  "require_prunable",
  "require_rows",
  "sgd",
  "simulate",
  "supervised",
  "train_client",
  "weigh",
]
