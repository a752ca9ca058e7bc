"""Methods x toy problems: what the tests of the engine run on, compiled once a process.

Every method of `algorithms.METHODS` is tested, so that a new one only has to be put into that list.
Compilation is what takes time here. So functions are cached by what they are made of, and tests
call them with the same shapes where they can.
"""

import contextlib
import inspect
import os
from functools import cache, partial, wraps
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from sparsyfed_jax.algorithms import METHODS, find
from sparsyfed_jax.data.lists import join_clients
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.cohort import Federation, data_of, sum_over_clients
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.method import Choice, Method, with_own
from sparsyfed_jax.fed.optimizers import FEDOPT, ServerOptimizer, sgd
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.fed.schedules import SPARSITY_SCHEDULES
from sparsyfed_jax.fed.simulation import State, simulate
from sparsyfed_jax.fed.task import Task, classification
from sparsyfed_jax.models import MLP
from sparsyfed_jax.types import ClientData

# A method of somebody else's, with which alone the laws are tested: pytest --method=...
CHOSEN = os.environ.get("SPARSYFED_JAX_METHOD")
RECORDS = METHODS | ({(record := find(CHOSEN)).name: record} if CHOSEN else {})


def _forms(record: Method) -> dict[str, tuple[str, dict[str, str]]]:
  """Lists a method's default form, and every other that one of its choices makes."""
  others = [
    (known, setting)
    for setting in record.settings()
    if isinstance(setting.rule, Choice)
    for known in setting.rule.known
    if known != setting.default
  ]
  made = {record.name: (record.name, {})}
  for known, setting in others:
    made[f"{record.name}-{known}".replace("_", "-")] = (record.name, {setting.field: known})
  return made


VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
  **{name: form for record in RECORDS.values() for name, form in _forms(record).items()},
  "sparsyfed-release": (
    "sparsyfed",
    {"activation_threshold": "first_batch", "reparam_exclude": "Dense_0|Conv_2"},
  ),
  "flash-jmwst": ("flash", {"form": "jmwst", "aggregation": "masked_mean"}),
  **{
    f"flash-{form}-convolutions": ("flash", {"form": form, "prunes": "convolutions"})
    for form in ("jmwst", "nst", "magnitude")
  },
}
# The default form of each method, and all forms; of the chosen method alone if there is one.
DEFAULT_FORMS = (record.name,) if CHOSEN else tuple(RECORDS)
# Forms whose parts are other forms'; tests/algorithms/test_reference.py has their starts.
COMPOSED = (
  "sparsyfed-first-batch",
  "feddst-release",
  "flash-pdst",
  "heterofl-divided",
  "heterofl-own",
  "flash-masked-mean",
  "flash-convolutions",
  "flash-jmwst-convolutions",
  "flash-nst-convolutions",
  "flash-magnitude-convolutions",
  "static-erk",
)
FORMS = tuple(
  name for name, (base, _) in VARIANTS.items() if base in DEFAULT_FORMS and name not in COMPOSED
)
# Forms whose laws are those of another form.
OF_OTHERS = (
  "sparsyfed-release",
  "sparsyfed-spectral",
  "sparsyfed-changes",
  "sparsyfed-changes-with-feedback",
  "zerofl-comparison",
  "zerofl-masked-changes",
  "zerofl-changes",
  "flash-magnitude",
  "flash-nst",
  "static-saliency",
  "fedmef-norm",
  "fedfade-smallest",
  "fedfade-zero",
)
LAWFUL = tuple(name for name in FORMS if name not in OF_OTHERS)
# Methods of which one at least has whatever the engine knows of methods: layers of its own and a
# ramp of densities (sparsyfed), masks beside the weights and rounds that readjust them (feddst),
# memories (scaffold), downloads that are no model, and models that are each client's own (spafl).
# What heterofl's clients differ in has a module of its own.
QUICK = ("sparsyfed", "feddst", "scaffold", "spafl")
# Of those the two with most to lose where each test of a law is another program.
FEW = ("sparsyfed", "scaffold")
# Whose server takes the mean of models, of changes to its model, or of what is inside masks.
SEND_WEIGHTS = (
  "fedavg",
  "topk",
  "sparsyfed",
  "sparsyfed-release",
  "sparsyfed-spectral",
  "zerofl",
  "zerofl-comparison",
  "scaffold",
  "feddyn",
  "fedpm",
  "heterofl",
)
SEND_THRESHOLDS = ("spafl",)  # see tests/algorithms/test_spafl.py
SEND_CHANGES = (
  "sparsyfed-changes",
  "sparsyfed-changes-with-feedback",
  "zerofl-masked-changes",
  "zerofl-changes",
)
SEND_MASKED = tuple(
  name for name in FORMS if name not in SEND_WEIGHTS + SEND_CHANGES + SEND_THRESHOLDS
)
KEEP_MEMORY = (
  "scaffold",
  "feddyn",
  "sparsyfed-changes-with-feedback",
  "spafl",
)  # see tests/algorithms/test_memories.py
_UNSET = object()
NUM_CLASSES = 3
BATCH_SIZE = 4
EPOCHS = 2
EVAL_BATCH_SIZE = 4
# Full batches, partial ones, one example, none.
SIZES = (6, 0, 1, 7, 4, 3, 1)
EMPTY, PARTIAL = 1, 5  # of those clients: no example; fewer than a batch
CLIENTS_PER_ROUND = 5
SERVER_OPTIMIZERS: dict[str, ServerOptimizer] = {
  "sgd": optax.sgd,
  "momentum": partial(optax.sgd, momentum=0.9),
  "adam": optax.adam,
  "yogi": optax.yogi,
  "adagrad": optax.adagrad,
  **FEDOPT,
}
HYPER = {
  "rounds": 10.0,
  "client_lr": 0.3,
  "client_lr_final": 0.05,
  "weight_decay": 0.01,
  "server_lr": 1.0,
  "server_tau": 1e-3,
  "client_dropout": 0.0,
  "straggler_fraction": 0.0,
  "density": 0.4,
  "ramp_rounds": 0.0,
  "total_weight": float(sum(SIZES)),
  "proximal_mu": 0.1,
  "beta": 1.25,
  "activation_floor": 0.0,
  "zerofl_mask_ratio": 0.1,
  "flash_warmup_rounds": 1.0,
  "flash_warmup_epochs": 3.0,
  "flash_update_every": 2.0,
  "flash_drop_rate": 0.5,
  "feddst_update_every": 2.0,
  "feddst_update_until": 9.0,
  "feddst_drop_rate": 0.5,
  "feddyn_alpha": 0.3,
  "fedpm_reset_every": 2.0,
  "heterofl_levels": 3.0,
  "fedfade_update_every": 2.0,
  "fedfade_update_until": 9.0,
  "fedfade_drop_rate": 0.5,
  "fedfade_fade_until": 4.0,
  "fedfade_fade_power": 1.5,
  "fedfade_biases_from": 2.0,
  "fedfade_floor": 0.5,
  "fedfade_beta": 1.25,
  "fedmef_update_every": 2.0,
  "fedmef_update_until": 9.0,
  "fedmef_drop_rate": 0.5,
  "fedmef_extrusion": 0.3,
  "fedmef_boost": 30.0,
  "fedmef_boost_limit": 1.6,
  "fedmef_activation_sparsity": 0.3,
  "fedrts_update_every": 2.0,
  "fedrts_update_until": 9.0,
  "fedrts_drop_rate": 0.5,
  "fedrts_trust": 0.6,
  "fedrts_strength": 4.0,
  "fedtiny_update_every": 2.0,
  "fedtiny_update_until": 9.0,
  "fedtiny_drop_rate": 0.5,
  "prunefl_update_every": 2.0,
  "prunefl_update_until": 9.0,
  "prunefl_drop_rate": 0.5,
  "spafl_penalty": 0.1,
}


class TinyCNN(nn.Module):
  """Convolutions 3x3, 3x3 with stride 2 and 1x1, then a dense layer."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    x = nn.relu(nn.Conv(4, (3, 3), padding=1)(x))
    x = nn.relu(nn.Conv(4, (3, 3), strides=2, padding=1)(x))
    x = nn.relu(nn.Conv(5, (1, 1), padding=0)(x))
    return nn.Dense(NUM_CLASSES)(x.reshape(x.shape[0], -1))


class TinyBatchNorm(nn.Module):
  """Two dense layers with batch norm over the valid examples between them."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    mask = None if valid is None else valid[:, None]
    norm = nn.BatchNorm(use_running_average=not train, momentum=0.9)
    x = nn.relu(norm(nn.Dense(6, use_bias=False)(x), mask=mask))
    return nn.Dense(NUM_CLASSES)(x)


