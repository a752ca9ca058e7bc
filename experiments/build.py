"""From flags to a simulation: data, partition, model, method."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.flags import AUTO, Config, ConfigError
from sparsyfed_jax.algorithms import ALGORITHMS
from sparsyfed_jax.data import partition, sources
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.cohort import Federation
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.schedules import SPARSITY_SCHEDULES
from sparsyfed_jax.fed.simulation import Keys, Simulation, make_keys, simulate
from sparsyfed_jax.fed.task import classification
from sparsyfed_jax.models import CNN, MLP

EVAL_BATCH_SIZE = 500
DEFAULT_NUM_CLIENTS = 100
MAX_CHUNK = 128  # clients side by side, where nothing better was measured

_SERVER_OPTIMIZERS: dict[str, Callable[[jax.Array], optax.GradientTransformation]] = {
  "sgd": optax.sgd,
  "momentum": partial(optax.sgd, momentum=0.9),
  # The adaptivity of Reddi et al. 2021 (arXiv 2003.00295), whose moments start small.
  "adagrad": partial(optax.adagrad, initial_accumulator_value=0.0, eps=1e-3),
  "adam": partial(optax.adam, b1=0.9, b2=0.99, eps=1e-3),
  "yogi": partial(optax.yogi, b1=0.9, b2=0.99, eps=1e-3),
}


class Experiment(NamedTuple):
  """All that a run needs."""

  algorithm: Algorithm
  simulation: Simulation
  federation: Federation
  x_test: jax.Array
  y_test: jax.Array
  hyper: Hyper
  keys: Keys
  facts: dict[str, Any]  # what the data made of the flags, for config.json


def build(config: Config) -> Experiment:
  """Loads the data and makes the simulation; nothing is compiled and nothing written.

  Args:
    config: checked and resolved flags.

  Raises:
    DataError: the data set cannot be used.
    ConfigError: a flag does not fit the data set.
  """
  keys = make_keys(jax.random.key(config.seed))
  dataset = sources.load(config.dataset, keys.split)
  input_shape = dataset.x_train.shape[1:]
  model = _make_model(config, input_shape, dataset.num_classes)
  parts = _deal(config, dataset, keys.partition)
  if config.clients_per_round > len(parts):
    raise ConfigError(
      f"--clients_per_round={config.clients_per_round}: must be at most the"
      f" {len(parts)} clients of the data"
    )
  indices, sizes = partition.stack_clients(parts)
  task = classification(model, input_shape, dataset.mean, dataset.std)
  setup = Setup(
    task=task,
    local=LocalTraining(config.batch_size, config.local_epochs, optax.sgd),
    server_optimizer=_SERVER_OPTIMIZERS[config.server_optimizer],
    sparsity_schedule=SPARSITY_SCHEDULES[config.sparsity_schedule],
  )
  algorithm = ALGORITHMS[config.algorithm](setup)
  chunk = choose_chunk(config.clients_per_chunk, model, config.clients_per_round)
  simulation = simulate(
    algorithm,
    task,
    clients_per_round=config.clients_per_round,
    clients_per_chunk=chunk,
    rounds_per_call=min(config.eval_every, config.rounds),
    eval_batch_size=min(EVAL_BATCH_SIZE, len(dataset.y_test)),
  )
  facts = dict(
    num_clients=len(parts),
    natural_clients=dataset.num_clients,
    empty_clients=int(np.sum(sizes == 0)),
    smallest_client=int(np.min(sizes)),
    largest_client=int(np.max(sizes)),
    train_examples=len(dataset.y_train),
    test_examples=len(dataset.y_test),
    num_classes=dataset.num_classes,
    input_shape=input_shape,
    clients_per_chunk=chunk,
  )
  return Experiment(
    algorithm=algorithm,
    simulation=simulation,
    federation=Federation(*map(jnp.asarray, (dataset.x_train, dataset.y_train, indices, sizes))),
    x_test=jnp.asarray(dataset.x_test),
    y_test=jnp.asarray(dataset.y_test),
    hyper=make_hyper(config),
    keys=keys,
    facts=facts,
  )


def make_hyper(config: Config) -> Hyper:
  """Makes the values that the state carries of resolved flags."""
  values = dict(
    rounds=config.rounds,
    client_lr=config.client_lr,
    client_lr_final=config.client_lr_final,
    weight_decay=config.weight_decay,
    server_lr=config.server_lr,
    density=1 - config.sparsity,
    ramp_rounds=config.sparsity_ramp_rounds,
    beta=config.beta,
    activation_floor=config.activation_floor,
  )
  return Hyper(**{name: jnp.float32(value) for name, value in values.items()})


def _make_model(config: Config, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
  if config.model == "mlp":
    return MLP(num_classes)
  model = CNN(num_classes)
  least = 2 * len(model.channels) + 2
  if len(input_shape) != 3 or min(input_shape[:2]) < least:
    raise ConfigError(
      f"--model=cnn: needs images of at least {least}x{least} pixels, but an example of"
      f" --dataset={config.dataset} has shape {input_shape}; --model=mlp takes any"
    )
  return model


def _deal(config: Config, dataset: sources.Dataset, key: jax.Array) -> list[np.ndarray]:
  if config.partition == "natural":
    if not dataset.num_clients:
      raise ConfigError(
        f"--partition=natural: --dataset={config.dataset} has no clients of its own;"
        " an npz file names them in client_train or client"
      )
    if config.num_clients not in (None, dataset.num_clients):
      raise ConfigError(
        f"--num_clients={config.num_clients}: must be left out or {dataset.num_clients},"
        " the number of clients in the file"
      )
    return partition.natural(dataset.client_train, dataset.num_clients)
  labels = dataset.y_train
  num_clients = config.num_clients or DEFAULT_NUM_CLIENTS
  try:
    if config.partition == "dirichlet":
      return partition.dirichlet(key, labels, num_clients, config.dirichlet_alpha)
    if config.partition == "dirichlet_per_class":
      return partition.dirichlet_per_class(key, labels, num_clients, config.dirichlet_alpha)
    if config.partition == "shards":
      return partition.shards(key, labels, num_clients, config.shards_per_client)
    if config.partition == "power_law":
      return partition.power_law(key, len(labels), num_clients, config.power_law_exponent)
    return partition.iid(key, len(labels), num_clients)
  except ValueError as error:
    raise ConfigError(f"--partition={config.partition}: {error}") from error


def choose_chunk(clients_per_chunk: str, model: nn.Module, clients_per_round: int) -> int:
  """Reads the flag --clients_per_chunk, and decides where it says auto."""
  if clients_per_chunk != AUTO:
    return min(int(clients_per_chunk), clients_per_round)
  # On CPU convolutions fill the cores one client at a time, and batching them only costs cache;
  # small dense layers need many clients side by side.
  if jax.default_backend() == "cpu" and not isinstance(model, MLP):
    return 1
  return min(clients_per_round, MAX_CHUNK)
