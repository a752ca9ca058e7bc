"""Measures the lowerings of a convolution on this backend: `python -m experiments.lowerings`.

Each client has a kernel of its own, as in a round. Prints a JSON line for each layer, each way to
run the clients (one after the other, or side by side) and each lowering: the time of the values and
of both gradients. What wins on CPUs is chosen in `sparsyfed_jax.ops.backend.conv`.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, logging
from absl import flags as absl_flags
from jax import lax

from experiments import flags
from experiments.bench.interleave import interleave, time_call
from experiments.run.environment import describe_environment
from sparsyfed_jax.ops import LOWERINGS

# Batch, side, input features, side of the kernel, stride, output features.
LAYERS = {
  "cnn32-conv0": (10, 32, 3, 3, 1, 32),
  "cnn32-conv1": (10, 30, 32, 3, 1, 64),
  "cnn28-conv1": (20, 14, 32, 5, 1, 64),
  "resnet-stage1": (16, 32, 64, 3, 1, 64),
  "resnet-stage2": (16, 16, 128, 3, 1, 128),
  "resnet-stage4": (16, 4, 512, 3, 1, 512),
  "resnet-shortcut": (16, 32, 64, 1, 2, 128),
}


def main(argv: Sequence[str]) -> None:
  """Measures what the flags say."""
  del argv
  table = absl_flags.FLAGS
  repeats, num_clients = (int(str(table[name].value)) for name in ("repeats", "num_clients"))
  for name, value in (("repeats", repeats), ("num_clients", num_clients)):
    if value < 1:
      flags.fail(ValueError(f"--{name}={value}: must be at least 1"))
  dtype = jnp.bfloat16 if table["bfloat16"].value else jnp.float32
  for layer in LAYERS:
    for row in measure(layer, num_clients, repeats, dtype):
      print(json.dumps(row | describe_environment()), flush=True)


def measure(layer: str, num_clients: int, repeats: int, dtype: Any) -> list[dict[str, Any]]:
  """Times all lowerings of a layer, in turns.

  Args:
    layer: a name of LAYERS.
    num_clients: each with a batch and a kernel of its own.
    repeats: timed calls, of which the median counts.
    dtype: of inputs and kernels.
  """
  batch, side, features, window, stride, outputs = LAYERS[layer]
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (num_clients, batch, side, side, features), dtype)
  w = jax.random.normal(keys[1], (num_clients, window, window, features, outputs), dtype)
  runs = {
    (way, name): jax.jit(run(partial(gradients, conv, stride)))
    for way, run in (("scan", _one_after_the_other), ("vmap", jax.vmap))
    for name, conv in LOWERINGS.items()
  }
  times = interleave([partial(time_call, run, x, w) for run in runs.values()], repeats + 1)
  return [
    {
      "layer": layer,
      "clients": way,
      "lowering": name,
      "seconds": statistics.median(found[1:]),  # the first call compiles
      "num_clients": num_clients,
      "dtype": jnp.dtype(dtype).name,
    }
    for (way, name), found in zip(runs, times, strict=True)
  ]


def gradients(
  conv: Callable[..., jax.Array], stride: int, x: jax.Array, w: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes a layer's value and the gradients of input and kernel, for one client."""
  value, vjp = jax.vjp(lambda x, w: conv(x, w, (stride, stride), "SAME"), x, w)
  return value, *vjp(value)


def _one_after_the_other(fn: Callable[..., Any]) -> Callable[..., Any]:
  return lambda x, w: lax.map(lambda pair: fn(*pair), (x, w))


if __name__ == "__main__":
  absl_flags.DEFINE_integer("repeats", 10, "timed calls, of which the median counts")
  absl_flags.DEFINE_integer("num_clients", 10, "clients, each with a kernel of its own")
  absl_flags.DEFINE_boolean("bfloat16", False, "in bfloat16 instead of float32")
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
