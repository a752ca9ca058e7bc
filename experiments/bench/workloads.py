"""What is measured: the workloads, and the simulation of each."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import flags
from experiments.run.settings import make_hyper
from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.data.dataset import flat
from sparsyfed_jax.data.lists import Parts
from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.cohort import Federation, federation_of
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.optimizers import sgd
from sparsyfed_jax.fed.ragged import are_uneven
from sparsyfed_jax.fed.schedules import constant
from sparsyfed_jax.fed.simulation import Simulation, simulate
from sparsyfed_jax.fed.task import classification, of_flat
from sparsyfed_jax.models import CNN, MLP, ResNet18
from sparsyfed_jax.ops import max_pool

SELECTION = "kth_magnitude"  # measured like a workload, and is none
_LEARNING_RATE = 0.1


class FemnistCNN(nn.Module):
  """Two 5x5 convolutions padded to the same size, each with ReLU and a 2x2 max pool.

  The network of FEMNIST in LEAF (Caldas et al., 2018, arXiv 1812.01097), with a smaller hidden
  layer.

  Attributes:
    num_classes: outputs.
    channels: features of each convolution.
    hidden: width of the dense layer.
  """

  num_classes: int
  channels: tuple[int, ...] = (32, 64)
  hidden: int = 512

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Maps images (batch, height, width, features) float32 to logits (batch, num_classes)."""
    for features in self.channels:
      x = max_pool(nn.relu(nn.Conv(features, (5, 5), padding="SAME")(x)), 2)
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(self.hidden)(x))
    return nn.Dense(self.num_classes)(x)


