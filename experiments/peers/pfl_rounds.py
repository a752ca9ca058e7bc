"""FedAvg in pfl (Granqvist et al., 2024, arXiv 2404.06430), timed on the CPU.

`python experiments/peers/pfl_rounds.py --workload=cnn32 --rounds=14` does the work of the workload
of that name of `experiments.bench`. It wants an environment of its own:
`pip install 'pfl[pytorch]'` (measured with 0.6.0).
"""

# mypy: disable-error-code="import-not-found"

import argparse
import sys
from importlib.metadata import version
from typing import Any

import clock
import workloads
from workloads import Work, check_network

MAX_ROUNDS = 10**6  # which the timer ends

WORKLOADS = {name: workloads.WORKLOADS[name] for name in ("mlp64", "cnn32")}


def main() -> None:
  """Times rounds."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cnn32")
  clock.add_arguments(parser)
  parser.add_argument("--threads", type=clock.positive, help="of the CPU")
  options = parser.parse_args()
  try:
    import pfl  # noqa: F401
    import torch
  except ImportError as error:
    sys.exit(f"error: {error}: pip install 'pfl[pytorch]'")

  if options.threads:
    torch.set_num_threads(options.threads)
  torch.manual_seed(0)
  work = WORKLOADS[options.workload]
  network = make_network(torch.nn, options.workload)
  num_params = sum(leaf.numel() for leaf in network.parameters())
  check_network(num_params, work)
  timer = clock.Clock(options.rounds, options.turns)
  run(torch, network, work, timer)
  print(
    f"pfl {version('pfl')}, torch {torch.__version__}, {options.workload},"
    f" {torch.get_num_threads()} threads, {num_params} parameters: {timer.summary()}"
  )


def make_network(nn: Any, workload: str) -> Any:
  """Makes the network of a workload, from `torch.nn`, with the two methods that pfl calls."""
  from pfl.metrics import Weighted

  layers = {
    "mlp64": lambda: (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    "cnn32": lambda: (
      *(nn.Conv2d(3, 32, 3), nn.ReLU()),
      *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
      *(nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Linear(128, 10)),
    ),
  }

  class Network(nn.Sequential):
    def loss(self, x: Any, y: Any, eval: bool = False) -> Any:
      self.train(not eval)
      return nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: Any, y: Any, eval: bool = False) -> dict[str, Any]:
      self.train(not eval)
      total = nn.functional.cross_entropy(self(x), y, reduction="sum")
      return {"loss": Weighted(float(total.detach()), len(y))}

  return Network(*layers[workload]())


def run(torch: Any, network: Any, work: Work, timer: clock.Clock) -> None:
  """Runs FedAvg until the timer has enough rounds."""
  from pfl.aggregate.simulate import SimulatedBackend
  from pfl.aggregate.weighting import WeightByDatapoints
  from pfl.algorithm.base import NNAlgorithmParams
  from pfl.algorithm.federated_averaging import FederatedAveraging
  from pfl.callback.base import TrainingProcessCallback
  from pfl.data.federated_dataset import FederatedDataset
  from pfl.data.sampling import get_user_sampler
  from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
  from pfl.metrics import Metrics
  from pfl.model.pytorch import PyTorchModel

  class Timing(TrainingProcessCallback):
    def on_train_begin(self, *, model: Any) -> Any:
      timer.start()
      return Metrics()

    def after_central_iteration(
      self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
      is_done = timer.stop()
      timer.start()
      return is_done, Metrics()

  size = work.examples_per_client
  clients = {
    number: (torch.randn(size, *work.shape), torch.randint(0, 10, (size,)))
    for number in range(work.num_clients)
  }
  sampler = get_user_sampler("random", list(clients))
  FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
      central_num_iterations=MAX_ROUNDS,
      evaluation_frequency=10**9,
      train_cohort_size=work.clients_per_round,
      val_cohort_size=0,
    ),
    backend=SimulatedBackend(
      training_data=FederatedDataset.from_slices(clients, sampler),
      val_data=None,
      postprocessors=[WeightByDatapoints()],
    ),
    model=PyTorchModel(
      network,
      local_optimizer_create=torch.optim.SGD,
      central_optimizer=torch.optim.SGD(network.parameters(), 1.0),
    ),
    model_train_params=NNTrainHyperParams(
      local_learning_rate=0.1, local_num_epochs=1, local_batch_size=work.batch_size
    ),
    model_eval_params=NNEvalHyperParams(local_batch_size=size),
    callbacks=[Timing()],
  )


if __name__ == "__main__":
  main()
