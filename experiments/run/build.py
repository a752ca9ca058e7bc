"""From flags to a simulation: data, partition, model, method."""

import functools
import math
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.flags import AUTO, Config, ConfigError, input_range
from experiments.run import processes
from experiments.run.config import VALUE
from experiments.run.identity import digest, examples_digest
from experiments.run.settings import all_flags, method_of, own_hyper, own_options
from experiments.run.split import Split, count_phases
from sparsyfed_jax import trees
from sparsyfed_jax.data import partition, scaling, sources
from sparsyfed_jax.data.batches import batch_rows
from sparsyfed_jax.data.remarks import remarks
from sparsyfed_jax.data.shift import SHIFTS
from sparsyfed_jax.fed import memory
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.cohort import Federation, sum_over_clients
from sparsyfed_jax.fed.devices import AXIS, place, put, sum_over_devices
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.measures import NO_MEASURES
from sparsyfed_jax.fed.measures import measures as make_measures
from sparsyfed_jax.fed.method import Pattern, with_own
from sparsyfed_jax.fed.optimizers import SERVER_OPTIMIZERS, ClientOptimizer, adamw, clipped, sgd
from sparsyfed_jax.fed.ragged import are_uneven
from sparsyfed_jax.fed.sampling import AVAILABILITIES
from sparsyfed_jax.fed.schedules import RATE_SCHEDULES, SPARSITY_SCHEDULES
from sparsyfed_jax.fed.server import CLIENT_WEIGHTS
from sparsyfed_jax.fed.simulation import Simulation, simulate
from sparsyfed_jax.fed.task import classification
from sparsyfed_jax.metrics.flops import LayerCost, layer_costs
from sparsyfed_jax.models import CNN, MLP, ResNet18, SpeechResNet18, ViT
from sparsyfed_jax.types import Keys, make_keys

EVAL_BATCH_SIZE = 500
DEFAULT_NUM_CLIENTS = 100


class TestOwners(NamedTuple):
  """Whose each test example is, (num_test,) int32; (0,) without --client_eval."""

  before: np.ndarray
  after: np.ndarray  # --shift_round


class Experiment(NamedTuple):
  """All that a run needs."""

  algorithm: Algorithm
  simulation: Simulation
  federation: Federation  # on the devices, or where it is streamed, on the host
  shifted: Federation  # after --shift_round; `federation` itself where nothing changes
  x_test: jax.Array
  y_test: jax.Array
  test_owners: TestOwners
  hyper: Hyper
  keys: Keys
  mesh: Mesh  # of the devices that take part
  layers: tuple[str, ...]  # names of the prunable leaves' layers
  costs: tuple[LayerCost, ...]  # of the model's layers; () without --metrics
  facts: dict[str, Any]  # what the data made of the flags, for config.json
  remarks: tuple[str, ...]  # what is allowed in the data and yet often a mistake
  split: tuple[Split, ...]  # before and, with --shift_round, after


class _OnHost(NamedTuple):
  """What data and flags make together, before anything is placed on devices."""

  model: nn.Module
  parts: list[np.ndarray]  # indices of each client's examples
  parts_after: list[np.ndarray]  # after --shift_round; [] without
  indices: np.ndarray  # of both phases
  sizes: np.ndarray
  mesh: Mesh
  test_owners: TestOwners


def load(config: Config) -> sources.Dataset:
  """Loads the data set of a run; raises DataError."""
  return sources.load(
    config.dataset, make_keys(jax.random.key(config.seed)).split, input_range(config)
  )


def check(config: Config, dataset: sources.Dataset) -> None:
  """Refuses what `build` would refuse, and places nothing on devices.

  Args:
    config: checked and resolved flags.
    dataset: as `load` makes it of them.

  Raises:
    ConfigError: a flag does not fit the data set.
  """
  prepared = _prepare(config, dataset, make_keys(jax.random.key(config.seed)))
  if any(getattr(config, flag) for flag in _patterns(config)):
    _check_patterns(config, _layer_names(prepared.model, dataset.x_train.shape[1:]))