class LeNet(nn.Module):
  """Two 5x5 convolutions, each with ReLU and a 2x2 max pool, and three dense layers.

  LeCun et al. (1998) with ReLU and max pools, as PyTorch's tutorial has it and BlazeFL measures.

  Attributes:
    num_classes: outputs.
  """

  num_classes: int

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Maps images (batch, height, width, features) float32 to logits (batch, num_classes)."""
    for features in (6, 16):
      x = max_pool(nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x)), 2)
    x = x.reshape(x.shape[0], -1)
    for width in (120, 84):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.num_classes)(x)


class Workload(NamedTuple):
  """SGD at 0.1 on random examples."""

  model: nn.Module
  num_classes: int
  shape: tuple[int, ...]  # of one example
  sizes: tuple[int, ...]  # examples of each client
  clients_per_round: int
  batch_size: int
  dtype: str = "float32"  # of the stored examples; uint8 is seen in [-1, 1]
  cpu_divisor: int = 1  # by which clients, and clients a round, are fewer on a CPU
  is_for_accelerators: bool = False  # measured on a CPU only where it is named
  epochs: int = 1  # of local training; with several, measured only where it is named
  even: str | None = None  # the workload that deals as many examples out evenly, to compare with


def _log_uniform(num_clients: int, largest: int) -> tuple[int, ...]:
  """Makes sizes from 1 to `largest` whose density falls as 1 / size, in a mixed order."""
  sizes = np.rint(np.geomspace(1, largest, num_clients)).astype(int)
  return tuple(np.random.default_rng(0).permutation(sizes).tolist())


def _even(sizes: tuple[int, ...]) -> tuple[int, ...]:
  share, rest = divmod(sum(sizes), len(sizes))
  return (share + 1,) * rest + (share,) * (len(sizes) - rest)


_MLP = MLP(10, hidden=(64,))
_MLP_SIZES = _log_uniform(200, 500)
_CNN_SIZES = _log_uniform(50, 200)

_FIVE_EPOCHS = Workload(
  model=LeNet(10),
  num_classes=10,
  shape=(32, 32, 3),
  sizes=(500,) * 100,
  clients_per_round=100,
  batch_size=50,
  dtype="uint8",
  cpu_divisor=10,
  is_for_accelerators=True,
  epochs=5,
)

WORKLOADS: dict[str, Workload] = {
  "mlp64": Workload(_MLP, 10, (64,), (20,) * 1000, 100, 10),
  "cnn32": Workload(CNN(10), 10, (32, 32, 3), (50,) * 100, 10, 10),
  "cnn28-1k": Workload(FemnistCNN(62), 62, (28, 28, 1), (20,) * 10_000, 1000, 20, cpu_divisor=10),
  "resnet18-c10": Workload(
    ResNet18(10), 10, (32, 32, 3), (500,) * 100, 10, 16, "uint8", is_for_accelerators=True
  ),
  # What BlazeFL 3 publishes times of, of CIFAR-10: five rounds of all clients.
  "lenet-5e": _FIVE_EPOCHS,
  "resnet18-5e": _FIVE_EPOCHS._replace(model=ResNet18(10, stem="imagenet")),
  # All clients take part, so that every round of the two has the same number of examples.
  "mlp64-even": Workload(_MLP, 10, (64,), _even(_MLP_SIZES), 200, 10),
  "mlp64-skewed": Workload(_MLP, 10, (64,), _MLP_SIZES, 200, 10, even="mlp64-even"),
  "cnn32-even": Workload(
    CNN(10), 10, (32, 32, 3), _even(_CNN_SIZES), 50, 10, is_for_accelerators=True
  ),
  "cnn32-skewed": Workload(
    CNN(10), 10, (32, 32, 3), _CNN_SIZES, 50, 10, is_for_accelerators=True, even="cnn32-even"
  ),
}


def suiting(backend: str) -> list[str]:
  """Names the workloads that a backend is measured with if none is named."""
  is_cpu = backend == "cpu"
  return [
    name
    for name, item in WORKLOADS.items()
    if item.epochs == 1 and not (is_cpu and item.is_for_accelerators)
  ]


def group_names(names: Iterable[str]) -> list[list[str]]:
  """Puts workloads that are compared with each other into one group."""
  groups: dict[str, list[str]] = {}
  for name in names:
    even = WORKLOADS[name].even if name in WORKLOADS else None
    groups.setdefault(even or name, []).append(name)
  return list(groups.values())


def choose(
  name: str, backend: str, num_clients: int | None = None, clients_per_round: int | None = None
) -> Workload:
  """Takes a workload in the size that a backend and the flags ask for.

  Args:
    name: of the workload.
    backend: the platform of its devices, "cpu", "gpu" or "tpu".
    num_clients: of the federation, whose sizes are those of the workload, repeated or cut; None
      leaves them.
    clients_per_round: None leaves them.

  Raises:
    ConfigError: fewer than one client, or more clients a round than there are.
  """
  workload = WORKLOADS[name]
  divisor = workload.cpu_divisor if backend == "cpu" else 1
  if num_clients is None:
    num_clients = len(workload.sizes) // divisor
  if clients_per_round is None:
    clients_per_round = workload.clients_per_round // divisor
  if num_clients < 1:
    raise flags.ConfigError(f"--num_clients={num_clients}: must be at least 1")
  if not 1 <= clients_per_round <= num_clients:
    raise flags.ConfigError(
      f"--clients_per_round={clients_per_round}: must be between 1 and the {num_clients} clients of"
      f" {name}"
    )
  sizes = tuple(itertools.islice(itertools.cycle(workload.sizes), num_clients))
  return workload._replace(sizes=sizes, clients_per_round=clients_per_round)


def make_setup(workload: Workload, compute_dtype: str) -> Setup:
  """Makes the setup of a workload; the type is among `config.COMPUTE_DTYPES`."""
  mean, std = (127.5, 127.5) if workload.dtype == "uint8" else (0.0, 1.0)
  dtype = _dtype_and_precision(compute_dtype)[0]
  whole = classification(workload.model, workload.shape, mean, std, dtype)
  task = of_flat(whole, workload.shape)
  local = LocalTraining(
    workload.batch_size,
    workload.epochs,
    sgd(),
    is_ragged=are_uneven(np.array(workload.sizes), workload.batch_size),
  )
  return Setup(task, local, optax.sgd, constant)


def make_simulation(
  workload: Workload,
  setup: Setup,
  algorithm: str,
  clients_per_chunk: int,
  rounds_per_call: int,
  compute_dtype: str,
) -> Simulation:
  """Makes the simulation that is measured.

  Args:
    workload: in its size, from `choose`.
    setup: of the workload, with the same `compute_dtype`.
    algorithm: name of the method.
    clients_per_chunk: how many clients are vmapped.
    rounds_per_call: at most how many rounds a call does.
    compute_dtype: among `config.COMPUTE_DTYPES`.
  """
  return simulate(
    METHODS[algorithm].algorithm(setup),
    setup.task,
    workload.clients_per_round,
    clients_per_chunk,
    rounds_per_call=rounds_per_call,
    eval_batch_size=1,
    matmul_precision=_dtype_and_precision(compute_dtype)[1],
    measures=setup.measures,
    num_clients=len(workload.sizes),
  )


def random_matrix(size: int, compute_dtype: str) -> tuple[jax.Array, str]:
  """Makes a (size, size) matrix of a compute type, and the precision of its products."""
  dtype, precision = _dtype_and_precision(compute_dtype)
  return jax.random.normal(jax.random.key(0), (size, size), dtype), precision


def _dtype_and_precision(compute_dtype: str) -> tuple[Any, str]:
  dtype = jnp.bfloat16 if compute_dtype == "bfloat16" else jnp.float32
  return dtype, "tensorfloat32" if compute_dtype == "tf32" else "float32"


def hyper(algorithm: str, workload: Workload) -> Hyper:
  """Makes a method's settings for a workload: 95 % sparsity from round 1, a constant rate."""
  return make_hyper(
    flags.resolve(
      flags.DEFAULTS._replace(
        algorithm=algorithm,
        rounds=1000,
        client_lr=_LEARNING_RATE,
        client_lr_final=_LEARNING_RATE,
        weight_decay=0.0,
        sparsity_schedule="constant",
      )
    ),
    total_weight=sum(workload.sizes),
  )


def random_federation(workload: Workload) -> Federation:
  """Makes the clients' data, on the host: drawing it would count as the device's peak memory."""
  random = np.random.default_rng(0)
  sizes = np.array(workload.sizes)
  shape = (int(sizes.sum()), *workload.shape)
  if workload.dtype == "uint8":
    x = random.integers(0, 256, shape, np.uint8)
  else:
    x = random.standard_normal(shape, np.float32)
  y = random.integers(0, workload.num_classes, shape[:1], np.int32)
  federation = federation_of(flat(x), y, Parts(np.arange(shape[0]), sizes))
  return jax.tree.map(jnp.asarray, federation)
