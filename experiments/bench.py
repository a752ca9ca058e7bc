"""Measures what a round costs: `python -m experiments.bench --workload=cnn32`.

Prints one JSON line for each workload and algorithm. Inputs are random: only time is measured,
after compilation and a warm-up, as the median of calls that end when the device is done.
"""

import json
import math
import re
import resource
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, logging
from absl import flags as absl_flags
from flax import linen as nn
from jax import lax

from experiments import flags
from experiments.build import choose_chunk, make_hyper
from experiments.environment import describe_environment
from sparsyfed_jax import trees
from sparsyfed_jax.algorithms import ALGORITHMS
from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.cohort import Federation
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.optimizers import sgd
from sparsyfed_jax.fed.schedules import constant
from sparsyfed_jax.fed.simulation import simulate
from sparsyfed_jax.fed.task import Task, classification, plain_layers
from sparsyfed_jax.models import CNN, MLP
from sparsyfed_jax.ops import kth_magnitude
from sparsyfed_jax.types import Batch

LEAST_CALL_SECONDS = 0.2  # of one timed call, so that its overhead does not count
MAX_ROUNDS_PER_CALL = 100
NUM_CLASSES = 10


class Workload(NamedTuple):
  """One epoch of SGD at 0.1 on random examples."""

  model: nn.Module
  shape: tuple[int, ...]
  num_clients: int
  examples_per_client: int
  clients_per_round: int
  batch_size: int


WORKLOADS = {
  "mlp64": Workload(MLP(NUM_CLASSES, hidden=(64,)), (64,), 1000, 20, 100, 10),
  "cnn32": Workload(CNN(NUM_CLASSES), (32, 32, 3), 100, 50, 10, 10),
}
SELECTION = "kth_magnitude"
SELECTION_SIZE = 11_000_000
SELECTED = 550_000

_FLAGS = absl_flags.FLAGS


def main(argv: Sequence[str]) -> None:
  """Runs the workloads that the flags name."""
  del argv
  known = [*WORKLOADS, SELECTION]
  for name in _FLAGS.workload:
    if name not in known:
      flags.fail(ValueError(f"--workload={name}: must be among {', '.join(known)}"))
  for name in _FLAGS.algorithm:
    if name not in ALGORITHMS:
      flags.fail(ValueError(f"--algorithm={name}: must be among {', '.join(sorted(ALGORITHMS))}"))
  if _FLAGS.repeats < 1:
    flags.fail(ValueError(f"--repeats={_FLAGS.repeats}: must be at least 1"))
  for name in _FLAGS.workload:
    if name == SELECTION:
      _print(measure_selection(_FLAGS.repeats))
      continue
    for algorithm in _FLAGS.algorithm:
      before = _run_peer(_FLAGS.peer_command)
      result = measure_rounds(name, algorithm, _FLAGS.repeats, _FLAGS.clients_per_chunk)
      peer = [seconds for seconds in (before, _run_peer(_FLAGS.peer_command)) if seconds]
      if peer:
        # Before and after: a machine whose speed drifts is drifting for both.
        result["peer_seconds_per_round"] = statistics.mean(peer)
        result["ratio_to_peer"] = result["seconds_per_round"] / result["peer_seconds_per_round"]
      _print(result)


def measure_rounds(
  name: str, algorithm: str, repeats: int, clients_per_chunk: str
) -> dict[str, Any]:
  """Times rounds of a workload.

  Args:
    name: of the workload.
    algorithm: name of the method.
    repeats: timed calls.
    clients_per_chunk: as the flag of `experiments.train`.

  Returns:
    What the JSON line says.
  """
  workload = WORKLOADS[name]
  task = classification(workload.model, workload.shape)
  setup = Setup(task, LocalTraining(workload.batch_size, 1, sgd()), optax.sgd, constant)
  chunk = choose_chunk(clients_per_chunk, workload.model, workload.clients_per_round)
  simulation = simulate(
    ALGORITHMS[algorithm](setup),
    task,
    workload.clients_per_round,
    chunk,
    rounds_per_call=MAX_ROUNDS_PER_CALL,
    eval_batch_size=1,
  )
  key = jax.random.key(0)
  state = simulation.init(_hyper(), key)
  federation = _random_federation(workload, key)
  num_params = trees.size(state.variables["params"])
  start = time.perf_counter()
  compiled = simulation.run.lower(state, federation, key, jnp.int32(1)).compile()
  compile_seconds = time.perf_counter() - start

  def timed(num_rounds: int) -> float:
    nonlocal state
    start = time.perf_counter()
    state, rows = compiled(state, federation, key, jnp.int32(num_rounds))
    jax.block_until_ready((state, rows))
    return (time.perf_counter() - start) / num_rounds

  timed(1)
  one = timed(1)
  rounds = min(MAX_ROUNDS_PER_CALL, math.ceil(LEAST_CALL_SECONDS / one))
  times = [timed(rounds) for _ in range(repeats)]
  seconds = statistics.median(times)
  flops = _flops_per_round(workload, task)
  peak = _matmul_flops_per_second()
  return {
    "workload": name,
    "algorithm": algorithm,
    "seconds_per_round": seconds,
    "fastest_seconds_per_round": min(times),
    "compile_seconds": compile_seconds,
    "clients_per_second": workload.clients_per_round / seconds,
    "clients_per_round": workload.clients_per_round,
    "clients_per_chunk": chunk,
    "num_params": num_params,
    "flops_per_second": flops / seconds,
    "share_of_matmul_peak": flops / seconds / peak,
    "peak_memory_bytes": _peak_memory_bytes(),
  }


