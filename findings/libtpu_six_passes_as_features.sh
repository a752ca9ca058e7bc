#!/usr/bin/env bash
# libtpu 0.0.52 (jax 0.10.2), compiling for a v5e: a float32 convolution of images costs twice the
# cycles of one in bfloat16 that computes all of its six passes.
#
# At `jax_default_matmul_precision=highest` a float32 product is six of bfloat16: three parts of each
# operand, and the pairs of them that matter. Images have three features, where a register has 128
# lanes. Those parts can stand side by side as 18 features of one bfloat16 convolution with float32
# sums, which adds up the same six products.
# Expected: the compiler, which knows both, does so or better by itself.
# Seen: it estimates 102,521 cycles for the convolution, and 49,522 for the one of 18 features with
# all that splits the operands and puts their parts together. On a CPU both agree with float64.
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
import numpy as np
from jax import lax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

jax.config.update("jax_default_matmul_precision", "highest")
(chip,) = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1").devices
PAIRS = (0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)


def convolve(x, w, **how):
  names = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=names, **how)


def parts_of(array):
  def cut(array):  # to the digits of a bfloat16
    bits = lax.bitcast_convert_type(array, jnp.uint32) & jnp.uint32(0xFFFF0000)
    return lax.bitcast_convert_type(bits, jnp.float32)

  large = cut(array)
  middle = cut(array - large)
  return [part.astype(jnp.bfloat16) for part in (large, middle, array - large - middle)]


def side_by_side(x, w):
  of_x, of_w = parts_of(x), parts_of(w)
  features = jnp.concatenate([of_x[i] for i, _ in PAIRS], 3)
  kernel = jnp.concatenate([of_w[j] for _, j in PAIRS], 2)
  return convolve(features, kernel, preferred_element_type=jnp.float32)


def cycles(convolution):
  def layer(x, w):
    x = lax.optimization_barrier(lax.optimization_barrier(x).reshape(10, 32, 32, 3))
    y = jax.nn.relu(convolution(x, w))
    return lax.optimization_barrier(jnp.transpose(y, (1, 2, 0, 3)))

  on_chip = SingleDeviceSharding(chip)
  shapes = (10, 3072), (3, 3, 3, 32)
  arguments = [jax.ShapeDtypeStruct(one, jnp.float32, sharding=on_chip) for one in shapes]
  text = jax.jit(layer).lower(*arguments).compile().as_text()
  return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))


random = np.random.default_rng(0)
x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 8, 8, 3), (3, 3, 3, 4)))
exact = np.zeros((2, 6, 6, 4))
for i in range(3):
  for j in range(3):
    exact += x[:, i : i + 6, j : j + 6].astype(np.float64) @ w[i, j]
for convolution in (convolve, side_by_side):
  assert np.abs(jax.jit(convolution)(x, w) - exact).max() < 1e-6 * np.abs(exact).max()
own, other = cycles(convolve), cycles(side_by_side)
print(f"float32: {own} cycles; six passes side by side: {other}")
assert other < 0.7 * own, "the compiler does as well now"
PYTHON_END