class Problem(NamedTuple):
  """A task with data for it."""

  task: Task
  federation: Federation
  x_test: jax.Array
  y_test: jax.Array


# Model and shape of an example.
MODELS = {
  "linear": (MLP(NUM_CLASSES, hidden=()), (5,)),
  "mlp": (MLP(NUM_CLASSES, hidden=(8,)), (5,)),
  "cnn": (TinyCNN(), (6, 6, 1)),
  "batchnorm": (TinyBatchNorm(), (5,)),
}


def over_methods(methods, *others, quick=QUICK):
  """Makes parameters of a test, (method, *others) each, all but a few of them slow.

  Compiling is what takes time. So what tests the engine runs with a few methods by default, and
  with all, as what tests a method does, with -m ''. A method that is chosen is never slow.
  """
  return [
    pytest.param(name, *others, marks=() if CHOSEN or name in quick else pytest.mark.slow)
    for name in methods
  ]


def problem_of(method: str) -> str:
  """Names the problem for which default tests of a form compile its programs in any case.

  Most are quicker on the convolutions of their reference, a few have the laws with statistics.
  """
  return "cnn" if method in LAWFUL and method not in QUICK and not CHOSEN else "batchnorm"


def hyper(method: str = "fedavg", **changes: float) -> Hyper:
  """Makes a method's hyperparameters: this module's defaults, with changes, named as flags are."""
  values = HYPER | changes
  record = RECORDS[VARIANTS[method][0]]
  own = {s.field: values.get(s.name, s.default) for s in record.settings() if s.is_number}
  for setting in record.settings():  # of a stranger's method
    if own.get(setting.field, 0) is None:
      own[setting.field] = setting.rule.default(SimpleNamespace(**values))
  common = {name: jnp.float32(values[name]) for name in Hyper._fields if name != "own"}
  return with_own(Hyper(**common), record.hyper(**own))


def make_setup(
  task: Task,
  batch_size=BATCH_SIZE,
  epochs=EPOCHS,
  server="sgd",
  schedule="constant",
  proximal=False,
  heterogeneous=False,
  ragged=False,
  **others,
) -> Setup:
  """Makes a setup whose clients train with plain SGD; others are fields of `Setup`."""
  local = LocalTraining(batch_size, epochs, sgd(), proximal, ragged)
  return Setup(
    task,
    local,
    SERVER_OPTIMIZERS[server],
    SPARSITY_SCHEDULES[schedule],
    is_heterogeneous=heterogeneous,
    **others,
  )


def make_federation(x, y, parts, junk=0.0, label_junk=0, more_padding=0) -> Federation:
  """Puts examples and clients' rows together.

  Args:
    x: (num_examples, *shape).
    y: (num_examples,).
    parts: the rows of each client.
    junk: fills three rows that are nobody's, to which the gaps between the lists of clients point.
    label_junk: the class of those.
    more_padding: by how much longer lists are read than need be.
  """
  num_examples = len(y)
  sizes = join_clients(parts).sizes
  max_size = max(sizes) + more_padding
  lists = num_examples + np.arange(len(parts) * max_size).reshape(len(parts), max_size) % 3
  for row, part in zip(lists, parts, strict=True):
    row[: len(part)] = part
  return Federation(
    jnp.asarray(np.concatenate([x, np.full((3, *np.shape(x)[1:]), junk)]), jnp.float32),
    jnp.asarray(np.concatenate([y, np.full(3, label_junk)]), jnp.int32),
    jnp.asarray(lists.reshape(-1), jnp.int32),
    jnp.arange(len(parts), dtype=jnp.int32) * max_size,
    jnp.asarray(sizes, jnp.int32),
    jnp.zeros(max_size, jnp.int8),
    jnp.ones(len(sizes)),
  )


def list_of(federation: Federation, number: int) -> np.ndarray:
  """Reads the rows of one client's examples."""
  start = int(federation.starts[number])
  return np.asarray(federation.indices)[start : start + int(federation.sizes[number])]


