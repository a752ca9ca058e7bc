"""Measures a million clients of whom most are small: `python -m experiments.million`.

Sizes follow a power law, from 1 to 100,000 examples of 64 bytes, 30 million in all; they belong to
clients by a column of ids, as they would in a file. FedAvg trains a small MLP, 100 clients a round.
Another federation has a hundredth of the clients, every hundredth by size; its rounds take turns
with the others. Prints a JSON line: memory of the federation relative to its examples and indices,
seconds to start without compilation, and seconds of a round in both.
"""

import json
import resource
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, logging
from absl import flags as absl_flags

import sparsyfed_jax as sf
from experiments import flags
from experiments.bench.interleave import interleave
from experiments.run.environment import describe_environment
from sparsyfed_jax.algorithms import DENSE, METHODS

LARGEST = 100_000
_EXPONENT = -1.5
_EVERY = 100  # client by size is one of the smaller federation's
_BYTES = 64


class Started(NamedTuple):
  """A federation that is ready to run."""

  run: sf.Run
  state: sf.run.State
  facts: dict[str, Any]


def main(argv: Sequence[str]) -> None:
  """Measures what the flags say."""
  del argv
  table = absl_flags.FLAGS
  names = ("clients", "examples", "turns")
  values = {name: int(str(table[name].value)) for name in names}
  for name, least in zip(names, (100 * _EVERY, 100 * _EVERY, 1), strict=True):
    if values[name] < least:
      flags.fail(ValueError(f"--{name}={values[name]}: must be at least {least}"))
  print(json.dumps(measure(*values.values()) | describe_environment()))


def power_law_sizes(num_clients: int, num_examples: int, largest: int = LARGEST) -> np.ndarray:
  """Makes sizes from `largest` down to about 1 that add up to nearly `num_examples`, descending."""
  ranks = np.arange(num_clients)

  def sizes(scale: float) -> np.ndarray:
    return np.maximum(1, largest * (1 + ranks / scale) ** _EXPONENT).astype(np.int64)

  low, high = 1e-3, float(num_clients)
  for _ in range(60):
    middle = (low * high) ** 0.5
    low, high = (middle, high) if sizes(middle).sum() < num_examples else (low, middle)
  return sizes(low)


def generate(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Makes random examples (n, 64), their labels and the numbers of their clients, (n,) each."""
  rng = np.random.default_rng(0)
  num_examples = int(sizes.sum())
  x = np.frombuffer(rng.bytes(num_examples * _BYTES), np.uint8).reshape(-1, _BYTES)
  owners = np.repeat(rng.permutation(len(sizes)).astype(np.int32), sizes)
  return x, rng.integers(0, 10, num_examples, np.int32), owners


def start(sizes: np.ndarray, num_rounds: int, clients_per_round: int = 100) -> Started:
  """Makes the data, splits it by the clients' ids, and puts it on the devices.

  Args:
    sizes: (num_clients,) numbers of examples.
    num_rounds: for which the run is planned.
    clients_per_round: sampled.
  """
  x, y, owners = generate(sizes)
  num_examples = len(y)
  began = time.perf_counter()
  data = sf.data.from_arrays(x, y, x[:1000], y[:1000], client_train=owners)
  clients = sf.data.natural(data)
  task = sf.classification(sf.models.MLP(10, hidden=(32,)), data)
  run = sf.simulate(
    METHODS[DENSE](),
    task,
    clients,
    clients_per_round=clients_per_round,
    local_epochs=1,
    client_lr=0.01,
    rounds=num_rounds,
  )
  jax.block_until_ready(run.federation)
  seconds = time.perf_counter() - began
  federation = run.federation
  held = sum(leaf.nbytes for leaf in jax.tree.leaves(federation))
  needed = federation.x.nbytes + federation.y.nbytes + 4 * num_examples
  facts = {
    "clients": len(sizes),
    "examples": num_examples,
    "largest_client": int(sizes.max()),
    "start_seconds": seconds,
    "federation_bytes": held,
    "relative_bytes": held / needed,
    "rectangle_bytes": 4 * len(sizes) * int(sizes.max()),
    "list_bytes": held - federation.x.nbytes - federation.y.nbytes,
    "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  }
  return Started(run, run.init(seed=0), facts)


def measure(num_clients: int, num_examples: int, turns: int) -> dict[str, Any]:
  """Starts both federations, and times their rounds in turns.

  Args:
    num_clients: of the larger one.
    num_examples: of the larger one, nearly.
    turns: of a round each, of which the median counts: some rounds have a very large client.
  """
  sizes = power_law_sizes(num_clients, num_examples)
  num_rounds = turns + 1
  large = start(sizes, num_rounds)
  fewer = sizes[_EVERY // 2 :: _EVERY].copy()
  fewer[0] = sizes[0]  # the longest list is as long, so that both run the same program
  small = start(fewer, num_rounds)
  states = [large.state, small.state]

  def turn(i: int) -> float:
    began = time.perf_counter()
    run = (large, small)[i].run
    states[i], _ = run.rounds(states[i], 1)
    return time.perf_counter() - began

  times = interleave([partial(turn, 0), partial(turn, 1)], turns + 1)
  first, own, other = times[0][0], *(found[1:] for found in times)
  return large.facts | {
    "first_call_seconds": first,  # with compilation
    "seconds_per_round": statistics.median(own),
    "seconds_per_round_of_fewer": statistics.median(other),
    "fewer_clients": small.facts["clients"],
    "relative_seconds": statistics.median(own) / statistics.median(other),
  }


if __name__ == "__main__":
  absl_flags.DEFINE_integer("clients", 10**6, "registered clients")
  absl_flags.DEFINE_integer("examples", 30 * 10**6, "examples of all clients, nearly")
  absl_flags.DEFINE_integer("turns", 150, "rounds that are timed")
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
