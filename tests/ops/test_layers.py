"""Pruned operations inside unmodified flax modules, against pruning worked out in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from sparsyfed_jax import ops
from tests import reference

NATIVE = ops.LayerOps(lax.dot_general, lax.conv_general_dilated)


def dense(**kwargs):
  return lambda layer_ops: nn.Dense(4, dot_general=layer_ops.dot_general, **kwargs)


def conv(*args, **kwargs):
  return lambda layer_ops: nn.Conv(
    4, *args, conv_general_dilated=layer_ops.conv_general_dilated, **kwargs
  )


BATCH = 6
IMAGE = (7, 6, 3)
DENSE = (((1,), (0,)), ((), ()))
PAD_1 = ((1, 1), (1, 1))
# A layer as a function of its operations, and the shape of an example.
LAYERS = {
  "dense": (dense(), (10,)),
  "dense on tokens": (dense(use_bias=False), (3, 10)),
  "dense bfloat16": (dense(dtype=jnp.bfloat16), (10,)),
  "3x3 valid": (conv((3, 3), padding="VALID"), IMAGE),
  "3x3 same": (conv((3, 3), precision=lax.Precision.HIGHEST), IMAGE),
  "3x3 stride 2": (conv((3, 3), 2, padding=PAD_1, use_bias=False), IMAGE),
  "1x1 stride 2": (conv((1, 1), 2, padding="VALID"), IMAGE),
  "3x3 dilated": (conv((3, 3), kernel_dilation=2), IMAGE),
  "one axis": (conv((3,), padding="VALID"), (8, 3)),
  "two groups": (conv((3, 3), feature_group_count=2), (7, 6, 2)),
}
VALID = np.array([True, False, True, True, True, False])


def example(name, share=0.3, seed=0):
  """A layer, its parameters with a share of the kernel, inputs whose magnitudes tie."""
  make, shape = LAYERS[name]
  rng = np.random.default_rng(seed)
  x = np.float32(rng.integers(-16, 17, (BATCH, *shape))) / 8
  shapes = jax.eval_shape(make(NATIVE).init, jax.random.key(0), x)["params"]
  params = jax.tree.map(lambda s: np.float32(rng.standard_normal(s.shape)), shapes)
  params["kernel"] *= rng.random(params["kernel"].shape) < share
  return make, params, x


def cotangent(y, valid):
  """0 for padded examples: the gradient of a loss that leaves them out."""
  rows = valid.reshape(-1, *[1] * (y.ndim - 1))
  return jnp.where(rows, reference.cotangent(y), 0)


@partial(jax.jit, static_argnums=(0, 5))
def layer_gradients(make, params, x, valid, floor, pruned):
  """Value, gradients of the parameters, gradient of the input."""
  plain = ops.PLAIN
  module = make(ops.pruned_layers(valid, floor, plain) if pruned else plain)
  y, vjp = jax.vjp(lambda params, x: module.apply({"params": params}, x), params, x)
  return y, *vjp(cotangent(y, valid))


def assert_same(found, expected, rtol=0):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), found, expected)


def assert_layer(make, params, x, valid, floor, kept):
  """Value and input gradient are plain, the kernel gradient is that of the kept input."""
  y, by_params, by_x = layer_gradients(make, params, x, valid, floor, True)
  plain = layer_gradients(make, params, x, valid, floor, False)
  _, expected, _ = layer_gradients(make, params, kept, valid, floor, False)
  assert_same((y, by_x), (plain[0], plain[2]))
  assert_same(by_params, expected, rtol=1e-6)
  return by_params["kernel"], plain[1]["kernel"]


class TestPrunedLayers:
  @pytest.mark.parametrize("name", LAYERS)
  def test_against_pruning_in_numpy(self, name):
    make, params, x = example(name)
    kept = reference.pruned_activations(x, params["kernel"], VALID)
    pruned, plain = assert_layer(make, params, x, VALID, 0.0, kept)
    # The plain gradient is another one, so that the comparison says something.
    assert np.abs(np.float32(pruned - plain)).max() > 0.1

  @pytest.mark.parametrize("floor", [0.0, 0.05, 0.5])
  @pytest.mark.parametrize("name", ["dense", "3x3 stride 2"])
  def test_density_or_floor_whichever_is_larger(self, name, floor):
    make, params, x = example(name, share=0.15, seed=3)
    kept = reference.pruned_activations(x, params["kernel"], VALID, floor)
    assert_layer(make, params, x, VALID, floor, kept)
    assert (np.mean(kept[VALID] != 0) >= 0.5) == (floor == 0.5)

  @pytest.mark.parametrize("name", ["dense", "3x3 stride 2"])
  def test_dense_weights_prune_nothing(self, name):
    make, params, x = example(name, share=2)
    found, plain = (layer_gradients(make, params, x, VALID, 0.0, flag) for flag in (True, False))
    assert_same(found, plain)

  @pytest.mark.parametrize("name", ["dense", "3x3 stride 2"])
  def test_zero_weights_prune_everything_down_to_the_floor(self, name):
    make, params, x = example(name, share=0)
    by_kernel, _ = assert_layer(make, params, x, VALID, 0.0, np.zeros_like(x))
    assert not by_kernel.any()
    kept = reference.pruned_activations(x, params["kernel"], VALID, 0.01)
    by_kernel, _ = assert_layer(make, params, x, VALID, 0.01, kept)
    assert by_kernel.any()

  @pytest.mark.parametrize("name", ["dense", "dense on tokens", "3x3 stride 2"])
  def test_padded_examples_change_nothing(self, name):
    make, params, x = example(name)
    rows = VALID.reshape(-1, *[1] * (x.ndim - 1))
    (y, first, _), *others = (
      layer_gradients(make, params, np.where(rows, x, filler), VALID, 0.0, True)
      for filler in np.float32([0, 1, -1e30])
    )
    for _, other, _ in others:
      assert_same(other, first)

    # Nor does their absence: the valid rows as a batch of their own.
    module = make(ops.pruned_layers(np.ones(VALID.sum(), bool)))
    _, vjp = jax.vjp(jax.jit(lambda params: module.apply({"params": params}, x[VALID])), params)
    assert_same(first, *vjp(cotangent(y, VALID)[VALID]), rtol=1e-5)

  def test_a_batch_without_valid_examples(self):
    make, params, x = example("dense")
    _, by_params, _ = layer_gradients(make, params, x, np.zeros(BATCH, bool), 0.5, True)
    assert all(not leaf.any() for leaf in jax.tree.leaves(by_params))

  @pytest.mark.parametrize("name", ["dense", "3x3 stride 2"])
  def test_clients_under_vmap_equal_a_loop(self, name):
    make = LAYERS[name][0]
    clients = [example(name, share, seed)[1:] for seed, share in enumerate((0.1, 0.4, 2))]
    valids = np.stack([VALID, ~VALID, np.ones(BATCH, bool)])
    floors = [0.3, 0.0, 0.0]
    params, x = jax.tree.map(lambda *leaves: np.stack(leaves), *clients)
    run = partial(layer_gradients, make)
    batched = jax.vmap(run, (0, 0, 0, 0, None))(params, x, valids, jnp.array(floors), True)
    for i in range(3):
      alone = run(*clients[i], valids[i], floors[i], True)
      assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], batched), alone, rtol=1e-5)

  def test_prunes_the_operations_it_is_given(self):
    def doubled(*args, **kwargs):
      return 2 * lax.dot_general(*args, **kwargs)

    layers = ops.pruned_layers(VALID, plain=NATIVE._replace(dot_general=doubled))
    x, w = np.ones((BATCH, 3), np.float32), np.eye(3, dtype=np.float32)
    y = jax.jit(partial(layers.dot_general, dimension_numbers=DENSE))(x, w)
    np.testing.assert_array_equal(y, 2 * x)

  def test_takes_the_arguments_of_lax_by_name(self):
    layers = ops.pruned_layers(np.ones(2, bool))
    x, w = np.ones((2, 3), np.float32), np.eye(3, dtype=np.float32)
    y = jax.jit(partial(layers.dot_general, dimension_numbers=DENSE))(lhs=x, rhs=w)
    np.testing.assert_array_equal(y, x)


def test_a_threshold_that_is_found_first_stays():
  thresholds = []

  def threshold(x, w, rows):
    thresholds.append(1)
    return jnp.max(x)

  memory = {"a": jnp.float32(-1), "b": jnp.float32(-1)}
  found = ops.first_found(threshold, memory, "a")
  w = jnp.float32([1, 0])
  assert float(found(jnp.float32([1, 2]), w)) == 2
  assert float(found(jnp.float32([5, 7]), w)) == 2
  assert float(memory["a"]) == 2 and float(memory["b"]) == -1


def test_no_threshold_is_remembered_of_a_layer_that_is_dense():
  memory = {"Conv_0": jnp.float32(-1)}

  def second_gradient(w):
    def threshold(x, w, rows):
      return ops.activation_threshold(x, w, jnp.ones(4, bool), rows=rows)

    layer = ops.residual_layers(ops.first_found(threshold, memory, "Conv_0"))
    conv = partial(
      layer.conv_general_dilated,
      window_strides=(1, 1),
      padding="VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    for batch in ([1, 2, 3, 4], [0.5, 1, 1, 1]):
      x = jnp.float32(batch).reshape(4, 1, 1, 1)
      y, vjp = jax.vjp(lambda w, x=x: conv(jnp.broadcast_to(x, (4, 1, 1, w.shape[2])), w), w)
      (dw,) = vjp(jnp.ones_like(y))
    return dw

  # Dense: 0.5 + 1 + 1 + 1, although 0.5 is below all of the first batch.
  assert float(second_gradient(jnp.full((1, 1, 1, 1), 2.0))[0, 0, 0, 0]) == 3.5
  assert float(memory["Conv_0"]) == -1
  # Half of the weights are 0: the threshold is 3, of the 4 largest of 1, 1, 2, 2, 3, 3, 4, 4.
  assert not np.any(second_gradient(jnp.float32([2, 0]).reshape(1, 1, 2, 1)))
  assert float(memory["Conv_0"]) == 3


def test_residual_layers_prune_by_the_threshold_they_are_given():
  layers = ops.residual_layers(lambda x, w, rows: jnp.float32(2))
  x, w = jnp.float32([[1, 2], [-3, 0.5]]), jnp.ones((2, 3))
  y, vjp = jax.vjp(lambda x, w: layers.dot_general(x, w, DENSE), x, w)
  np.testing.assert_array_equal(y, x @ w)
  dx, dw = vjp(jnp.ones((2, 3)))
  np.testing.assert_array_equal(dx, jnp.full((2, 2), 3))
  np.testing.assert_array_equal(dw, np.float32([[0, 2], [-3, 0]]).T @ np.ones((2, 3)))


def test_cast_layers_prune_to_the_density_of_the_weights_before_the_cast():
  layers = ops.cast_layers(ops.pruned_layers(jnp.array([True])), jnp.float16)
  x, w = jnp.float32([[4, 3, 2, 1]]), jnp.float32([[1], [1e-9], [0], [0]])
  assert not np.any(w.astype(jnp.float16)[1:])
  dw = jax.grad(lambda w: layers.dot_general(x, w, DENSE).sum())(w)
  np.testing.assert_array_equal(dw, [[4], [3], [0], [0]])


@pytest.mark.parametrize("name", ["dense", "3x3 same", "3x3 stride 2"])
def test_cast_layers_compute_in_the_other_dtype_and_return_their_own(name):
  make, shape = LAYERS[name]
  seen = []

  def spy(op):
    def spied(lhs, rhs, *args, **kwargs):
      seen.append((lhs.dtype, rhs.dtype))
      return op(lhs, rhs, *args, **kwargs)

    return spied

  inner = ops.LayerOps(*(spy(op) for op in NATIVE))
  params, x = example(name)[1:3]

  def loss(params, layer_ops):
    out = make(layer_ops).apply({"params": params}, x)
    assert out.dtype == jnp.float32
    return jnp.sum(jnp.square(out))

  grads = jax.grad(loss)(params, ops.cast_layers(inner, jnp.bfloat16))
  assert set(seen) == {(jnp.dtype(jnp.bfloat16),) * 2}
  for leaf, full in zip(
    *map(jax.tree.leaves, (grads, jax.grad(loss)(params, NATIVE))), strict=True
  ):
    assert leaf.dtype == jnp.float32 and not np.array_equal(leaf, full)
    np.testing.assert_allclose(leaf, full, rtol=0.05, atol=0.02 * np.abs(full).max())
