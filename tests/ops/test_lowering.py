"""A program is that of the platform it is lowered for, whatever the process itself runs on."""

import pathlib
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import sparsyfed_jax
from sparsyfed_jax import ops
from tests import cases

ACCELERATORS = ["tpu", "cuda"]
LAYOUT = ("NHWC", "HWIO", "NHWC")
RNG = np.random.default_rng(0)


def draw(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def lower(fn, *arguments, platform):
  return jax.export.export(jax.jit(fn), platforms=[platform])(*arguments).mlir_module()


def count_operations(module):
  """How often each operation stands in a program, but for how it is wrapped."""
  found = Counter(re.findall(r"\b(?:stablehlo|chlo)\.(\w+)", module))
  wrapping = ("case", "return", "constant", "optimization_barrier")
  return {name: count for name, count in found.items() if name not in wrapping}


def convolve(x, w):
  return ops.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)


def value_and_gradients(x, w, cotangent):
  y, vjp = jax.vjp(convolve, x, w)
  return y, *vjp(cotangent)


# In (batch, side, side, features): one goes by Winograd's algorithm on a CPU, one by patches.
CONVOLUTIONS = [
  (draw(2, 6, 6, 16), draw(3, 3, 16, 16), draw(2, 6, 6, 16)),
  (draw(2, 5, 4, 3), draw(2, 2, 3, 4), draw(2, 5, 4, 4)),
]


@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=["winograd", "patches"])
class TestConvolution:
  @pytest.mark.parametrize("platform", ACCELERATORS)
  def test_is_native_on_accelerators(self, arguments, platform):
    module = lower(value_and_gradients, *arguments, platform=platform)
    found = count_operations(module)
    assert found["convolution"] == 3 and not {"dot_general", "concatenate"} & set(found)
    x, w = ("x".join(map(str, array.shape)) for array in arguments[:2])
    assert f"(tensor<{x}xf32>, tensor<{w}xf32>)" in module

  def test_is_a_product_on_cpus(self, arguments):
    found = count_operations(lower(value_and_gradients, *arguments, platform="cpu"))
    assert found["dot_general"] >= 3 and "convolution" not in found

  def test_untuned_is_native_everywhere(self, arguments):
    with ops.untuned():
      found = count_operations(lower(value_and_gradients, *arguments, platform="cpu"))
    assert found["convolution"] == 3 and "dot_general" not in found


@pytest.mark.parametrize("platform", ACCELERATORS)
@pytest.mark.parametrize("search", [ops.kth_magnitude, ops.largest_mask])
def test_accelerators_search_without_a_loop(search, platform):
  found = count_operations(lower(search, draw(3, 4, 5, 128), np.int32(7), platform=platform))
  assert "while" not in found
  assert platform == "cuda" or "reshape" not in found  # a TPU's keys stay in their shape
  on_cpu = count_operations(lower(search, draw(3, 4, 5, 128), np.int32(7), platform="cpu"))
  assert on_cpu["while"] >= 1


def test_a_gpu_counts_rows():
  # Where XLA reduces columns, 15 counts at a time do not fit a block's shared memory.
  module = lower(ops.kth_magnitude, draw(5, 30, 40, 30), np.int32(7), platform="cuda")
  reductions = re.findall(r"dimensions = \[([\d, ]+)\] : \(tensor<([\dx]+)xi32>", module)
  assert reductions == [("1", "16x11250")] * 2  # of the first digit, and of the others


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_accelerators_count_arrays_in_their_shape(platform):
  def count(a, b):
    return ops.count_each(lambda leaf: [leaf > 0, leaf < 0], [a, b])

  found = count_operations(lower(count, draw(5, 6, 7), draw(3, 2), platform=platform))
  assert found["reduce"] == 2 and not {"pad", "while"} & set(found)
  assert "pad" in count_operations(lower(count, draw(5, 6, 7), draw(3, 2), platform="cpu"))


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_accelerators_pool_without_reductions(platform):
  pool = gradients(lambda x: ops.max_pool(x, 2))
  found = count_operations(lower(pool, draw(2, 6, 4, 3), platform=platform))
  assert found["slice"] >= 4 and "reduce" not in found
  assert "reduce" in count_operations(lower(pool, draw(2, 6, 4, 3), platform="cpu"))


