"""From flags to a simulation: data, partition, model, method."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.run import processes
from experiments.run.config import VALUE, Config, ConfigError
from experiments.run.data import TestOwners, deal_phases, deal_tests, density_scales, load
from experiments.run.defaults import with_partition
from experiments.run.fleet import counted_by, make_fleet, make_timing
from experiments.run.identity import digest, examples_digest
from experiments.run.models import choose_chunk, make_model
from experiments.run.placing import HERE, Machine, everywhere, make_mesh, phases_of, place_phases
from experiments.run.settings import all_flags, make_hyper, method_of, own_options
from experiments.run.setups import make_setup
from experiments.run.split import Split, count_phases
from experiments.run.starting import starting_of
from experiments.run.systems import num_selected, require_clients
from experiments.run.tasks import classes_of, costs_of, make_task, scale_facts
from experiments.run.weight_files import facts_of, started_once
from sparsyfed_jax import trees
from sparsyfed_jax.data import sources
from sparsyfed_jax.data.dataset import Signature, flat
from sparsyfed_jax.data.lists import Parts, join_clients
from sparsyfed_jax.data.mapped import ends
from sparsyfed_jax.data.remarks import remarks
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.cohort import Federation, sum_over_clients
from sparsyfed_jax.fed.devices import sum_over_devices
from sparsyfed_jax.fed.exchange import Exchange, sample_exchange
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.levelled import with_levels
from sparsyfed_jax.fed.measures import Measures
from sparsyfed_jax.fed.memory import client_bytes
from sparsyfed_jax.fed.method import Pattern
from sparsyfed_jax.fed.sampling import AVAILABILITIES
from sparsyfed_jax.fed.simulation import Simulation, simulate
from sparsyfed_jax.fed.streaming import rows_needed
from sparsyfed_jax.metrics.cost import dense_bytes
from sparsyfed_jax.metrics.flops import LayerCost
from sparsyfed_jax.types import Keys, make_keys

EVAL_BATCH_SIZE = 500


class Experiment(NamedTuple):
  """All that a run needs."""

  model: Any  # the plain one, which predicts
  signature: Signature  # of the data
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
  placement: str  # of the data, and of what clients keep between rounds
  layers: tuple[str, ...]  # names of the prunable leaves' layers
  costs: tuple[LayerCost, ...]  # of the model's layers; () without --metrics
  # (state, federation, key) -> `Exchange` of a client; None where nothing is encoded
  exchange: Callable[..., Exchange] | None
  facts: dict[str, Any]  # what the data made of the flags, for config.json
  dense_bytes: int  # of a model
  remarks: tuple[str, ...]  # what is allowed in the data and yet often a mistake
  split: tuple[Split, ...]  # before and, with --shift_round, after
  num_rows: int  # for which each device has room where not all have all; 0 where they do


class _OnHost(NamedTuple):
  """What data and flags make together, before anything is placed on devices."""

  model: Any
  parts: Parts  # indices of each client's examples
  parts_after: Parts | None  # after --shift_round
  sizes: np.ndarray  # of both phases
  mesh: Mesh
  test_owners: TestOwners
  fleet: Any  # `clock.Fleet`, or () where rounds are not timed


def check(config: Config, dataset: sources.Dataset) -> None:
  """Refuses what `build` would refuse, and places nothing on devices.

  Args:
    config: checked and resolved flags.
    dataset: as `load` makes it of them.

  Raises:
    ConfigError: a flag does not fit the data set, or the method does not fit the model.
  """
  config = with_partition(config, dataset)
  prepared = _prepare(config, dataset, make_keys(jax.random.key(config.seed)))
  if starting_of(config).init_from or any(getattr(config, flag) for flag in _patterns(config)):
    _check_patterns(config, make_task(config, dataset).layer_names)
  setup = make_setup(config, prepared.sizes, dataset)
  algorithm = _make_algorithm(config, setup)
  if prepared.parts_after:
    _check_shift(config, algorithm, setup, prepared)


def _prepare(
  config: Config, dataset: sources.Dataset, keys: Keys, machine: Machine = HERE
) -> _OnHost:
  input_shape = dataset.x_train.shape[1:]
  model = make_model(config, input_shape, dataset.num_classes)
  before, later = deal_phases(config, dataset, keys.partition)
  parts, parts_after = join_clients(before), join_clients(later) if later else None
  require_clients(config, len(parts))
  return _OnHost(
    model,
    parts,
    parts_after,
    np.concatenate([parts.sizes, *([parts_after.sizes] if parts_after else [])]),
    make_mesh(config, machine),
    deal_tests(config, dataset, parts, parts_after or (), keys.partition),
    make_fleet(config, len(parts), keys.partition),
  )


def build(config: Config) -> Experiment:
  """Loads the data and makes the simulation; nothing is compiled and nothing written.

  Args:
    config: checked and resolved flags.

  Raises:
    DataError: the data set cannot be used.
    ConfigError: a flag does not fit the data set.
  """
  dataset = load(config)
  config = with_partition(config, dataset)
  keys = make_keys(jax.random.key(config.seed))
  prepared = _prepare(config, dataset, keys)
  experiment, _ = _assemble(config, dataset, prepared, keys, HERE)
  phases = [phase for phase in (prepared.parts, prepared.parts_after) if phase is not None]
  return experiment._replace(
    facts=experiment.facts
    | _facts(config, prepared, dataset, keys)
    | facts_of(config)
    | {"partition": config.partition},
    remarks=(*remarks(dataset), *experiment.remarks),
    split=count_phases(config, phases, *classes_of(dataset)),
  )


def outline(config: Config, dataset: sources.Dataset, machine: Machine) -> Experiment:
  """Does as `build` for a machine that need not be there, as far as programs are concerned.

  Of the examples nothing is read but the shapes and the classes; `facts` has only what programs
  depend on, besides the clients' `sizes` and `client_bytes`, and `split` is empty.

  Args:
    config: checked and resolved flags.
    dataset: whose arrays may be views of a single number.
    machine: whose `put` and `place` may make shapes in place of arrays.

  Raises:
    ConfigError: a flag does not fit the data set or the machine.
  """
  config = with_partition(config, dataset)
  keys = make_keys(jax.random.key(config.seed))
  prepared = _prepare(config, dataset, keys, machine)
  experiment, setup = _assemble(config, dataset, prepared, keys, machine)
  example, label = _entries(dataset)
  platform = machine.target(prepared.mesh).platform
  more = {
    "sizes": prepared.sizes[: len(prepared.parts)],
    "client_bytes": client_bytes(setup, example, platform, label),
  }
  return experiment._replace(facts=experiment.facts | more)


def _assemble(
  config: Config, dataset: sources.Dataset, prepared: _OnHost, keys: Keys, machine: Machine
) -> tuple[Experiment, Setup]:
  setup = make_setup(config, prepared.sizes, dataset)
  algorithm = _make_algorithm(config, setup)
  _check_shift(config, algorithm, setup, prepared)
  if jax.process_count() > 1 and config.data_placement != "replicated":
    _refuse_memory(config, algorithm, setup, "data_placement", "replicated in several processes")
  mesh, num_clients = prepared.mesh, len(prepared.parts)
  is_alone = mesh.size == 1 and config.data_placement != "streamed"
  placement = "replicated" if is_alone else config.data_placement
  scales = density_scales(config, num_clients, keys.partition)
  federation, after = phases_of(
    dataset, prepared.parts, prepared.parts_after, scales, prepared.fleet
  )
  sizes = (federation.sizes, after.sizes)
  selected = num_selected(config)
  num_rows = rows_needed(placement, sizes, selected, mesh.size)
  federation, after = place_phases(machine, federation, after, mesh, placement, num_rows)
  example, label = _entries(dataset)
  most = -(-selected // mesh.size)
  target = machine.target(mesh)
  own_chunk = choose_chunk(config.clients_per_chunk, setup, example, most, target, label)
  chunk = processes.smallest(own_chunk)  # all have to run the same program
  variables = jax.eval_shape(setup.task.init, keys.init)
  layers = tuple(trees.layer_names(variables["params"]))
  costs = costs_of(config, dataset, setup.task) if config.metrics else ()
  simulation = simulate(
    algorithm,
    setup.task,
    clients_per_round=selected,
    clients_per_chunk=chunk,
    rounds_per_call=min(config.eval_every, config.rounds),
    eval_batch_size=min(EVAL_BATCH_SIZE, len(dataset.y_test)),
    availability=AVAILABILITIES[config.client_sampling],
    sum_cohort=sum_over_clients if is_alone else partial(sum_over_devices, mesh, placement),
    matmul_precision="tensorfloat32" if config.compute_dtype == "tf32" else "float32",
    measures=setup.measures,
    compared_clients=config.mask_metrics_clients,
    num_clients=num_clients if placement == "replicated" else 1,
    timing=make_timing(config, costs, layers),
  )
  total_weight = float(jnp.sum(setup.client_weight(jnp.asarray(prepared.sizes[:num_clients]))))
  others = (flat(dataset.x_test), dataset.y_test, make_hyper(config, total_weight), keys)
  x_test, y_test, hyper, placed_keys = machine.put(others, everywhere(mesh))
  made = Experiment(
    model=prepared.model,
    signature=dataset.signature,
    algorithm=algorithm,
    simulation=simulation,
    federation=federation,
    shifted=after,
    test_owners=prepared.test_owners,
    layers=layers,
    costs=costs,
    exchange=_exchange_of(config, setup, simulation),
    x_test=x_test,
    y_test=y_test,
    hyper=hyper,
    num_rows=num_rows,
    keys=placed_keys,
    mesh=mesh,
    placement=placement,
    facts=dict(
      num_clients=num_clients,
      clients_per_chunk=chunk,
      uneven_clients=setup.local.is_ragged,
      devices=mesh.size,
      processes=jax.process_count(),
      num_classes=dataset.num_classes,
      mean=dataset.mean,
      std=dataset.std,
      **scale_facts(dataset),
      **({"fleet_sha256": digest(jax.tree.leaves(prepared.fleet))} if prepared.fleet else {}),
    ),
    dense_bytes=dense_bytes(variables),
    remarks=(*setup.task.remarks, *_own_models(config, algorithm)),
    split=(),
  )
  return made, setup


def _exchange_of(
  config: Config, setup: Setup, simulation: Simulation
) -> Callable[..., Exchange] | None:
  if config.wire_codec == "plain":
    return None

  def make(measures: Measures) -> Algorithm:
    return _make_algorithm(config, setup._replace(measures=measures))

  return partial(sample_exchange, make, simulation, config.wire_dtype)


def _entries(dataset: sources.Dataset) -> Sequence[jax.ShapeDtypeStruct]:
  """Makes the shapes of an example and of what is predicted of it."""
  both = dataset.x_train, dataset.y_train
  return [jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for array in both]


def _facts(
  config: Config, prepared: _OnHost, dataset: sources.Dataset, keys: Keys
) -> dict[str, Any]:
  parts, parts_after, sizes = prepared.parts, prepared.parts_after or (), prepared.sizes
  scales = density_scales(config, len(parts), keys.partition)
  return dict(
    natural_clients=dataset.num_clients,
    empty_clients=int(np.sum(sizes == 0)),
    smallest_client=int(np.min(sizes)),
    largest_client=int(np.max(sizes)),
    train_examples=len(dataset.y_train),
    test_examples=len(dataset.y_test),
    input_shape=dataset.x_train.shape[1:],
    seen_range=ends(dataset.x_train),
    classes=dataset.classes,
    examples_sha256=examples_digest(dataset),
    split_sha256=digest([*parts, len(parts), *parts_after, scales]),
  )


# What the data makes of the programs, besides its shapes.
_FACTS = (
  *("num_classes", "clients_per_chunk", "uneven_clients", "mean", "std", "target_scale"),
  *("init_sha256", "fleet_sha256"),
)


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
    counted_by(config),
  )


def program_key(config: Config, experiment: Experiment) -> Hashable:
  """Makes what two experiments share if the programs compiled for one fit the other."""
  arrays = (experiment.federation, experiment.x_test, experiment.y_test)
  return (
    fixed_flags(config),
    tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arrays)),
    tuple(experiment.facts.get(name) for name in _FACTS),
    experiment.mesh,
    experiment.num_rows,
  )


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
  setup = setup._replace(task=started_once(config, setup.task))
  try:
    made = method_of(config).algorithm(setup, own_options(config))
  except ValueError as error:  # a model that the method cannot train
    raise ConfigError(f"--model={config.model}: {error}") from error
  try:
    return with_levels(made, config.wire_dtype, config.wire_feedback)
  except ValueError as error:
    raise ConfigError(
      f"--{str(error).replace(repr(config.wire_dtype), config.wire_dtype)}"
    ) from error


def _own_models(config: Config, algorithm: Algorithm) -> tuple[str, ...]:
  if algorithm.client_model is None or config.client_eval:
    return ()
  return (
    f"clients of --algorithm={config.algorithm} predict with models of their own, which"
    " --client_eval evaluates; test_accuracy is that of a client before its first round",
  )


def _check_shift(config: Config, algorithm: Algorithm, setup: Setup, prepared: _OnHost) -> None:
  """Refuses a change of the data that a method would take for something else."""
  if not prepared.parts_after:
    return
  if config.shift_kind == "clients":
    _refuse_memory(config, algorithm, setup, "shift_kind", "resplit or labels")
  before, after = np.split(np.asarray(setup.client_weight(jnp.asarray(prepared.sizes))), 2)
  if "total_weight" in method_of(config).reads and np.any(before != after):
    raise ConfigError(
      f"--shift_round={config.shift_round}: must leave each client as many examples with"
      f" --algorithm={config.algorithm}, which weighs what it has of all clients by them;"
      " --client_weighting=uniform does not"
    )


def _refuse_memory(
  config: Config, algorithm: Algorithm, setup: Setup, flag: str, right: str
) -> None:
  """Refuses what clients keep where no process could save it, or others would take it over."""
  variables = jax.eval_shape(setup.task.init, jax.eval_shape(lambda: jax.random.key(0)))
  if jax.tree.leaves(jax.eval_shape(algorithm.memory, variables, make_hyper(config, 1))):
    raise ConfigError(
      f"--{flag}={getattr(config, flag)}: must be {right} where clients keep something between"
      f" rounds, as those of --algorithm={config.algorithm} do"
    )
