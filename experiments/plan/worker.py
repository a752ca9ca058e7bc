"""Compiles points of a plan in a process of its own: `python -m experiments.plan.worker TARGET`.

Reads requests as JSON lines from stdin and answers each with one on stdout. A process of its own,
because its environment has to be set before jax starts, and because a compilation can only be ended
with its process. The data set is read once for all requests.
"""

import functools
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags as absl_flags

from experiments import flags
from experiments.plan import hlo, targets
from experiments.plan.examples import Shape, take
from experiments.plan.outlining import (
  Lowering,
  bytes_on_chip,
  lowering_of,
  machine_of,
  trips_of,
)
from experiments.run.build import Experiment, outline
from experiments.run.compiling import compile_program
from experiments.run.systems import num_selected
from sparsyfed_jax.data.dataset import DataError, Dataset

SHOWN_OPERATIONS = 12
_SIZE = re.compile(r"\b(\d+(?:\.\d+)?)([KMGT])\b")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Request(NamedTuple):
  """A point of a plan."""

  flags: Sequence[str]  # of `experiments.train`
  algorithm: str  # instead of that in the flags; "" for that
  clients_per_chunk: str  # as `algorithm`
  shape: Sequence[Any] | None = None  # the fields of a `Shape`; None reads the data
  is_whole: bool = True  # with the evaluation, and with what the program does


def main(argv: Sequence[str]) -> None:
  """Answers requests until stdin ends."""
  target = targets.parse(argv[1])
  for line in sys.stdin:
    print(json.dumps(answer(target, Request(**json.loads(line)))), flush=True)


