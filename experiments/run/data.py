"""The data of a run: loaded, and dealt to the clients."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.flags import input_range
from experiments.run.choices import FILE
from experiments.run.config import Config, ConfigError
from experiments.run.learning import is_text, reader_of, reading_of, task_of
from sparsyfed_jax.data import assignment, partition, sources
from sparsyfed_jax.data.labels import Label
from sparsyfed_jax.data.shift import SHIFTS
from sparsyfed_jax.types import make_keys

DEFAULT_NUM_CLIENTS = 100


class TestOwners(NamedTuple):
  """Whose each test example is, (num_test,) int32; (0,) without --client_eval."""

  before: np.ndarray
  after: np.ndarray  # --shift_round


def load(config: Config) -> sources.Dataset:
  """Loads the data set of a run; raises DataError.

  Where it is streamed, the training examples stay in their files.
  """
  dataset = open_source(config).dataset
  return dataset._replace(x_test=np.asarray(dataset.x_test))


def open_source(config: Config, task: str | None = None, in_place: bool = False) -> sources.Opened:
  """Loads it with the names of its clients, where they are known.

  Args:
    config: flags.
    task: "" for the data's usual one.
    in_place: whether examples stay in their files, as they do where they are streamed.
  """
  reading = reading_of(config)
  return sources.open_source(
    config.dataset,
    make_keys(jax.random.key(config.seed)).split,
    input_range(config),
    task_of(config) if task is None else task,
    reading._replace(in_place=in_place or reading.in_place),
  )


def source_of(config: Config) -> Hashable:
  """Makes what two runs share if their data sets are the same but for --input_range."""
  reading = reading_of(config) if is_text(config) or reader_of(config) else None
  return config.dataset, config.seed, task_of(config), reading


def density_scales(config: Config, num_clients: int, key: jax.Array) -> np.ndarray:
  """Deals --client_sparsities to the clients at random; (num_clients,) float32."""
  if not config.client_sparsities:
    return np.ones(num_clients, np.float32)
  scales = (1 - np.array(config.client_sparsities)) / (1 - config.sparsity)
  ends = np.round(np.cumsum(config.client_sparsity_shares) * num_clients).astype(int)
  sorted_scales = np.repeat(scales, np.diff(ends, prepend=0))
  order = partition.generator(jax.random.fold_in(key, 1)).permutation(num_clients)
  return sorted_scales[order].astype(np.float32)


def deal_phases(
  config: Config, dataset: sources.Dataset, key: jax.Array
) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
  """Deals the training examples to the clients, before and after --shift_round, if there is one."""
  if config.shift_round is None:
    return _deal(config, dataset, key), []
  alpha, seed = config.shift_dirichlet_alpha, config.shift_seed
  assert alpha is not None and seed is not None  # resolved
  later_key = make_keys(jax.random.key(seed)).partition
  later = config._replace(dirichlet_alpha=alpha)
  subsets = SHIFTS[config.shift_kind](jax.random.fold_in(later_key, 2), dataset.y_train)
  phases = zip((config, later), (key, later_key), subsets, strict=True)

  def deal(phase_config: Config, phase_key: jax.Array, subset: np.ndarray) -> list[np.ndarray]:
    part = dataset._replace(y_train=dataset.y_train[subset])
    return [subset[own].astype(np.int32) for own in _deal(phase_config, part, phase_key)]

  before, after = (deal(*phase) for phase in phases)
  return before, after


def deal_tests(
  config: Config,
  dataset: sources.Dataset,
  parts: Sequence[np.ndarray],
  parts_after: Sequence[np.ndarray],
  key: jax.Array,
) -> TestOwners:
  nobody = np.zeros(0, np.int32)
  if not config.client_eval:
    return TestOwners(nobody, nobody)
  if config.partition == "natural" and len(dataset.client_test):
    return TestOwners(dataset.client_test, dataset.client_test)
  if dataset.kind != "classification":
    raise ConfigError(
      f"--client_eval: needs --partition=natural and whose each test example is with --task="
      f"{dataset.kind}, which has no classes to deal the test set by"
    )
  if len(dataset.y_test) < len(parts):
    raise ConfigError(
      f"--client_eval: needs a test example for each of the {len(parts)} clients, but"
      f" --dataset={config.dataset} has {len(dataset.y_test)}"
    )
  before, after = (
    partition.like_training(
      jax.random.fold_in(key, 3), dataset.y_test, [dataset.y_train[own] for own in phase]
    )
    for phase in (parts, parts_after or parts)
  )
  return TestOwners(before, after)


def _deal(config: Config, dataset: sources.Dataset, key: jax.Array) -> Sequence[np.ndarray]:
  if (config.partition or "").startswith(FILE):
    return _deal_by_file(config, dataset)
  if config.partition == "natural":
    if not dataset.num_clients:
      raise ConfigError(
        f"--partition=natural: --dataset={config.dataset} has no clients of its own;"
        " an npz file names them in client_train or client, a tfds set in a feature like client_id,"
        " a table of hf in --client_column"
      )
    if config.num_clients not in (None, dataset.num_clients):
      raise ConfigError(
        f"--num_clients={config.num_clients}: must be left out or {dataset.num_clients},"
        " the number of clients in the data"
      )
    return partition.natural(dataset.client_train, dataset.num_clients)
  labels = dataset.y_train
  num_clients = config.num_clients or DEFAULT_NUM_CLIENTS
  try:
    if config.partition == "dirichlet":
      return partition.dirichlet(key, labels, num_clients, config.dirichlet_alpha)
    if config.partition == "dirichlet_symmetric":
      return partition.dirichlet_symmetric(key, labels, num_clients, config.dirichlet_alpha)
    if config.partition == "dirichlet_per_class":
      return partition.dirichlet_per_class(key, labels, num_clients, config.dirichlet_alpha)
    if config.partition == "shards":
      return partition.shards(key, labels, num_clients, config.shards_per_client)
    if config.partition == "power_law":
      return partition.power_law(key, len(labels), num_clients, config.power_law_exponent)
    return partition.iid(key, len(labels), num_clients)
  except ValueError as error:
    raise ConfigError(f"--partition={config.partition}: {error}") from error


def label_of_each(dataset: sources.Dataset) -> Sequence[Label]:
  """Names the class of each training example; () where there are none."""
  if dataset.kind != "classification":
    return ()
  return [dataset.classes[number] for number in dataset.y_train.tolist()]


def _deal_by_file(config: Config, dataset: sources.Dataset) -> Sequence[np.ndarray]:
  assert config.partition is not None
  path, num_examples = config.partition.removeprefix(FILE), len(dataset.y_train)
  try:
    clients, names = assignment.read(path, num_examples, label_of_each(dataset))
  except sources.DataError as error:
    raise ConfigError(f"--partition={config.partition}: {error}") from error
  if config.num_clients not in (None, len(names)):
    raise ConfigError(
      f"--num_clients={config.num_clients}: must be left out or {len(names)}, the number of clients"
      f" in --partition={config.partition}"
    )
  return partition.natural(clients, len(names))