def random_federation(shape, sizes=SIZES, seed=0, **junk) -> Federation:
  """Makes a federation of normal examples and uniform classes, rows mixed over the clients."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(sum(sizes), *shape))
  y = rng.integers(0, NUM_CLASSES, sum(sizes))
  parts = np.split(rng.permutation(sum(sizes)), np.cumsum(sizes)[:-1])
  return make_federation(x, y, parts, **junk)


@cache
def problem(name: str) -> Problem:
  """Makes a toy problem; its test set is no multiple of the evaluation's batch."""
  model, shape = MODELS[name]
  test = random_federation(shape, (10,), seed=1)
  task = classification(model, shape)
  return Problem(task, random_federation(shape), test.x[:10], test.y[:10])


@cache
def variables(name: str):
  """Makes a random model, biases too, without compiling an initialiser."""
  rng = np.random.default_rng(5)

  def draw(path, leaf):
    noise = rng.normal(size=leaf.shape)
    kind = path[-1].key
    if kind == "kernel":
      value = noise / np.sqrt(leaf.size / leaf.shape[-1])
    else:
      value = 0.1 * noise if kind in ("bias", "mean") else 1 + 0.1 * np.abs(noise)
    return jnp.asarray(value, jnp.float32)

  shapes = jax.eval_shape(problem(name).task.init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def _cached(make):
  """Caches by what differs from the defaults, whether or not those are said."""
  make_once, defaults = cache(make), _defaults_of(make_setup) | _defaults_of(make)

  @wraps(make)
  def made(method, name, **setup):
    changed = {key: value for key, value in setup.items() if value != defaults.get(key, _UNSET)}
    return make_once(method, name, **changed)

  return made


def _defaults_of(function) -> dict[str, Any]:
  parameters = inspect.signature(function).parameters.values()
  return {one.name: one.default for one in parameters if one.default is not one.empty}


@_cached
def algorithm(method: str, name: str, **setup):
  """Makes a variant of a method for a problem; further arguments are those of `make_setup`."""
  return form(method, make_setup(problem(name).task, **setup))


def form(method: str, setup: Setup) -> Algorithm:
  """Makes a variant of a method."""
  base, options = VARIANTS[method]
  return RECORDS[base].algorithm(setup, RECORDS[base].options(**options))


@_cached
def client(method: str, name: str, **setup):
  """Makes one client's round as a jitted function of (download, memory, data, key)."""
  return jax.jit(algorithm(method, name, **setup).client)


@_cached
def cohort(method: str, name: str, clients_per_chunk=2, **setup):
  """Makes a cohort's round, jitted, of (download, memories, federation, cohort, key)."""
  run = algorithm(method, name, **setup).client
  return jax.jit(partial(sum_over_clients, run, clients_per_chunk=clients_per_chunk))


@_cached
def server(method: str, name: str, **setup):
  """Makes the server's round as a jitted function of (state, upload)."""
  return jax.jit(algorithm(method, name, **setup).server)


@_cached
def simulation(
  method: str,
  name: str,
  clients_per_chunk=2,
  rounds_per_call=5,
  matmul_precision="float32",
  **setup,
):
  """Makes a simulation of a problem."""
  return simulate(
    algorithm(method, name, **setup),
    problem(name).task,
    CLIENTS_PER_ROUND,
    clients_per_chunk,
    rounds_per_call,
    EVAL_BATCH_SIZE,
    matmul_precision=matmul_precision,
    num_clients=len(SIZES),
  )


def memories(method: str, name: str, seed=None, **setup):
  """Makes what all clients keep before round 1; with a seed, what they might keep later."""
  rng = np.random.default_rng(seed)

  def of_all(leaf):
    rows = np.broadcast_to(leaf, (len(SIZES), *leaf.shape))
    return jnp.asarray(rows if seed is None else rows + rng.normal(0, 0.1, rows.shape), leaf.dtype)

  return jax.tree.map(
    of_all, algorithm(method, name, **setup).memory(variables(name), hyper(method))
  )


def start(method: str, name: str, values: Hyper | None = None, **setup):
  """Makes a state before round 1; it may be donated."""
  initial = algorithm(method, name, **setup).init
  return copy(initial(variables(name), values or hyper(method), jax.random.key(11)))


def whole(method: str, name: str, server=None, **setup) -> State:
  """Makes a simulation's state of the server's; it may be donated."""
  server = start(method, name, **setup) if server is None else copy(server)
  return State(server, memories(method, name, **setup))


@cache
def trained(method: str, name: str):
  """Makes a state after two rounds, with masks in place; not to be donated: `copy` it."""
  state = start(method, name)
  for i in range(2):
    upload, _ = run_cohort(method, name, state, (0, 3, 5), key=jax.random.key(20 + i))
    state, _ = server(method, name)(state, upload)
  return state


def play_cohort(
  method, name, state, numbers, federation=None, key=None, kept=None, vanished=(), **setup
):
  """Runs some clients of a problem; returns the summed upload, all memories, and metrics.

  Before the round clients keep what they might after others, if nothing else is given.
  """
  return cohort(method, name, **setup)(
    algorithm(method, name).broadcast(state),
    memories(method, name, seed=1) if kept is None else kept,
    federation or problem(name).federation,
    members(numbers, vanished),
    jax.random.key(2) if key is None else key,
  )


def run_cohort(*arguments, **setup):
  """Does as `play_cohort`; returns the summed upload and metrics."""
  upload, _, metrics = play_cohort(*arguments, **setup)
  return upload, metrics


def play_client(method, name, state, number, federation=None, **setup):
  """Runs one client alone, as it is by default in `play_cohort`; returns what `client` does."""
  data = client_data(federation or problem(name).federation, number)
  kept = jax.tree.map(lambda leaf: leaf[number], memories(method, name, seed=1))
  download = algorithm(method, name).broadcast(state)
  return client(method, name, **setup)(
    download, kept, data, jax.random.fold_in(jax.random.key(2), number)
  )


def run_client(*arguments, **setup):
  """Does as `play_client`; returns the upload and metrics."""
  upload, _, metrics = play_client(*arguments, **setup)
  return upload, metrics


def serve(method, name, state, upload, optimizer):
  """Takes the server's step with an optimizer, of which optax.adam is not made for strictness."""
  promotion = contextlib.nullcontext()
  if optimizer != "sgd":  # whose program is then another than that of the same step without
    promotion = jax.numpy_dtype_promotion("standard")
  with promotion:
    return server(method, name, server=optimizer)(state, upload)


def members(numbers, vanished=()) -> Cohort:
  """Makes a cohort of clients that do all of their work, but for those at places that vanished."""
  numbers = jnp.asarray(numbers, jnp.int32)
  is_present = jnp.ones(numbers.shape, bool).at[jnp.asarray(vanished, jnp.int32)].set(False)
  return Cohort(numbers, is_present, jnp.ones(numbers.shape), numbers)


def client_data(federation: Federation, number: int) -> ClientData:
  """Picks one client."""
  return data_of(federation, jax.tree.map(lambda leaf: leaf[0], members([number])))


def copy(state):
  """Copies a state that is about to be donated."""
  return jax.tree.map(jnp.copy, state)


def add(*trees):
  """Adds pytrees."""
  return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)