@functools.lru_cache(maxsize=8)
def _layer_names(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[str, ...]:
  return tuple(classification(model, input_shape, 0.0, 1.0, jnp.float32).layer_names)


def _prepare(config: Config, dataset: sources.Dataset, keys: Keys) -> _OnHost:
  input_shape = dataset.x_train.shape[1:]
  model = _make_model(config, input_shape, dataset.num_classes)
  parts, parts_after = _deal_phases(config, dataset, keys.partition)
  if config.clients_per_round > len(parts):
    raise ConfigError(
      f"--clients_per_round={config.clients_per_round}: must be at most the"
      f" {len(parts)} clients of the data"
    )
  # Together, so that the lists of both phases have one length.
  indices, sizes = partition.stack_clients([*parts, *parts_after])
  return _OnHost(
    model,
    parts,
    parts_after,
    indices,
    sizes,
    _make_mesh(config),
    _deal_tests(config, dataset, parts, parts_after, keys.partition),
  )


def build(config: Config) -> Experiment:
  """Loads the data and makes the simulation; nothing is compiled and nothing written.

  Args:
    config: checked and resolved flags.

  Raises:
    DataError: the data set cannot be used.
    ConfigError: a flag does not fit the data set.
  """
  keys = make_keys(jax.random.key(config.seed))
  dataset = load(config)
  model, parts, parts_after, indices, sizes, mesh, test_owners = _prepare(config, dataset, keys)
  input_shape = dataset.x_train.shape[1:]
  dtype = jnp.bfloat16 if config.compute_dtype == "bfloat16" else jnp.float32
  task = classification(model, input_shape, dataset.mean, dataset.std, dtype)
  setup = Setup(
    task=task,
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
    wire_dtype=jnp.dtype(config.wire_dtype),
  )
  algorithm = _make_algorithm(config, setup)
  is_alone = mesh.size == 1 and config.data_placement != "streamed"
  scales = _density_scales(config, len(parts), keys.partition)
  federation = Federation(
    x=dataset.x_train,
    y=dataset.y_train,
    indices=indices[: len(parts)],
    sizes=sizes[: len(parts)],
    density_scales=scales,
  )
  after = federation
  if parts_after:
    after = federation._replace(indices=indices[len(parts) :], sizes=sizes[len(parts) :])
  federation, after = _place_phases(
    federation, after, mesh, "replicated" if is_alone else config.data_placement
  )
  example = jax.ShapeDtypeStruct(input_shape, dataset.x_train.dtype)
  own_chunk = choose_chunk(
    config.clients_per_chunk, model, setup, example, -(-config.clients_per_round // mesh.size)
  )
  chunk = processes.smallest(own_chunk)  # all have to run the same program
  simulation = simulate(
    algorithm,
    task,
    clients_per_round=config.clients_per_round,
    clients_per_chunk=chunk,
    rounds_per_call=min(config.eval_every, config.rounds),
    eval_batch_size=min(EVAL_BATCH_SIZE, len(dataset.y_test)),
    availability=AVAILABILITIES[config.client_sampling],
    sum_cohort=(
      sum_over_clients if is_alone else partial(sum_over_devices, mesh, config.data_placement)
    ),
    matmul_precision="tensorfloat32" if config.compute_dtype == "tf32" else "float32",
    measures=setup.measures,
    compared_clients=config.mask_metrics_clients,
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
    uneven_clients=setup.local.is_ragged,
    devices=mesh.size,
    processes=jax.process_count(),
    mean=dataset.mean,
    std=dataset.std,
    input_range=scaling.as_range(dataset.mean, dataset.std),
    classes=dataset.classes,
    examples_sha256=examples_digest(dataset),
    split_sha256=digest([*parts, len(parts), *parts_after, scales]),
  )
  others = (dataset.x_test, dataset.y_test, make_hyper(config), keys)
  x_test, y_test, hyper, keys = put(others, everywhere(mesh))
  layers = tuple(trees.layer_names(jax.eval_shape(task.init, keys.init)["params"]))
  return Experiment(
    algorithm=algorithm,
    simulation=simulation,
    federation=federation,
    shifted=after,
    test_owners=test_owners,
    layers=layers,
    costs=layer_costs(model, input_shape) if config.metrics else (),
    x_test=x_test,
    y_test=y_test,
    hyper=hyper,
    keys=keys,
    mesh=mesh,
    facts=facts,
    remarks=tuple(remarks(dataset)),
    split=count_phases(config, (parts, parts_after), dataset.y_train, dataset.num_classes),
  )


# What the data makes of the programs, besides its shapes.
_FACTS = ("num_classes", "clients_per_chunk", "uneven_clients", "mean", "std")


def everywhere(mesh: Mesh) -> NamedSharding:
  """Makes the sharding of what every device has."""
  return NamedSharding(mesh, PartitionSpec())


def fixed_flags(config: Config) -> Hashable:
  """Makes what the flags, without the data, fix of the compiled programs."""
  known = all_flags(config)
  fixed = {
    name: value for name, value in config._asdict().items() if VALUE not in known[name].marks
  }
  return (
    tuple(fixed.items()),
    bool(config.client_sparsities),
    config.proximal_mu > 0,
    min(config.eval_every, config.rounds),
  )


def program_key(config: Config, experiment: Experiment) -> Hashable:
  """Makes what two experiments share if the programs compiled for one fit the other."""
  arrays = (experiment.federation, experiment.x_test, experiment.y_test)
  return (
    fixed_flags(config),
    tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arrays)),
    tuple(experiment.facts[name] for name in _FACTS),
    experiment.mesh,
  )


