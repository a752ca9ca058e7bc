#!/usr/bin/env bash
# libtpu 0.0.52 (jax 0.10.2), compiling for a v5e: counting the True entries of a mask is estimated
# at nine times the cycles of a matrix product that counts them.
#
# How many entries of an array reach a pivot is `jnp.sum(x >= pivot)`.
# Expected: that the sum reads the array once, and that a product with rows of ones, which reads it
# too and multiplies besides, is no faster.
# Seen: of 12,544 x 128 numbers that are on the chip the sum is a fusion of 30,534 cycles, some twenty
# for each register of 1,024 numbers. The product `ones((8, n)) @ (x >= pivot)` in bfloat16, whose
# float32 sums are exact up to 2^24, is one of 3,179 with the comparison and the sum of the columns.
# With a single row of ones the compiler makes the slow reduction of it.
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


def by_sum(mask):
  return jnp.sum(mask, dtype=jnp.int32)


def by_product(rows):
  def count(mask):
    ones = jnp.ones((rows, len(mask)), jnp.bfloat16)
    columns = jnp.matmul(ones, mask.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    return jnp.sum(columns[0].astype(jnp.int32))

  return count


def estimate(count):
  def on_the_chip(x):
    return count(lax.optimization_barrier(x + 1) >= 5)

  x = jax.ShapeDtypeStruct((12544, 128), jnp.int32, sharding=SingleDeviceSharding(chip))
  text = jax.jit(on_the_chip).lower(x).compile().as_text()
  fusions = re.findall(r'%(\S+) = .* fusion\(.*"estimated_cycles":"(\d+)"', text)
  return sum(int(cycles) for name, cycles in fusions if "broadcast_add" not in name)


found = {
  "a sum": estimate(by_sum),
  "a product with 8 rows of ones": estimate(by_product(8)),
  "a product with 1 row of ones": estimate(by_product(1)),
}
for name, cycles in found.items():
  print(f"{name}: {cycles} cycles")
reduced, product, single = found.values()
assert reduced > 5 * product, "a sum is cheap now"
assert single > 5 * product, "a single row is a product now"
PYTHON_END
