"""Compiles workloads for a chip that is not there: `python -m experiments.bench.compiled`.

Prints a JSON line for each workload and method: what XLA's own compiler for the chip says of a
round. On a TPU its estimated cycles, added up over loops, are good for ratios of like programs with
one version of the compiler; on a GPU it tells kernels, and neither has time in it. The compilers
come with the extras `plan-tpu` and `plan-gpu`.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging
from absl import flags as absl_flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import flags
from experiments.bench import options, workloads
from experiments.bench.workloads import Workload
from experiments.plan import hlo, targets
from experiments.plan.outlining import trips_of
from experiments.run.compiling import compile_program
from experiments.run.models import choose_chunk
from sparsyfed_jax.fed import memory
from sparsyfed_jax.fed.devices import AXIS


def main(argv: Sequence[str]) -> None:
  """Compiles what the flags name."""
  del argv
  table = absl_flags.FLAGS
  try:
    names, algorithms, settings, _ = options.read(table)
    target = targets.parse(str(table["target"].value))
    targets.require_compiler(target)
    names = [name for name in names or workloads.WORKLOADS if name != workloads.SELECTION]
    options.check_sizes(names, target.chip.platform, settings)
  except flags.ConfigError as error:
    flags.fail(error)
  os.environ.update(targets.environment(target))
  jax.config.update("jax_platforms", "cpu")  # no device is opened
  for row in measure(names, algorithms, settings, target):
    print(json.dumps(row), flush=True)


def measure(
  names: Sequence[str],
  algorithms: Sequence[str],
  settings: options.Settings,
  target: targets.Target,
) -> Iterator[dict[str, Any]]:
  """Compiles workloads with methods for the first chip of a target.

  Args:
    names: of workloads.
    algorithms: names of methods.
    settings: of which sizes, chunk and compute type count.
    target: in whose `targets.environment` this process is.
  """
  sizes = settings.num_clients, settings.clients_per_round
  for name in names:
    workload = workloads.choose(name, target.chip.platform, *sizes)
    for algorithm in algorithms:
      facts = {"target": target.name, "workload": name, "algorithm": algorithm}
      yield facts | _compile(workload, algorithm, settings, target)


def _compile(
  workload: Workload, algorithm: str, settings: options.Settings, target: targets.Target
) -> dict[str, Any]:
  setup = workloads.make_setup(workload, settings.compute_dtype)
  example = jax.ShapeDtypeStruct(workload.shape, workload.dtype)
  chip = memory.Target(target.chip.platform, targets.usable_bytes(target)[0])
  per_round = workload.clients_per_round
  chunk = choose_chunk(settings.clients_per_chunk, setup, example, per_round, chip)
  simulation = workloads.make_simulation(
    workload, setup, algorithm, chunk, rounds_per_call=1, compute_dtype=settings.compute_dtype
  )
  mesh = Mesh(np.array(targets.devices_of(target)[:1]), (AXIS,))
  key = jax.random.key(0)
  shapes = jax.eval_shape(simulation.init, workloads.hyper(algorithm, workload), key)
  federation = jax.eval_shape(lambda: workloads.random_federation(workload))
  given = shapes, federation, key, jnp.int32(1)
  everywhere = NamedSharding(mesh, PartitionSpec())
  arguments = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), given
  )
  lowered = simulation.run.lower(*arguments)
  started = time.perf_counter()
  compiled = compile_program(lowered, target.chip.platform)
  seconds = time.perf_counter() - started
  sizes = np.array(workload.sizes)
  trips = trips_of(sizes, workload.batch_size, per_round, chunk, 1, "replicated")
  taken = compiled.memory_analysis()
  return {
    "compute_dtype": settings.compute_dtype,
    "clients_per_round": per_round,
    "clients_per_chunk": chunk,
    **count(compiled.as_text() or "", trips, target.chip.hertz),
    "temporary_bytes": taken.temp_size_in_bytes if taken else None,
    "compile_seconds": seconds,
    "jax": jax.__version__,
  }


def count(text: str, trips: Mapping[str, float], hertz: float) -> dict[str, Any]:
  """Adds up what a compiled round takes.

  Args:
    text: of the program.
    trips: as `hlo.walk`.
    hertz: of the chip; 0 where cycles are not told.

  Returns:
    `operations` (on a GPU its kernels), `copies`, and `estimated_ms`, None where it is not told.
  """
  found = hlo.walk(hlo.parse(text), trips).counted
  cycles = sum(one.times * one.cycles for one in found)
  copies = sum(one.times for one in found if one.instruction.opcode.startswith("copy"))
  return {
    "operations": math.ceil(sum(one.times for one in found)),
    "copies": math.ceil(copies),
    "estimated_ms": 1e3 * cycles / hertz if hertz else None,
  }


if __name__ == "__main__":
  options.define()
  absl_flags.DEFINE_string("target", "v5e:1x1", "the chip, as of `python -m experiments.plan`")
  absl_flags.adopt_module_key_flags(options)  # for --help
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