def _make_mesh(config: Config) -> Mesh:
  devices = jax.devices()
  if config.num_devices is not None and config.num_devices > len(devices):
    raise ConfigError(
      f"--num_devices={config.num_devices}: must be at most {len(devices)}, the devices of this"
      " machine"
    )
  return Mesh(np.array(devices[: config.num_devices]), (AXIS,))


def _client_optimizer(config: Config) -> ClientOptimizer:
  if config.client_optimizer == "adamw":
    optimizer: ClientOptimizer = adamw
  else:
    optimizer = sgd(config.client_momentum, nesterov=config.client_optimizer == "nesterov")
  return clipped(optimizer, config.client_clip_norm) if config.client_clip_norm else optimizer


def _patterns(config: Config) -> list[str]:
  """Names the flags that find layers, of those that the method reads."""
  settings = method_of(config).settings()
  return [setting.name for setting in settings if isinstance(setting.rule, Pattern)]


def _check_patterns(config: Config, layer_names: Sequence[str]) -> None:
  for flag in _patterns(config):
    pattern = getattr(config, flag)
    if pattern and not any(map(trees.name_finder(pattern), layer_names)):
      names = ", ".join(layer_names)
      raise ConfigError(f"--{flag}={pattern}: must find a layer of --model={config.model}: {names}")


def _make_algorithm(config: Config, setup: Setup) -> Algorithm:
  _check_patterns(config, setup.task.layer_names)
  try:
    return method_of(config).algorithm(setup, own_options(config))
  except ValueError as error:  # a model that the method cannot train
    raise ConfigError(f"--model={config.model}: {error}") from error


def _density_scales(config: Config, num_clients: int, key: jax.Array) -> np.ndarray:
  """Deals --client_sparsities to the clients at random; (num_clients,) float32."""
  if not config.client_sparsities:
    return np.ones(num_clients, np.float32)
  scales = (1 - np.array(config.client_sparsities)) / (1 - config.sparsity)
  ends = np.round(np.cumsum(config.client_sparsity_shares) * num_clients).astype(int)
  sorted_scales = np.repeat(scales, np.diff(ends, prepend=0))
  order = partition.generator(jax.random.fold_in(key, 1)).permutation(num_clients)
  return sorted_scales[order].astype(np.float32)


