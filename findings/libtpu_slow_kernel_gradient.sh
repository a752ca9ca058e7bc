#!/usr/bin/env bash
# libtpu 0.0.52 (jax 0.10.2), compiling for a v5e: the gradient of a first convolution's kernel in
# float32 takes some fifteen times as long to compile as the same sums written as a product.
#
# Images of three features meet a 3 x 3 kernel in the first layer of most networks for CIFAR-10. With
# `jax_default_matmul_precision=highest`, which float32 asks for on a TPU, the gradient of that kernel
# is one convolution of the images with the gradient of what the layer gives.
# Expected: seconds, as for other layers, and that the compiler's own convolution is the better one.
# Seen: 93 to 109 s on one core, half of what all programs of a small network take. As nine
# shifted slices side by side and one product it compiles in 6 to 7 s, and the compiler estimates 30,679
# cycles instead of 37,085. In bfloat16 the convolution compiles in a second.
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
import time

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

jax.config.update("jax_default_matmul_precision", "highest")
(chip,) = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1").devices


def convolve(x, w):
  names = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=names)


def as_convolution(x, g, w):
  return jax.vjp(lambda w: convolve(x, w), w)[1](g)[0]


def as_product(x, g, w):
  patches = [x[:, i : i + 30, j : j + 30] for i in range(3) for j in range(3)]
  return jnp.einsum("nhwk,nhwf->kf", jnp.concatenate(patches, -1), g).reshape(w.shape)


def compile_step(gradient):
  def step(x, g, w):
    x, g = lax.optimization_barrier((x, g))
    x = lax.optimization_barrier(x.reshape(10, 32, 32, 3))
    return w - 0.1 * gradient(x, jnp.transpose(g, (2, 0, 1, 3)), w)

  shapes = (10, 3072), (30, 30, 10, 32), (3, 3, 3, 32)
  on_chip = SingleDeviceSharding(chip)
  arguments = [jax.ShapeDtypeStruct(one, jnp.float32, sharding=on_chip) for one in shapes]
  lowered = jax.jit(step).lower(*arguments)
  started = time.perf_counter()
  text = lowered.compile().as_text()
  seconds = time.perf_counter() - started
  return seconds, sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))


compile_step(lambda x, g, w: w)  # what a first compilation takes
product, convolution = compile_step(as_product), compile_step(as_convolution)
for name, (seconds, cycles) in (("product", product), ("convolution", convolution)):
  print(f"{name}: compiled in {seconds:.1f} s, {cycles} cycles")
assert convolution[0] > 4 * product[0], "the convolution compiles quickly now"
PYTHON_END
