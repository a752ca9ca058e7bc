#!/usr/bin/env bash
# libtpu 0.0.52 (jax 0.10.2), compiling for a v5e: `lax.optimization_barrier` makes a convolution write
# a second result, which without the barrier another fusion writes in more than twice its cycles.
#
# The result of a convolution is masked, laid out as rows of 128 numbers and read by a reduction.
# Expected: that a barrier can only keep operations apart, so that one more, on the masked array in its
# own shape, costs nothing or an array that is written once more.
# Seen: with the barrier the masked array is a second result of the convolution's fusion, which is
# estimated at 16,493 cycles as before. Without it the mask is joined to what comes after, the new
# layout, and the two are a fusion of 34,532 cycles that reads the convolution's result again.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.52 numpy==2.4.6
# No chip is there, nor looked for.
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1
export TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_HOSTNAMES=localhost TF_CPP_MIN_LOG_LEVEL=3
"$place/venv/bin/python" - <<'PYTHON_END'
import re

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

(chip,) = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1").devices
BF16 = jnp.bfloat16


def convolve(x, w):
  names = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(x, w.astype(BF16), (1, 1), "VALID", dimension_numbers=names)


def estimate(with_barrier):
  def layer(x, w, bias, valid, next_w):
    y = jax.nn.relu(convolve(lax.optimization_barrier(x), w).astype(jnp.float32) + bias)
    masked = jnp.where(valid[:, None, None, None], y.astype(BF16), 0)
    if with_barrier:
      masked = lax.optimization_barrier(masked)
    rows = lax.optimization_barrier(jnp.moveaxis(masked, 0, -2).reshape(-1, 128))
    return jnp.sum(rows > 1, dtype=jnp.int32), convolve(y.astype(BF16), next_w), y

  shapes = (
    ((10, 32, 32, 3), BF16),
    ((3, 3, 3, 32), jnp.float32),
    ((32,), jnp.float32),
    ((10,), jnp.bool_),
    ((3, 3, 32, 64), jnp.float32),
  )
  on_chip = SingleDeviceSharding(chip)
  arguments = [jax.ShapeDtypeStruct(*each, sharding=on_chip) for each in shapes]
  text = jax.jit(layer).lower(*arguments).compile().as_text()
  found = re.findall(r'%(\S+) = (\S+|\(.*?\)) fusion\(.*"estimated_cycles":"(\d+)"', text)
  return {name: (result.split("{")[0], int(cycles)) for name, result, cycles in found}


totals = []
for with_barrier in (False, True):
  fusions = estimate(with_barrier)
  print("with the barrier" if with_barrier else "without")
  for name, (result, cycles) in fusions.items():
    print(f"  {name}: {result} {cycles} cycles")
  totals.append(sum(cycles for _, cycles in fusions.values()))
assert totals[0] > totals[1] + 20_000, "the barrier saves nothing now"
PYTHON_END