def kernels(params) -> dict[str, np.ndarray]:
  """Picks the prunable leaves by flax's name, without the library's predicate."""
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}
  return {path: leaf for path, leaf in leaves.items() if path.endswith("['kernel']")}


def flat_kernels(params) -> np.ndarray:
  """Puts all prunable parameters into one vector."""
  return np.concatenate([leaf.reshape(-1) for leaf in kernels(params).values()])


def assert_close(actual, expected, tolerance) -> None:
  """Compares two trees of arrays, absolutely and relatively."""
  actual, expected = jax.tree.map(_plain, actual), jax.tree.map(_plain, expected)
  compare = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
  jax.tree.map(compare, actual, expected)


def assert_same_bits(actual, expected) -> None:
  """Compares two trees of arrays bit by bit."""

  def compare(a, b):
    np.testing.assert_array_equal(_plain(a), _plain(b))
    assert same_bits(a, b)

  jax.tree.map(compare, actual, expected)


def same_bits(a, b) -> bool:
  """Tells whether two trees of arrays are the same, NaN and the sign of 0 included."""
  pairs = [(_plain(p), _plain(q)) for p, q in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
  return all(p.dtype == q.dtype and p.tobytes() == q.tobytes() for p, q in pairs)


def _plain(leaf) -> np.ndarray:
  is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(leaf) if is_key else leaf)
