"""FedAvg as a bare PyTorch loop, the clients one after the other: what a simulator should beat.

`python experiments/peers/torch_loop.py --workload=cnn32 --rounds=14` does the work of the workload
of that name of `experiments.bench`, on CUDA if there is any, else on the CPU. It needs PyTorch and
nothing else. The data is random and on the device; a round is timed until the device is done.
"""

# mypy: disable-error-code="import-not-found"

import argparse
import sys
from typing import Any

import clock
from workloads import WORKLOADS, Work, check_network


def main() -> None:
  """Times rounds."""
  options = _parse()
  try:
    import torch
  except ImportError:
    sys.exit("error: needs PyTorch: pip install torch")

  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  if options.threads:
    torch.set_num_threads(options.threads)
  is_exact = options.dtype == "float32"
  torch.set_float32_matmul_precision("highest" if is_exact else "high")
  torch.backends.cudnn.allow_tf32 = not is_exact
  torch.backends.cudnn.benchmark = True
  torch.manual_seed(0)

  work = WORKLOADS[options.workload]
  divisor = work.cpu_divisor if device.type == "cpu" else 1
  num_clients = work.num_clients // divisor
  cohort_size = options.clients_per_round or work.clients_per_round // divisor
  timed_clients = min(options.subset or cohort_size, cohort_size)
  if cohort_size > num_clients:
    sys.exit(f"error: --clients_per_round={cohort_size}: there are {num_clients} clients")

  network = make_network(torch.nn, options.workload, work).to(device)
  num_params = sum(leaf.numel() for leaf in network.parameters())
  check_network(num_params, work)
  shape = (num_clients, work.examples_per_client)
  if work.is_uint8:
    x = torch.randint(0, 256, (*shape, *work.shape), dtype=torch.uint8, device=device)
  else:
    x = torch.randn(*shape, *work.shape, device=device)
  y = torch.randint(0, work.num_classes, shape, device=device)
  model = {name: leaf.clone() for name, leaf in network.state_dict().items()}

  timer = clock.Clock(options.rounds, options.turns, scale=cohort_size / timed_clients)
  is_done = False
  while not is_done:
    cohort = torch.randperm(num_clients)[:timed_clients].tolist()
    timer.start()
    model = run_round(torch, network, model, x, y, cohort, work, options.dtype == "bfloat16")
    if device.type == "cuda":
      torch.cuda.synchronize()
    is_done = timer.stop()

  kind = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
  note = ""
  if timed_clients < cohort_size:
    note = f" ({timed_clients} of the {cohort_size} clients of a round timed, and scaled up)"
  print(
    f"torch {torch.__version__} on {kind}, {options.workload}, {options.dtype},"
    f" {num_params} parameters, {cohort_size} clients a round: {timer.summary()}{note}"
  )


def run_round(
  torch: Any,
  network: Any,
  model: dict[str, Any],
  x: Any,
  y: Any,
  cohort: list[int],
  work: Work,
  is_bfloat16: bool,
) -> dict[str, Any]:
  """Trains the clients of a round one after the other, and averages their models.

  Args:
    torch: the module.
    network: that every client trains; left in the state of the last one.
    model: state dict of the global model.
    x: (clients, examples, *shape).
    y: (clients, examples).
    cohort: numbers of clients.
    work: the workload.
    is_bfloat16: whether products are computed in bfloat16.

  Returns:
    The mean of the clients' state dicts, weighted by their examples.
  """
  total = sum(y[client].shape[0] for client in cohort)
  mean = {name: torch.zeros_like(leaf) for name, leaf in model.items()}
  network.train()
  for client in cohort:
    network.load_state_dict(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    size = y[client].shape[0]
    orders = [torch.randperm(size, device=x.device) for _ in range(work.epochs)]
    for rows in (rows for order in orders for rows in order.split(work.batch_size)):
      inputs = x[client][rows]
      if work.is_uint8:
        inputs = (inputs.float() - 127.5) / 127.5
      optimizer.zero_grad()
      with torch.autocast(x.device.type, torch.bfloat16, enabled=is_bfloat16):
        logits = network(inputs)
      torch.nn.functional.cross_entropy(logits.float(), y[client][rows]).backward()
      optimizer.step()
    with torch.no_grad():
      for name, leaf in network.state_dict().items():
        if leaf.is_floating_point():
          mean[name].add_(leaf, alpha=size / total)
        else:  # a count of batches
          mean[name].copy_(leaf)
  return mean


def make_network(nn: Any, workload: str, work: Work) -> Any:
  """Makes the network of a workload, from `torch.nn`."""
  if workload == "mlp64":
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, work.num_classes))
  if workload == "cnn32":
    return nn.Sequential(
      *(nn.Conv2d(3, 32, 3), nn.ReLU()),
      *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
      *(nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Linear(128, work.num_classes)),
    )
  if workload == "cnn28-1k":
    return nn.Sequential(
      *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
      *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
      *(nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, work.num_classes)),
    )
  if workload == "lenet-5e":
    return nn.Sequential(
      *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
      *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
      *(nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
      nn.Linear(84, work.num_classes),
    )
  return _resnet18(nn, work.num_classes, is_for_small_images=workload == "resnet18-c10")


def _resnet18(nn: Any, num_classes: int, is_for_small_images: bool) -> Any:
  """Makes a ResNet-18 without biases of convolutions.

  Small images have a 3x3 stem without a pool, others a 7x7 one of stride 2 and a pool.
  """

  def conv(inputs: int, outputs: int, side: int, stride: int = 1) -> list[Any]:
    layer = nn.Conv2d(inputs, outputs, side, stride, (side - 1) // 2, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]

  class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
      super().__init__()
      first, second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
      self.body = nn.Sequential(*first, nn.ReLU(), *second)
      is_same = stride == 1 and inputs == outputs
      self.shortcut = nn.Identity() if is_same else nn.Sequential(*conv(inputs, outputs, 1, stride))

    def forward(self, x: Any) -> Any:
      return (self.body(x) + self.shortcut(x)).relu()

  blocks = []
  inputs = 64
  for stage in range(4):
    for block in range(2):
      outputs = 64 * 2**stage
      blocks.append(Block(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
      inputs = outputs
  head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))
  stem = conv(3, 64, 3) if is_for_small_images else conv(3, 64, 7, 2)
  pool = [] if is_for_small_images else [nn.MaxPool2d(3, 2, 1)]
  return nn.Sequential(*stem, nn.ReLU(), *pool, *blocks, *head)


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cnn32")
  clock.add_arguments(parser)
  parser.add_argument("--dtype", choices=("float32", "tf32", "bfloat16"), default="float32")
  parser.add_argument("--clients_per_round", type=clock.positive, help="instead of the workload's")
  parser.add_argument(
    "--subset", type=clock.positive, help="time only so many clients, and scale up"
  )
  parser.add_argument("--threads", type=clock.positive, help="of the CPU")
  return parser.parse_args()


if __name__ == "__main__":
  main()