def answer(target: targets.Target, request: Request) -> dict[str, Any]:
  """Compiles what a request asks for.

  Returns:
    The facts of the point, as plan.json has them; or `refusal`, one line; or `too_large`, the
    compiler's words, and where it says so `needed_bytes`.
  """
  try:
    config = config_of(request)
    shape = Shape(*request.shape) if request.shape else None
    if shape:
      shape = shape._replace(example=tuple(shape.example))  # a list in JSON
    dataset, told = _data(tuple(request.flags), shape)
    experiment = outline(config, dataset, machine_of(target))
  except (flags.ConfigError, DataError) as error:
    return {"refusal": " ".join(str(error).split())}
  lowering = lowering_of(experiment)
  facts = {
    "algorithm": config.algorithm,
    "clients_per_chunk": experiment.facts["clients_per_chunk"],
    "most_per_chip": -(-num_selected(config) // experiment.mesh.size),
    "chips": experiment.mesh.size,
    "client_bytes": experiment.facts["client_bytes"],
    "placement": experiment.placement,
    "data": told,
    "examples": {
      "num_classes": dataset.num_classes,
      "input_shape": dataset.x_train.shape[1:],
      "train_examples": len(dataset.y_train),
      "test_examples": len(dataset.y_test),
    },
  }
  try:
    return facts | _compile(config, experiment, lowering, request.is_whole)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return facts | _parts(experiment, lowering) | _too_large(str(error))


def config_of(request: Request) -> flags.Config:
  """Reads and completes the flags of a request, whose empty fields leave them as they are.

  Raises:
    ConfigError: a flag is wrong.
    absl's Error: one is unknown or of another type.
  """
  own = {"algorithm": request.algorithm, "clients_per_chunk": request.clients_per_chunk}
  arguments = ["", *request.flags, *(f"--{name}={value}" for name, value in own.items() if value)]
  table = absl_flags.FlagValues()
  flags.define(table, flags.strangers_in(arguments))
  flags.parse_or_raise(arguments, table)
  return flags.resolve(flags.read(table))


@functools.lru_cache(maxsize=1)
def _data(given: tuple[str, ...], shape: Shape | None) -> tuple[Dataset, str]:
  return take(config_of(Request(given, "", "")), shape)


def _compile(
  config: flags.Config, experiment: Experiment, lowering: Lowering, is_whole: bool
) -> dict[str, Any]:
  platform = experiment.mesh.devices.flat[0].platform
  started = time.perf_counter()
  lowered = lowering.run()
  traced = time.perf_counter()
  compiled = compile_program(lowered, platform)
  ended = time.perf_counter()
  given = lowering.data, lowering.state, lowering.memories, experiment.keys.rounds
  facts = {
    "trace_seconds": traced - started,
    "compile_seconds": ended - traced,
    **_parts(experiment, lowering),
  }
  facts["bytes"] |= _of_program(compiled, bytes_on_chip(given))
  if not is_whole:
    return facts
  trips = trips_of(
    experiment.facts["sizes"],
    config.batch_size,
    num_selected(config),
    experiment.facts["clients_per_chunk"],
    experiment.mesh.size,
    experiment.placement,
  )
  facts["round"] = describe(compiled.as_text() or "", trips)
  started = time.perf_counter()
  evaluation = compile_program(lowering.evaluate(), platform)
  facts["evaluation"] = {
    "compile_seconds": time.perf_counter() - started,
    "bytes": _of_program(evaluation, bytes_on_chip((lowering.state, lowering.test))),
    **describe(evaluation.as_text() or "", {}),
  }
  return facts


def _parts(experiment: Experiment, lowering: Lowering) -> dict[str, Any]:
  """Counts what a chip holds whatever the program does, without padding."""
  shifted = () if experiment.shifted is experiment.federation else experiment.shifted
  known = {id(leaf) for leaf in jax.tree.leaves(lowering.data)}
  later = [leaf for leaf in jax.tree.leaves(shifted) if id(leaf) not in known]
  if experiment.placement == "streamed":
    later = []  # on the host
  return {
    "bytes": {
      "data": bytes_on_chip((lowering.data, lowering.test, later)),
      "state": bytes_on_chip(lowering.state),
      "memories": bytes_on_chip(lowering.memories),
    }
  }


def _of_program(compiled: jax.stages.Compiled, given: int) -> dict[str, int]:
  """Reads what the compiler plans for besides the arrays that a program is given."""
  sizes: Any = compiled.memory_analysis()
  return {
    "padding": max(0, sizes.argument_size_in_bytes - given),
    "temporaries": sizes.temp_size_in_bytes,
    "results": max(0, sizes.output_size_in_bytes - sizes.alias_size_in_bytes),
    "code": sizes.generated_code_size_in_bytes,
  }


def describe(text: str, trips: Mapping[str, float]) -> dict[str, Any]:
  """Describes what an optimised program does, of its text and of the lengths of its loops."""
  found = hlo.walk(hlo.parse(text), trips)
  estimated = [one for one in found.counted if one.cycles]
  others = [one for one in found.counted if not one.cycles]
  copies = sum(one.times for one in found.counted if one.instruction.opcode == "copy")
  return {
    "operations": sum(one.times for one in found.counted),
    "copies": copies,
    "cycles": sum(one.times * one.cycles for one in estimated),
    "collectives": {
      kind: {"count": count, "bytes": size} for kind, (count, size) in found.collectives.items()
    },
    "by_part": _listed(hlo.by_part(found.counted)),
    "by_operation": _listed(hlo.by_operation(found.counted), SHOWN_OPERATIONS),
    "without_cycles": _listed(hlo.by_operation(others), SHOWN_OPERATIONS) if estimated else [],
    "assumed_once": sorted(set(found.assumed)),
    "trips": dict(trips),
  }


def _listed(
  sums: Mapping[str, tuple[float, float]], most: int | None = None
) -> list[dict[str, Any]]:
  return [
    {"name": name, "operations": times, "cycles": cycles}
    for name, (times, cycles) in list(sums.items())[:most]
  ]


def _too_large(message: str) -> dict[str, Any]:
  """Reads what the compiler says of a program that is too large: first, what it needs."""
  first = _SIZE.search(message)
  said = " ".join(message.split("\n")[0].split())
  needed = {"needed_bytes": int(float(first[1]) * _UNITS[first[2]])} if first else {}
  return {"too_large": said} | needed


if __name__ == "__main__":
  main(sys.argv)
