"""The workloads of experiments/bench/workloads.py that other frameworks' programs do."""

import sys
from typing import NamedTuple


class Work(NamedTuple):
  """A workload."""

  shape: tuple[int, int, int] | tuple[int]  # of one example, features first
  num_classes: int
  num_clients: int
  examples_per_client: int
  clients_per_round: int
  batch_size: int
  num_params: int
  cpu_divisor: int = 1  # by which clients, and clients a round, are fewer on a CPU
  is_uint8: bool = False  # as the examples are stored; the network sees [-1, 1]
  epochs: int = 1


WORKLOADS = {
  "mlp64": Work((64,), 10, 1000, 20, 100, 10, 4_810),
  "cnn32": Work((3, 32, 32), 10, 100, 50, 10, 10, 1_626_442),
  "cnn28-1k": Work((1, 28, 28), 62, 10_000, 20, 1000, 20, 1_690_046, cpu_divisor=10),
  "resnet18-c10": Work((3, 32, 32), 10, 100, 500, 10, 16, 11_173_962, is_uint8=True),
  "lenet-5e": Work((3, 32, 32), 10, 100, 500, 100, 50, 62_006, 10, is_uint8=True, epochs=5),
  "resnet18-5e": Work((3, 32, 32), 10, 100, 500, 100, 50, 11_181_642, 10, is_uint8=True, epochs=5),
}


def check_network(num_params: int, work: Work) -> None:
  """Ends the program where the network is not that of the workload."""
  if num_params != work.num_params:
    sys.exit(f"error: the network has {num_params} parameters, not {work.num_params}")
