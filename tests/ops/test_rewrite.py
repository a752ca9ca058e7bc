"""The layers of functions: found, left as they are to the bit, and replaced."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from sparsyfed_jax import ops
from tests import cases
from tests.ops.functions import BATCH, FUNCTIONS, NUMBERS, TOKENS, X, normal, of_linen


@pytest.fixture(autouse=True)
def as_others_have_it():
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


def identity(product, op, x, w):
  return op(x, w)


def floats(tree):
  return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def values(fn, params, args):
  return jax.jit(fn)(params, *args)


def value_and_gradients(fn, params, args):
  """Results and gradients of a sum of them."""

  def loss(params):
    out = fn(params, *args)
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in floats(out)), out

  return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_identity_rule_changes_no_bit(name):
  fn, params, args, axes = FUNCTIONS[name]()
  products = ops.find_layers(fn, params, *args, batch_axes=axes)
  assert len(products) == NUMBERS[name] and not any(product.problem for product in products)
  seen = []

  def rule(product, op, x, w):
    seen.append(product._replace(repeats=1, inside=""))
    return op(x, w)

  gradients = values if name == "while and cond" else value_and_gradients
  found = gradients(ops.rewrite_layers(fn, rule, axes), params, args)
  assert set(map(str, seen)) == {str(p._replace(repeats=1, inside="")) for p in products}
  cases.assert_same_bits(floats(found), floats(gradients(fn, params, args)))


@pytest.mark.parametrize(
  "name", ["attention", "layers scanned and rematerialised", "GRU", "grouped"]
)
def test_rules_compute_in_the_place_of_products(name):
  fn, params, args, axes = FUNCTIONS[name]()
  twice = ops.rewrite_layers(fn, lambda product, op, x, w: op(x, 2 * w), axes)
  paths = {product.path for product in ops.find_layers(fn, params, *args, batch_axes=axes)}

  def double(path, leaf):
    is_layer = jax.tree_util.keystr(path, simple=True, separator="/") in paths
    return 2 * leaf if is_layer else leaf

  doubled = jax.tree_util.tree_map_with_path(double, params)
  cases.assert_close(floats(twice(params, *args)), floats(fn(doubled, *args)), 1e-6)


def test_products_are_described():
  fn, params, args, axes = FUNCTIONS["layers scanned and rematerialised"]()
  inner, outer = ops.find_layers(fn, params, *args, batch_axes=axes)
  assert inner.path.endswith("Dense_0/kernel") and inner.w_shape == (6, 6)
  assert (inner.repeats, inner.inside, inner.is_trained) == (3, "checkpoint", True)
  assert (outer.path, outer.repeats, outer.inside) == ("Dense_0/kernel", 1, "")
  assert inner.rows == ops.Rows(0, 1, BATCH)
  (first,) = ops.find_layers(*FUNCTIONS["dense"]()[:2], X)
  assert not first.is_trained and first.arguments == {"dimension_numbers": (((1,), (0,)), ((), ()))}


def test_layers_can_be_chosen():
  fn, params, args, _ = FUNCTIONS["plain"]()
  seen = []

  def rule(product, op, x, w):
    seen.append(product.path)
    return op(x, w)

  ops.rewrite_layers(fn, rule, layers=["1"])(params, *args)
  assert seen == ["1"]


def pruned(params, x):
  return x @ jnp.where(jnp.abs(params["w"]) > 0.1, params["w"], 0)


def weight_norm(params, x):
  return x @ (params["w"] / jnp.linalg.norm(params["w"]) * params["scale"])


@jax.custom_vjp
def scaled(x, w):
  return x @ w


scaled.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, y: (y @ kept[1].T, 3 * kept[0].T @ y))


@jax.custom_jvp
def gated(x, w):
  return x @ w


gated.defjvp(lambda primals, tangents: (gated(*primals), tangents[0] @ primals[1]))


@jax.custom_batching.custom_vmap
def mapped(x, w):
  return x @ w


mapped.def_vmap(lambda size, is_batched, x, w: (x @ w, True))
W = {"w": normal(6, 6, seed=3)}
COMPUTED = "its weights are computed from those parameters"
# A function of params and X, and the message of the error.
REFUSED = {
  "a mask inside": (pruned, W, f"^w: {COMPUTED}"),
  "weight norm": (weight_norm, W | {"scale": jnp.ones(6)}, f"^scale, w: {COMPUTED}"),
  "computed of two": (
    lambda p, x: x @ (p["a"] @ p["b"]),
    {"a": normal(6, 2), "b": normal(2, 6)},
    "^a, b: both of its operands are parameters",
  ),
  "custom_vjp": (lambda p, x: scaled(x, p["w"]), W, "^w: it lies inside a custom_vjp_call"),
  "custom_jvp": (lambda p, x: gated(x, p["w"]), W, "^w: it lies inside a custom_jvp_call"),
  "custom_vmap": (lambda p, x: mapped(x, p["w"]), W, "^w: it lies inside a custom_vmap_call"),
  "a gradient": (
    lambda p, x: x - jax.grad(lambda x: jnp.sum(jnp.tanh(x @ p["w"])))(x),
    W,
    "^w: it lies inside a derivative; rewrite what is differentiated",
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_named(name):
  fn, params, message = REFUSED[name]
  with pytest.raises(ops.LayerError, match=message):
    ops.rewrite_layers(fn, identity)(params, X)
  # Without the layer, all is as it was.
  chosen = ops.rewrite_layers(lambda p, x: fn(p[0], x) @ p[1], identity, layers=["1"])
  if name != "a gradient":
    np.testing.assert_array_equal(chosen([params, W["w"]], X), fn(params, X) @ W["w"])


def test_a_parameter_that_is_closed_over_is_named():
  with pytest.raises(ops.LayerError, match="^w: no product uses it"):
    ops.rewrite_layers(lambda params, x: x @ W["w"], identity, layers=["w"])(W, X)


@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell])
def test_kernels_that_are_concatenated_are_named(cell):
  fn, params, args, _ = of_linen(nn.RNN(cell(5)))
  with pytest.raises(ops.LayerError, match=f"cell/hf/kernel, .*: {COMPUTED}"):
    ops.rewrite_layers(fn, identity)(params, *args)


def test_the_weights_of_flax_s_weight_norm_are_named():
  fn, params, args, _ = of_linen(nn.WeightNorm(nn.Dense(3)), X)
  with pytest.raises(ops.LayerError, match=f"kernel.*: {COMPUTED}"):
    ops.rewrite_layers(fn, identity)(params, *args)


def test_products_in_custom_derivatives_by_choice():
  fn = REFUSED["custom_vjp"][0]
  plain = jax.grad(lambda p: fn(p, X).sum())(W)["w"]

  def gradient(custom):
    run = ops.rewrite_layers(fn, lambda product, op, x, w: 2 * op(x, w), custom=custom)
    return jax.grad(lambda p: run(p, X).sum())(W)["w"]

  np.testing.assert_array_equal(gradient("keep"), plain)
  np.testing.assert_allclose(gradient("replace"), plain / 3 * 2, rtol=1e-6)


def test_a_loss_may_be_rewritten_inside_its_gradient():
  run = ops.rewrite_layers(lambda p, x: x @ p["w"], lambda product, op, x, w: 2 * op(x, w))
  found = jax.grad(lambda p: run(p, X).sum())(W)["w"]
  np.testing.assert_allclose(found, 2 * jnp.sum(X, 0)[:, None] * jnp.ones((1, 6)), rtol=1e-6)


def test_memory_is_refused_inside_loops():
  def fn(params, x):
    return lax.scan(lambda h, x: (jnp.tanh(h + x @ params["w"]), None), x[0] * 0, x)[0]

  carry = {"w": jnp.float32(-1)}
  threshold = partial(ops.activation_threshold, valid=jnp.ones(BATCH, bool))
  layers = ops.residual_layers(ops.first_found(threshold, carry, "w"))
  run = ops.rewrite_layers(fn, ops.layer_rule(lambda path: layers), (1,))
  with pytest.raises(ops.LayerError, match="^w: its dot_general is inside a scan"):
    jax.grad(lambda p: run(p, jnp.swapaxes(TOKENS, 0, 1)).sum())(W)
  assert float(carry["w"]) == -1


def test_memory_is_kept_outside_of_loops_even_in_a_jitted_function():
  carry = {"w": jnp.float32(-1)}
  threshold = partial(ops.activation_threshold, valid=jnp.ones(BATCH, bool))
  layers = ops.residual_layers(ops.first_found(threshold, carry, "w"))
  product = jax.jit(lambda x, w: x @ w)
  run = ops.rewrite_layers(lambda p, x: product(x, p["w"]), ops.layer_rule(lambda path: layers))
  sparse = {"w": W["w"].at[:3].set(0)}
  jax.grad(lambda p: run(p, X).sum())(sparse)
  assert float(carry["w"]) == ops.activation_threshold(X, sparse["w"], jnp.ones(BATCH, bool))


@pytest.mark.parametrize("axes", [2, -1])
def test_axes_that_are_not_there_are_refused(axes):
  with pytest.raises(ValueError, match=r"^batch_axes: .* of shape \(4, 6\): must be one of its"):
    ops.find_layers(lambda p, x: x @ p["w"], W, X, batch_axes=axes)


def test_batches_of_two_sizes_are_refused():
  with pytest.raises(ValueError, match="must hold as many examples as other arguments"):
    ops.find_layers(lambda p, x, y: x @ p["w"], W, X, X[:2])


def test_what_a_rule_calls_is_not_traced_again():
  num_traces = 0

  @jax.jit
  def double(y):
    nonlocal num_traces
    num_traces += 1
    return 2 * y

  run = ops.rewrite_layers(lambda w, x: x @ w, lambda product, op, x, w: double(op(x, w)))
  w, x = jnp.ones((3, 2)), jnp.ones((4, 3))
  jax.make_jaxpr(lambda w, x: (double(x @ w), run(w, x)))(w, x)
  assert num_traces == 1