def make_hyper(config: Config) -> Hyper:
  """Makes the values that the state carries of resolved flags."""
  values = {
    **{name: getattr(config, name) for name in Hyper._fields if hasattr(config, name)},
    "density": 1 - config.sparsity,
    "ramp_rounds": config.sparsity_ramp_rounds,
  }
  common = Hyper(**{name: jnp.float32(value) for name, value in values.items()})
  return with_own(common, own_hyper(config))


def _make_model(config: Config, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
  def refuse(needs: str) -> NoReturn:
    raise ConfigError(
      f"--model={config.model}: needs {needs}, but an example of --dataset={config.dataset} has"
      f" shape {input_shape}; --model=mlp takes any"
    )

  is_image = len(input_shape) == 3
  if config.model == "mlp":
    return MLP(num_classes)
  if config.model == "speech_resnet18":
    if math.prod(input_shape) != max(input_shape):
      refuse("a waveform of one channel")
    return SpeechResNet18(num_classes, norm=config.norm)
  if config.model == "resnet18":
    return ResNet18(num_classes, norm=config.norm) if is_image else refuse("images")
  if config.model == "vit":
    vit = ViT(num_classes)
    if not is_image or any(side % vit.patch for side in input_shape[:2]):
      refuse(f"images whose sides are multiples of {vit.patch} pixels")
    return vit
  cnn = CNN(num_classes)
  least = 2 * len(cnn.channels) + 2
  if not is_image or min(input_shape[:2]) < least:
    refuse(f"images of at least {least}x{least} pixels")
  return cnn


def _place_phases(
  before: Federation, after: Federation, mesh: Mesh, placement: str
) -> tuple[Federation, Federation]:
  """Lays the data of both phases out; where each device holds all examples, they are held once."""
  if placement == "streamed":
    return before, after
  placed = place(before, mesh, placement)
  if after is before:
    return placed, placed
  if placement == "sharded":
    return placed, place(after, mesh, placement)
  indices, sizes = put((after.indices, after.sizes), everywhere(mesh))
  return placed, placed._replace(indices=indices, sizes=sizes)


def _deal_phases(
  config: Config, dataset: sources.Dataset, key: jax.Array
) -> tuple[list[np.ndarray], list[np.ndarray]]:
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


def _deal_tests(
  config: Config,
  dataset: sources.Dataset,
  parts: list[np.ndarray],
  parts_after: list[np.ndarray],
  key: jax.Array,
) -> TestOwners:
  nobody = np.zeros(0, np.int32)
  if not config.client_eval:
    return TestOwners(nobody, nobody)
  if config.partition == "natural" and len(dataset.client_test):
    return TestOwners(dataset.client_test, dataset.client_test)
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


def _deal(config: Config, dataset: sources.Dataset, key: jax.Array) -> list[np.ndarray]:
  if config.partition == "natural":
    if not dataset.num_clients:
      raise ConfigError(
        f"--partition=natural: --dataset={config.dataset} has no clients of its own;"
        " an npz file names them in client_train or client, a tfds set in a feature like client_id"
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


def choose_chunk(
  clients_per_chunk: str,
  model: nn.Module,
  setup: Setup,
  example: jax.ShapeDtypeStruct,
  clients_per_device: int,
) -> int:
  """Reads the flag --clients_per_chunk, and decides where it says auto.

  Args:
    clients_per_chunk: the flag.
    model: that is trained.
    setup: of the method.
    example: shape and dtype of one example, as stored.
    clients_per_device: of a round.
  """
  if clients_per_chunk != AUTO:
    return min(int(clients_per_chunk), clients_per_device)
  # On CPU convolutions fill the cores one client at a time, and batching them only costs cache;
  # small dense layers need many clients side by side.
  if jax.default_backend() == "cpu" and not isinstance(model, MLP):
    return 1
  return memory.choose_chunk(setup, example, clients_per_device)
