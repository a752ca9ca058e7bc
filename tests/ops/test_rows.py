"""Where the batch is: thresholds on every layout, labels against what depends on an example."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from sparsyfed_jax import ops
from sparsyfed_jax.ops.rows import of_examples
from tests.ops.functions import BATCH, FUNCTIONS, X, normal, of_linen

VALID = jnp.array([True, False, True, True])
SPARSE = jnp.where(normal(6, 5, seed=2) > 0.5, normal(6, 5, seed=2), 0)


@pytest.fixture(autouse=True)
def as_others_have_it():
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


# Layouts of (batch, time, features), and where the batch is in them.
LAYOUTS = {
  "batch first": (lambda x: x, ops.FIRST_AXIS),
  "time first": (lambda x: jnp.swapaxes(x, 0, 1), ops.Rows(1)),
  "batch last": (lambda x: jnp.moveaxis(x, 0, -1), ops.Rows(2)),
  "batch and time in one": (lambda x: x.reshape(-1, x.shape[-1]), "after"),
  "time and batch in one": (
    lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, x.shape[-1]),
    ops.Rows(0, 1, BATCH),
  ),
  "all in one": (lambda x: x.reshape(-1), "all"),
}
TIMES = (3, BATCH, 1)


def layout(name, x):
  turn, rows = LAYOUTS[name]
  after = {"after": x.shape[1], "all": x.shape[1] * x.shape[2]}.get(rows)
  return turn(x), rows if after is None else ops.Rows(0, after)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_thresholds_do_not_depend_on_the_layout(name, time):
  x = normal(BATCH, time, 6)
  turned, rows = layout(name, x)
  expected = np.sort(np.abs(np.asarray(x)[np.asarray(VALID)]).reshape(-1))[::-1]
  share = float(jnp.mean(SPARSE != 0))
  found = ops.activation_threshold(turned, SPARSE, VALID, rows=rows)
  assert found == expected[int(np.ceil(np.float32(len(expected) * share))) - 1]
  assert found == ops.activation_threshold(x, SPARSE, VALID)
  found = ops.share_threshold(turned, VALID, 0.25, rows)
  assert found == expected[int(np.ceil(len(expected) * 0.25)) - 1]


def test_what_is_the_same_for_all_examples_counts_once():
  table = normal(3, 6)
  everywhere = jnp.broadcast_to(table, (BATCH, 3, 6))
  for threshold in (
    lambda x, **rows: ops.activation_threshold(x, SPARSE, VALID, **rows),
    lambda x, **rows: ops.share_threshold(x, VALID, 0.3, **rows),
  ):
    assert threshold(table, rows=None) == threshold(everywhere)


def test_an_axis_that_does_not_fit_is_refused():
  for shape, rows in [((5, 2), ops.FIRST_AXIS), ((8, 2), ops.Rows(0)), ((9, 2), ops.Rows(0, 2, 4))]:
    with pytest.raises(AssertionError, match="does not fit 4 examples"):
      of_examples(VALID, shape, rows)
  with pytest.raises(AssertionError, match="does not fit"):
    of_examples(VALID, (6, 2), ops.Rows(0, 1, 3))
  with pytest.raises(ValueError, match="not known after gather"):
    ops.activation_threshold(normal(4, 6), SPARSE, VALID, rows=ops.Unknown("gather"))


def bigger(x, axis):
  """One example more."""
  return jnp.concatenate([x, lax.slice_in_dim(x, 0, 1, axis=axis)], axis)


OF_BATCHES = [name for name in FUNCTIONS if name != "haiku LSTM and attention"]


@pytest.mark.parametrize("name", OF_BATCHES)
def test_labels_agree_with_the_axis_that_grows_with_the_batch(name):
  fn, params, args, axes = FUNCTIONS[name]()
  axis = axes[-1] if isinstance(axes, tuple) else axes
  products = ops.find_layers(fn, params, *args, batch_axes=axes)
  more = ops.find_layers(fn, params, *args[:-1], bigger(args[-1], axis), batch_axes=axes)
  for one, other in zip(products, more, strict=True):
    grown = [
      i for i, pair in enumerate(zip(one.x_shape, other.x_shape, strict=True)) if len(set(pair)) > 1
    ]
    assert grown == ([] if one.rows is None else [one.rows.axis])
    if one.rows is not None:
      length = one.x_shape[one.rows.axis]
      assert other.x_shape[one.rows.axis] * BATCH == length * (BATCH + 1)
      assert other.rows == one.rows._replace(size=BATCH + 1)


# Those that do not mix examples, and have no product inside a loop alone.
SEPARATE = [
  *("dense", "dense of several axes", "einsum", "convolution", "depthwise", "transposed", "local"),
  *("attention", "mixture of experts", "mapped heads", "merged axes", "positions"),
  *("equinox convolutions", "equinox attention", "haiku convolutions", "plain"),
]


@pytest.mark.parametrize("name", SEPARATE)
def test_labels_agree_with_what_depends_on_an_example(name):
  fn, params, args, axes = FUNCTIONS[name]()

  def inputs(*args):
    seen = []

    def rule(product, op, x, w):
      seen.append((product, np.asarray(x)))
      return op(x, w)

    ops.rewrite_layers(fn, rule, axes)(params, *args)
    return seen

  before = inputs(*args)
  for number in range(BATCH):
    after = inputs(*args[:-1], args[-1].at[number].multiply(-1.5))
    mine = jnp.arange(BATCH) == number
    for (product, x), (_, y) in zip(before, after, strict=True):
      is_mine = of_examples(mine, x.shape, product.rows)
      changed = x != y
      if is_mine is None:
        assert not changed.any()
      else:
        assert changed.any() and not np.any(changed & ~np.asarray(is_mine))


# The same two layers on (batch, time, features), computed on each layout.
def network(params, x, name):
  w, head = params
  batch, time, features = x.shape
  match name:
    case "batch first":
      return jnp.tanh(x @ w) @ head
    case "time first":
      return jnp.swapaxes(jnp.tanh(jnp.swapaxes(x, 0, 1) @ w) @ head, 0, 1)
    case "batch and time in one":
      return (jnp.tanh(x.reshape(-1, features) @ w) @ head).reshape(batch, time, -1)
    case "time and batch in one":
      rows = jnp.swapaxes(x, 0, 1).reshape(-1, features)
      return jnp.swapaxes((jnp.tanh(rows @ w) @ head).reshape(time, batch, -1), 0, 1)
    case "one example at a time":
      return jax.vmap(lambda one: (head.T @ jnp.tanh(w.T @ one.T)).T)(x)
    case "scanned":
      step = lambda carry, one: (carry, jnp.tanh(one @ w) @ head)  # noqa: E731
      return jnp.swapaxes(lax.scan(step, 0, jnp.swapaxes(x, 0, 1))[1], 0, 1)


def layers_of(method):
  if method == "zerofl":
    return ops.residual_layers(lambda x, w, rows: ops.share_threshold(x, VALID, 0.4, rows))
  return ops.pruned_layers(VALID)


def layer_gradients(fn, params, x, layers, batch_axes=0):
  run = ops.rewrite_layers(fn, ops.layer_rule(lambda path: layers), batch_axes)

  def loss(params):
    return jnp.sum(jnp.where(VALID[:, None, None], jnp.sin(run(params, x)), 0))

  return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize(
  ("time", "method"),
  [(3, "sparsyfed"), (BATCH, "zerofl")]
  + [pytest.param(*one, marks=pytest.mark.slow) for one in ((3, "zerofl"), (BATCH, "sparsyfed"))],
)
def test_gradients_do_not_depend_on_the_layout(method, time):
  x, head = normal(BATCH, time, 6), normal(5, 3, seed=4)
  params = [SPARSE, jnp.where(jnp.abs(head) > 0.6, head, 0)]
  layers = layers_of(method)
  expected = layer_gradients(partial(network, name="batch first"), params, x, layers)
  unpruned = jax.grad(
    lambda p: jnp.sum(jnp.sin(network(p, x, "batch first")) * VALID[:, None, None])
  )(params)
  assert jnp.abs(expected[0] - unpruned[0]).max() > 0.1
  for name in (
    "time first",
    "batch and time in one",
    "time and batch in one",
    "one example at a time",
  ):
    found = layer_gradients(partial(network, name=name), params, x, layers)
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
  # A threshold for each step of a loop is that of its own rows.
  found = layer_gradients(partial(network, name="scanned"), params, x, layers)
  steps = [
    layer_gradients(partial(network, name="batch first"), params, x[:, i : i + 1], layers)
    for i in range(time)
  ]
  for a, *parts in zip(found, *steps, strict=True):
    np.testing.assert_allclose(a, sum(parts), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["sparsyfed", "zerofl"])
def test_a_layer_on_positions_prunes_as_if_each_example_had_them(method):
  table = normal(3, 6, seed=5)

  def shared(params, x):
    return x + table @ params[0]

  def repeated(params, x):
    return x + (x[..., :1] * 0 + table) @ params[0]

  x, layers = normal(BATCH, 3, 5), layers_of(method)
  found, expected = (layer_gradients(fn, [SPARSE], x, layers) for fn in (shared, repeated))
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)


def in_order(x):
  return x[jnp.array([2, 0, 3, 1])]


UNKNOWN = {
  "gather": in_order,
  "scan": lambda x: x,
  "fft": lambda x: jnp.real(jnp.fft.fft(x, axis=0)),
  "scatter": lambda x: jnp.zeros((8, 6)).at[jnp.array([1, 3, 5, 7])].set(x),
  "concatenate": lambda x: jnp.concatenate([x, x]),
  "rev": lambda x: x[::-1],
  "cumsum": lambda x: jnp.cumsum(x, 0),
}


@pytest.mark.parametrize("primitive", UNKNOWN)
def test_a_batch_that_is_lost_is_an_error_that_names_primitive_and_layer(primitive):
  def fn(params, x):
    x = UNKNOWN[primitive](x)
    return lax.map(lambda one: one @ params["w"], x) if primitive == "scan" else x @ params["w"]

  params = {"w": SPARSE}
  (product,) = ops.find_layers(fn, params, X)
  assert product.rows == ops.Unknown(primitive)
  run = ops.rewrite_layers(fn, ops.layer_rule(lambda path: ops.pruned_layers(VALID)))
  with pytest.raises(
    ops.LayerError, match=f"^w: which entries .* not known after {primitive}(\n|$)"
  ):
    run(params, X)
  # A rule that does not ask gets on without.
  plain = ops.rewrite_layers(fn, ops.layer_rule(lambda path: ops.NATIVE))
  np.testing.assert_array_equal(plain(params, X), fn(params, X))


def test_random_rows_are_nobody_s():
  def fn(params, x, key):
    return x + jax.random.normal(key, x.shape) @ params["w"]

  params = {"w": normal(6, 6)}
  (product,) = ops.find_layers(fn, params, X, jax.random.key(0), batch_axes=(0, None))
  assert product.rows == ops.Unknown("random numbers")


def test_a_batch_of_one_is_nowhere_lost():
  fn, params, _, _ = of_linen(nn.Conv(3, (2, 2)), normal(1, 6, 6, 4))
  (product,) = ops.find_layers(fn, params, normal(1, 6, 6, 4))
  assert product.rows == ops.Rows(0, 1, 1)
  (product,) = ops.find_layers(lambda p, x: x[::-1].reshape(-1) @ p, SPARSE, X[:1])
  assert product.rows == ops.Rows(0, 1, 1)
