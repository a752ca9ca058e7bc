"""The number of clients to vmap: memory per client and free memory of a device."""

import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.fed.task import Task, plain_layers
from sparsyfed_jax.types import Batch, Params

_SHARE = 0.5  # of what is free, for the clients of a chunk
# Clients side by side. A chunk costs an accelerator some 0.2 ms however small its clients are.
_MOST_ON_CPU, _MOST = 128, 1024

CLASS = jax.ShapeDtypeStruct((), jnp.int32)


class Target(NamedTuple):
  """The devices that programs are made for, which need not be there.

  Example:
    >>> Target("tpu", free_bytes=16e9).platform
    'tpu'
  """

  platform: str  # "cpu", "gpu" or "tpu", as a `jax.Device` has it
  free_bytes: float = float("inf")  # of one device


def target_of(device: jax.Device) -> Target:
  """Makes the target of programs for a device of this process."""
  return Target(device.platform, free_bytes(device))


def choose_chunk(
  setup: Setup,
  example: jax.ShapeDtypeStruct,
  clients_per_device: int,
  target: Target,
  label: jax.ShapeDtypeStruct = CLASS,
) -> int:
  """Chooses how many clients to vmap: as many as is fast and fits.

  On CPU the layers of most models fill the cores one client at a time, and batching them only costs
  cache; small dense layers need many clients side by side. On TPU convolutions of several clients
  are slower than one client's after the other's, and take several times the memory.

  Args:
    setup: of the method.
    example: shape and dtype of one example, as stored.
    clients_per_device: of a round.
    target: what the program is made for.
    label: shape and dtype of what is predicted of an example.

  Returns:
    A size of which all chunks of a round are as full as they can be.
  """
  is_cpu = target.platform == "cpu"
  if (is_cpu and not _is_dense(setup.task)) or _is_convolved_on_tpu(setup.task, target.platform):
    return 1
  fitting = _SHARE * target.free_bytes // client_bytes(setup, example, target.platform, label)
  most = int(max(1, min(clients_per_device, _MOST_ON_CPU if is_cpu else _MOST, fitting)))
  return -(-clients_per_device // -(-clients_per_device // most))


def _is_dense(task: Task) -> bool:
  """Tells whether a model is dense layers of single vectors, as far as its layers are known."""
  return bool(task.products) and all(
    one.kind == "dot_general" and len(one.x_shape) == 2 and not one.inside for one in task.products
  )


def _is_convolved_on_tpu(task: Task, platform: str) -> bool:
  return platform == "tpu" and any(one.kind != "dot_general" for one in task.products)


def free_bytes(device: jax.Device) -> float:
  """Returns the memory that is free on a device of this process; infinity where nobody says."""
  known = device.memory_stats()
  if known and "bytes_limit" in known:
    return known["bytes_limit"] - known["bytes_in_use"]
  try:
    lines = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
  except OSError:
    return float("inf")
  kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
  return int(kilobytes[0]) * 1024 if kilobytes else float("inf")


def client_bytes(
  setup: Setup,
  example: jax.ShapeDtypeStruct,
  platform: str,
  label: jax.ShapeDtypeStruct = CLASS,
) -> int:
  """Estimates the bytes that each client of a chunk takes besides what all clients share.

  Counts what a gradient step keeps for its backward pass, as it is traced, and copies of the
  parameters: as many as fit what compilers took for the benchmark's workloads
  (`experiments/results/accelerators.md`).

  Args:
    setup: of the method.
    example: shape and dtype of one example, as stored.
    platform: that is compiled for, as in `Target`.
    label: shape and dtype of what is predicted of it.
  """
  task, size = setup.task, setup.local.batch_size
  key = jax.eval_shape(lambda: jax.random.key(0))
  variables = jax.eval_shape(task.init, key)

  def zeros() -> Batch:
    x = jnp.zeros((size, *example.shape), example.dtype)
    y = jnp.zeros((size, *label.shape), label.dtype)
    return Batch(x, y, jnp.zeros(size, bool))

  batch = jax.eval_shape(zeros)

  def kept(params: Params, rest: Any, batch: Batch, key: jax.Array) -> Any:
    def loss(params: Params) -> jax.Array:
      return task.loss({**rest, "params": params}, batch, plain_layers, key)[0]

    return jax.vjp(loss, params)[1]  # whose leaves are what the backward pass needs

  rest = {name: leaf for name, leaf in variables.items() if name != "params"}
  residuals = jax.eval_shape(kept, variables["params"], rest, batch, key)
  kept_bytes, params_bytes = _bytes((residuals, batch)), _bytes(variables["params"])
  if platform == "cpu":
    # Trained parameters and their update, the gradient, powers with their derivative, and what the
    # optimizer or the method keeps.
    return kept_bytes + 6 * params_bytes
  # The compilers use memory again within a step, and a TPU's more of it with convolutions.
  if _is_convolved_on_tpu(task, platform):
    return kept_bytes // 4 + 3 * params_bytes
  return kept_bytes // 2 + 3 * params_bytes // 2


def _bytes(tree: Any) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