def measure_selection(repeats: int) -> dict[str, Any]:
  """Times the k-th magnitude of 11 million floats against `lax.top_k`."""
  x = jax.random.normal(jax.random.key(0), (SELECTION_SIZE,))

  def by_top_k(x: jax.Array) -> jax.Array:
    return lax.top_k(jnp.abs(x), SELECTED)[0][-1]

  ours = _seconds(jax.jit(kth_magnitude), x, jnp.int32(SELECTED), repeats=repeats)
  theirs = _seconds(jax.jit(by_top_k), x, repeats=min(repeats, 5))
  return {
    "workload": SELECTION,
    "size": SELECTION_SIZE,
    "k": SELECTED,
    "seconds": ours,
    "top_k_seconds": theirs,
    "speedup": theirs / ours,
  }


def _hyper() -> Hyper:
  return make_hyper(
    flags.resolve(
      flags.DEFAULTS._replace(
        rounds=1000,
        client_lr=0.1,
        client_lr_final=0.1,
        weight_decay=0.0,
        sparsity_schedule="constant",
      )
    )
  )


def _random_federation(workload: Workload, key: jax.Array) -> Federation:
  shape = (workload.num_clients, workload.examples_per_client)
  num_examples = math.prod(shape)
  return Federation(
    x=jax.random.normal(key, (num_examples, *workload.shape)),
    y=jax.random.randint(key, (num_examples,), 0, NUM_CLASSES),
    indices=jnp.arange(num_examples).reshape(shape),
    sizes=jnp.full(workload.num_clients, workload.examples_per_client),
    density_scales=jnp.ones(workload.num_clients),
  )


def _flops_per_round(workload: Workload, task: Task) -> float:
  """Counts a dense gradient step as XLA does, times the steps of a round."""
  batch = Batch(
    x=jnp.zeros((workload.batch_size, *workload.shape)),
    y=jnp.zeros(workload.batch_size, jnp.int32),
    valid=jnp.ones(workload.batch_size, bool),
  )
  key = jax.random.key(0)
  variables = task.init(key)
  gradient = jax.grad(lambda v: task.loss(v, batch, plain_layers, key)[0])
  analysis: Any = jax.jit(gradient).lower(variables).compile().cost_analysis()
  steps = math.ceil(workload.examples_per_client / workload.batch_size)
  return analysis["flops"] * steps * workload.clients_per_round


def _matmul_flops_per_second(size: int = 2048) -> float:
  matrix = jnp.ones((size, size))
  return 2 * size**3 / _seconds(jax.jit(jnp.matmul), matrix, matrix, repeats=5)


def _seconds(fn: Callable[..., Any], *args: Any, repeats: int) -> float:
  jax.block_until_ready(fn(*args))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def _peak_memory_bytes() -> int:
  statistics_of_device = jax.devices()[0].memory_stats()
  if statistics_of_device:
    return statistics_of_device["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of the whole process


def _run_peer(command: str | None) -> float | None:
  if not command:
    return None
  output = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout
  found = re.search(r"median=([0-9.]+)s", output)
  if not found:
    raise RuntimeError(f"--peer_command={command}: printed no 'median=<seconds>s'")
  return float(found.group(1))


def _print(result: dict[str, Any]) -> None:
  print(json.dumps(result | describe_environment()), flush=True)


if __name__ == "__main__":
  absl_flags.DEFINE_list("workload", [*WORKLOADS, SELECTION], "comma list of workloads")
  absl_flags.DEFINE_list("algorithm", ["fedavg", "sparsyfed"], "comma list of methods")
  absl_flags.DEFINE_integer("repeats", 20, "timed calls, of which the median counts")
  absl_flags.DEFINE_string("clients_per_chunk", flags.AUTO, "clients vmapped, or auto")
  absl_flags.DEFINE_string(
    "peer_command",
    None,
    "a command that does the same work in another framework and prints median=<seconds>s; it is"
    " run before and after each measurement",
  )
  logging.set_verbosity(logging.WARNING)  # jax tells at length which backends it did not find
  app.run(main, flags_parser=flags.parse)
