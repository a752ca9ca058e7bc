"""FedAvg in FedJAX (Ro et al., 2021, arXiv 2108.02117), timed.

`python experiments/peers/fedjax_rounds.py --workload=cnn32 --rounds=14` does the work of the
workload of that name of `experiments.bench`. It wants an environment of its own, with the last jax
that FedJAX runs on: `pip install jax==0.5.3 jaxlib==0.5.3 fedjax==0.0.17`.
"""

# mypy: disable-error-code="import-not-found"

import argparse
import sys
from importlib.metadata import version
from typing import Any

import clock
import jax
import jax.numpy as jnp
import numpy as np
import workloads
from workloads import Work, check_network

WORKLOADS = {name: workloads.WORKLOADS[name] for name in ("mlp64", "cnn32")}


def main() -> None:
  """Times rounds."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cnn32")
  clock.add_arguments(parser)
  parser.add_argument("--backend", choices=("jit", "pmap", "debug"), default="jit", help="FedJAX's")
  options = parser.parse_args()
  try:
    import fedjax
    import haiku
  except (ImportError, AttributeError) as error:  # jax has lost what FedJAX imports
    sys.exit(f"error: {error}: pip install jax==0.5.3 jaxlib==0.5.3 fedjax==0.0.17")

  work = WORKLOADS[options.workload]
  network = haiku.transform(make_network(haiku, options.workload))

  def loss(params: Any, batch: Any, key: Any) -> jax.Array:
    logs = jax.nn.log_softmax(network.apply(params, key, batch["x"]))
    return -jnp.mean(jnp.take_along_axis(logs, batch["y"][:, None], axis=1))

  fedjax.set_for_each_client_backend(options.backend)
  algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    jax.jit(jax.grad(loss)),
    client_optimizer=fedjax.optimizers.sgd(0.1),
    server_optimizer=fedjax.optimizers.sgd(1.0),
    client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(work.batch_size, num_epochs=1),
  )
  params = network.init(jax.random.PRNGKey(0), jnp.zeros((1, *work.shape[::-1])))
  num_params = sum(leaf.size for leaf in jax.tree_util.tree_leaves(params))
  check_network(num_params, work)
  state = algorithm.init(params)
  sampler = fedjax.client_samplers.UniformGetClientSampler(
    fd=fedjax.InMemoryFederatedData(make_clients(work)), num_clients=work.clients_per_round, seed=0
  )

  timer = clock.Clock(options.rounds, options.turns)
  is_done = False
  while not is_done:
    timer.start()
    state, _ = algorithm.apply(state, sampler.sample())
    jax.block_until_ready(state.params)
    is_done = timer.stop()
  print(
    f"fedjax {version('fedjax')}, jax {jax.__version__}, {options.workload}, {options.backend},"
    f" {num_params} parameters: {timer.summary()}"
  )


def make_network(haiku: Any, workload: str) -> Any:
  """Makes the function that computes logits of x, (batch, *shape)."""

  def mlp64(x: jax.Array) -> jax.Array:
    return haiku.Linear(10)(jax.nn.relu(haiku.Linear(64)(x)))

  def cnn32(x: jax.Array) -> jax.Array:
    for channels in (32, 64):
      x = jax.nn.relu(haiku.Conv2D(channels, 3, padding="VALID")(x))
    x = haiku.Flatten()(haiku.MaxPool(2, 2, "VALID")(x))
    return haiku.Linear(10)(jax.nn.relu(haiku.Linear(128)(x)))

  return {"mlp64": mlp64, "cnn32": cnn32}[workload]


def make_clients(work: Work) -> dict[bytes, dict[str, np.ndarray]]:
  """Makes random examples for each client."""
  random = np.random.default_rng(0)
  size = work.examples_per_client
  return {
    b"%05d" % number: {
      "x": random.standard_normal((size, *work.shape[::-1]), np.float32),
      "y": random.integers(0, 10, size, np.int32),
    }
    for number in range(work.num_clients)
  }


if __name__ == "__main__":
  main()
