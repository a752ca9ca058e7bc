"""Sparse federated learning in JAX: SparsyFed (arXiv 2504.05153) and its relatives.

A run takes a data set dealt to clients, a task, a method, and `simulate`:

>>> import sparsyfed_jax as sf
>>> data = sf.data.digits(seed=0)
>>> clients = sf.data.dirichlet(data, num_clients=100, alpha=0.1, seed=0)
>>> task = sf.classification(sf.models.MLP(data.num_classes), data)
>>> run = sf.simulate(sf.sparsyfed(sparsity=0.95), task, clients, clients_per_round=10)

The rooms, from the bottom up: `ops` (jittable primitives), `fed` (the interface of a method, local
training, the cohort, the simulation), `algorithms` (one file a method). Beside them `models`,
`data`, `metrics` and the wire format, which the primitives do not need.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsyfed_jax import algorithms, data, fed, metrics, models, ops, wire
from sparsyfed_jax.algorithms import METHODS, find
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.method import Choice, Configured, Knob, Method, Pattern, factory
from sparsyfed_jax.fed.tasks import multi_label, next_token, regression
from sparsyfed_jax.fed.weights import with_weights
from sparsyfed_jax.loaded import Loaded, load_model, save_model
from sparsyfed_jax.ops import (
  activation_threshold,
  powerprop,
  powerprop_inverse,
  pruned_layers,
  topk_mask,
)
from sparsyfed_jax.run import Run, State, classification, simulate
from sparsyfed_jax.wire.codec import decode, encode

__version__ = "0.2.0"

# A factory for each method: sparsyfed, fedavg and so on.
globals().update({name: factory(method) for name, method in METHODS.items()})
if TYPE_CHECKING:

  def __getattr__(name: str) -> Callable[..., Configured]: ...


__all__ = [
  "wire",
  "fed",
  "algorithms",
  "METHODS",
  "Algorithm",
  "Choice",
  "Configured",
  "Hyper",
  "Knob",
  "Loaded",
  "Method",
  "Pattern",
  "Run",
  "Setup",
  "State",
  "activation_threshold",
  "classification",
  "data",
  "decode",
  "encode",
  "find",
  "load_model",
  "metrics",
  "models",
  "multi_label",
  "next_token",
  "ops",
  "powerprop",
  "powerprop_inverse",
  "pruned_layers",
  "regression",
  "save_model",
  "simulate",
  "topk_mask",
  "with_weights",
]
__all__ += METHODS