def round_of(method):
  """One round of a small CNN, one client at a time in one pass each, and its arguments."""
  run = cases.simulation(method, "cnn", clients_per_chunk=1, matmul_precision="default").run
  federation = cases.problem("cnn").federation
  return run, (cases.whole(method, "cnn"), federation, jax.random.key(0), jnp.int32(1))


@pytest.mark.parametrize("method", ["fedavg", "sparsyfed"])
class TestRound:
  @pytest.mark.parametrize("platform", ACCELERATORS)
  def test_holds_no_tuning_for_another_platform(self, method, platform):
    run, arguments = round_of(method)
    module = lower(run, *arguments, platform=platform)
    with ops.untuned():
      expected = lower(run, *arguments, platform=platform)
    found, expected = count_operations(module), count_operations(expected)
    different = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
    # The gradient of the input of the first layer is dead, but stands in the choice still.
    known = {"convolution", "reverse", "convert"}
    if platform == "cuda" and method == "sparsyfed":
      # It searches in long rows and makes slopes anew, and has nothing that CPUs are tuned with.
      of_cpus = "concatenate dot_general dynamic_slice gather sort sqrt while"
      assert not different & set(of_cpus.split()) and "sqrt" not in found
      assert found["reduce"] <= expected["reduce"]
    else:
      assert different <= known
      assert found["reduce"] == expected["reduce"]
    assert found["convolution"] >= expected["convolution"] > 3
    batch = cases.BATCH_SIZE
    assert f"(tensor<{batch}x6x6x1xf32>, tensor<3x3x1x4xf32>)" in module

  def test_is_tuned_for_cpus(self, method):
    run, arguments = round_of(method)
    found = count_operations(lower(run, *arguments, platform="cpu"))
    assert "convolution" not in found and found["dot_general"] > 9


def test_nothing_asks_what_the_process_runs_on():
  # But for the one that asks a child, to choose workloads before any is measured.
  root = pathlib.Path(sparsyfed_jax.__file__).parents[1]
  paths = [
    path for room in ("sparsyfed_jax", "experiments") for path in root.glob(f"{room}/**/*.py")
  ]
  assert len(paths) > 150
  asking = [path.name for path in paths if "jax.default_backend" in path.read_text()]
  assert asking == ["apart.py"]


def gradients(fn):
  def run(*arguments):
    y, vjp = jax.vjp(fn, *arguments)
    return y, *vjp(jnp.cos(y))

  return run


X, W = draw(6, 5, 4, 16), draw(3, 3, 16, 16)
ROWS, KERNEL = draw(10, 64), draw(64, 32)
SPARSE = np.where(RNG.random(KERNEL.shape) < 0.3, KERNEL, 0)
LARGE = draw(110_000)
VALID = np.array([True] * 4 + [False] * 2)
DENSE = (((1,), (0,)), ((), ()))


def layers(made):
  def loss(x, w, rows, kernel):
    y = made.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)
    return jnp.mean(y**2) + jnp.mean(made.dot_general(rows, kernel, DENSE) ** 2)

  return jax.value_and_grad(loss, range(4))


def first_found(x, w):
  memory = {"layer": jnp.float32(-1)}
  threshold = ops.first_found(
    lambda x, w, rows: ops.activation_threshold(x, w, jnp.ones(10, bool), rows=rows),
    memory,
    "layer",
  )
  return threshold(x, w), memory


def rewritten(x, w):
  """A native convolution whose layer is found and tuned."""

  def native(w, x):
    return ops.NATIVE.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)

  run = ops.rewrite_layers(native, ops.layer_rule(lambda path: ops.PLAIN))
  return jax.value_and_grad(lambda w: jnp.mean(run(w, x) ** 2))(w)


