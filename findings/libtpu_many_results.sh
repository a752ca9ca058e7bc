#!/usr/bin/env bash
# libtpu 0.0.52 (jax 0.10.2), compiling for a v5e: a reduction of more than 101 results at once is
# estimated at 18 times the cycles.
#
# Counting how many entries reach each of n pivots is one pass over an array, if all counts are
# results of one `lax.reduce`; histograms, quantiles and searches by digits are written so.
# Expected: a cost that grows a little with every count, as the array is read once.
# Seen: it does up to 101 counts. From 102 on the compiler writes the compared arrays to memory, in a
# fusion of their own, and reads them again: of 2304 x 128 int32 about 17,700 and 325,000 cycles, and
# temporaries that were none before. So seven bits of a key at a time (127 pivots) are slower than six
# (63), though they need fewer passes; two reductions of 64 and 63 counts are fine. The same limit
# holds for sums of floats.
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


def estimate(dtype, make, n):
  def fn(x):
    def add(a, b):
      return tuple(p + q for p, q in zip(a, b))

    zero = jnp.zeros((), make(x, 0).dtype)
    return lax.reduce(tuple(make(x, i) for i in range(n)), (zero,) * n, add, (0, 1))

  x = jax.ShapeDtypeStruct((2304, 128), dtype, sharding=SingleDeviceSharding(chip))
  program = jax.jit(fn).lower(x).compile()
  cycles = re.findall(r'"estimated_cycles":"(\d+)"', program.as_text())
  return sum(map(int, cycles)), program.memory_analysis().temp_size_in_bytes


def counts(x, i):
  return (x >= i).astype(jnp.int32)


def sums(x, i):
  return x * (1.5 + i)


for name, dtype, make in ("counts", jnp.int32, counts), ("sums", jnp.float32, sums):
  found = {n: estimate(dtype, make, n) for n in (15, 63, 101, 102, 127)}
  for n, (cycles, temporaries) in found.items():
    print(f"{n} {name}: {cycles} cycles, {temporaries} bytes of temporaries")
  assert found[101][0] < 2 * found[15][0]
  assert found[102][0] > 10 * found[101][0], "more results are cheap now"
  assert found[127][0] > found[102][0]
PYTHON_END