LAYERS = (X, W, ROWS[:6], SPARSE)
PUBLIC = {
  "NATIVE": (layers(ops.NATIVE), *LAYERS),
  "PLAIN": (layers(ops.PLAIN), *LAYERS),
  "activation_threshold": (ops.activation_threshold, X, SPARSE, VALID),
  "cast_layers": (layers(ops.cast_layers(ops.PLAIN, jnp.bfloat16)), *LAYERS),
  "ceil_of_share": (ops.ceil_of_share, np.int32(110_000), np.float32(0.05)),
  "conv_general_dilated": (gradients(convolve), X, W),
  "conv_patches": (gradients(ops.conv_patches), X, W),
  "conv_shifted": (gradients(ops.conv_shifted), X, W),
  "conv_winograd": (gradients(ops.conv_winograd), X, W),
  "count_each": (lambda *leaves: ops.count_each(lambda leaf: [leaf > 0], leaves), SPARSE, LARGE),
  "count_nonzero": (ops.count_nonzero, SPARSE),
  "count_one": (ops.count_one, SPARSE > 0),
  "count_true": (ops.count_true, SPARSE > 0, SPARSE < 0),
  "erk_densities": (lambda d: ops.erk_densities([(3, 3, 2, 4), (8, 3)], d), np.float32(0.3)),
  "first_found": (first_found, ROWS, SPARSE),
  "floor_of_share": (ops.floor_of_share, np.int32(110_000), np.float32(0.05)),
  "is_at_least": (ops.is_at_least, SPARSE, np.float32(0.5)),
  "kth_magnitude": (ops.kth_magnitude, LARGE, np.int32(777)),
  "largest_mask": (ops.largest_mask, SPARSE, np.int32(99)),
  "layerwise_mask": (ops.layerwise_mask, {"a": SPARSE, "b": LARGE}, np.float32(0.1)),
  "max_pool": (gradients(lambda x: ops.max_pool(x, 2)), X),
  "max_pool_of_relu": (gradients(lambda x: ops.max_pool_of_relu(x, 2)), X),
  "max_pool_overlapping": (gradients(lambda x: ops.max_pool_overlapping(x, 3, 2, 1)), X),
  "num_kept": (ops.num_kept, np.int32(110_000), np.float32(0.05)),
  "powerprop": (gradients(ops.powerprop), SPARSE, np.float32(1.25)),
  "powerprop_inverse": (ops.powerprop_inverse, SPARSE, np.float32(1.25)),
  "prune_residual": (gradients(ops.prune_residual(jnp.matmul)), ROWS, KERNEL, np.float32(0.5)),
  "pruned_layers": (layers(ops.pruned_layers(VALID)), *LAYERS),
  "relu": (gradients(ops.relu), SPARSE),
  "residual_layers": (layers(ops.residual_layers(lambda x, w, rows: jnp.float32(0.5))), *LAYERS),
  "rewrite_layers": (rewritten, *LAYERS[:2]),
  "share_threshold": (ops.share_threshold, X, VALID, np.float32(0.3)),
  "spectral_exponent": (ops.spectral_exponent, KERNEL),
  "spectral_exponent_of_weights": (ops.spectral_exponent_of_weights, KERNEL),
  "topk_mask": (ops.topk_mask, [SPARSE, LARGE], np.float32(0.05)),
}
NO_OPERATIONS = {
  *("LOWERINGS", "LayerOps", "Layers", "Threshold", "untuned"),
  *("FIRST_AXIS", "Rows", "RowsOp", "Unknown", "Where"),
  *("LayerError", "Product", "Rule", "find_layers", "layer_rule"),
}


def test_every_public_operation_is_tested_untuned():
  assert set(PUBLIC) | NO_OPERATIONS == set(ops.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_untuned_operations_compute_the_same(name):
  fn, *arguments = PUBLIC[name]
  jitted = jax.jit(fn)
  tuned = jitted(*arguments)
  with ops.untuned():
    plain = jitted(*arguments)
  rounding = 0.01 if name == "cast_layers" else 1e-5
  for a, b in zip(*map(jax.tree.leaves, (tuned, plain)), strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    atol = rounding * np.max(np.abs(np.float32(b)))
    np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=rounding, atol=atol)


def test_the_choice_holds_inside_every_transformation():
  x, w, cotangent = (np.stack([array] * 2) for array in CONVOLUTIONS[0])
  w = w * np.float32([1, 2])[:, None, None, None, None]
  mesh = Mesh(np.array(jax.devices()[:1]), ("clients",))
  spec = PartitionSpec("clients")

  def step(carry, each):
    return carry, jax.checkpoint(value_and_gradients)(*each)

  def one_by_one(*arrays):
    return jax.lax.scan(step, 0, arrays)[1]

  found = [
    jax.jit(fn)(x, w, cotangent)
    for fn in (
      one_by_one,
      jax.vmap(value_and_gradients),
      jax.shard_map(jax.vmap(value_and_gradients), mesh=mesh, in_specs=spec, out_specs=spec),
    )
  ]
  with ops.untuned():
    expected = jax.jit(one_by_one)(x, w, cotangent)
  for each in found:
    for a, b in zip(each, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
