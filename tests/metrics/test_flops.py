"""FLOPs by hand, by convolutions of ones, and as XLA counts them."""

import math
from collections import defaultdict
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from sparsyfed_jax import models, ops, trees
from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.fed.method import Pattern
from sparsyfed_jax.metrics import flops
from sparsyfed_jax.metrics.flops import DENSE, LayerCost, LayerShares
from sparsyfed_jax.ops import NATIVE, LayerOps
from tests.models.injected import injected

BATCH = 8
# Of every kind of model, at the size at which it is used; but fewer blocks that are all the same.
MODELS = {
  "MLP": (models.MLP(10), (28, 28)),
  "CNN": (models.CNN(10), (28, 28, 1)),
  "ResNet18": (models.ResNet18(10), (32, 32, 3)),
  "SpeechResNet18": (models.SpeechResNet18(35), (16_000,)),
  "ViT": (models.ViT(10, depth=2), (32, 32, 3)),
  "Transformer": (models.Transformer(50), (32,), jnp.int32),
  "LSTM": (models.LSTM(50, hidden=64), (32,), jnp.int32),
}


class Conv(nn.Module):
  """One convolution; further fields are those of `nn.Conv`."""

  features: int
  fields: dict

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    return nn.Conv(self.features, **self.fields)(x)


class Heads(nn.Module):
  """A matrix for each of three heads."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    kernel = self.param("kernel", nn.initializers.ones, (3, 5, 2))
    return lax.dot_general(x, kernel, (((3,), (1,)), ((2,), (0,))))


class Mixed(nn.Module):
  """Two layers of the data, one of something trained, and one that is called three times."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    shared = nn.Dense(5, name="shared")
    shifted = x + self.param("shift", nn.initializers.zeros, (1, 5))
    y = nn.Dense(5, name="left")(nn.relu(2 * x)) + nn.Dense(5, name="right")(x)
    y = y + nn.Dense(5, name="shifted")(shifted)
    y = shared(shared(nn.relu(y))) + shared(x)
    return nn.remat(nn.Dense)(3, name="last")(y)


def layer_costs(model, shape, dtype=jnp.float32):
  return flops.product_costs(models.network_of(model, shape, dtype=dtype).products)


@cache
def costs_of(name):
  return layer_costs(*MODELS[name])


def costs_by_name(model, shape):
  return {cost.name: cost[1:] for cost in layer_costs(model, shape)}


class TestByHand:
  def test_dense_layers(self):
    # 3 x 2 entries, 4 hidden, 5 classes; two operations a multiply-add.
    assert layer_costs(models.MLP(5, (4,)), (3, 2)) == (
      LayerCost("Dense_0", 2 * 6 * 4, 0, 2 * 6 * 4),
      LayerCost("Dense_1", 2 * 4 * 5, 2 * 4 * 5, 2 * 4 * 5),
    )

  @pytest.mark.parametrize(
    ("fields", "rows", "columns"),
    [
      ({"padding": "VALID"}, 3 * 3, 4 * 3),
      # All 5 (6) places, of which the first and the last each miss an entry.
      ({"padding": 1}, 5 * 3 - 2, 6 * 3 - 2),
      # Windows from -1, 1, 3: rows 2 + 3 + 2 entries, columns 2 + 3 + 3.
      ({"padding": 1, "strides": 2}, 7, 8),
      # Entries 0, 2, 4 of one window and of two.
      ({"padding": "VALID", "kernel_dilation": 2}, 3, 2 * 3),
      # Entries 2 before, at and 2 behind each of 5 (6) places.
      ({"padding": 2, "kernel_dilation": 2}, 5 + 3 + 3, 6 + 4 + 4),
    ],
  )
  def test_convolutions(self, fields, rows, columns):
    model = Conv(4, {"kernel_size": (3, 3), **fields})
    expected = 2 * (2 * 4) * rows * columns
    assert layer_costs(model, (5, 6, 2)) == (LayerCost("Conv_0", expected, 0, expected),)

  def test_tokens(self):
    # 6 patches of 4 x 4 x 2; a block; the head sees their mean.
    model = models.ViT(3, patch=4, dim=6, depth=1, heads=2, mlp_ratio=3)
    block = "EncoderBlock_0"
    assert {name: cost[0] for name, cost in costs_by_name(model, (8, 12, 2)).items()} == {
      "embed": 2 * 6 * 32 * 6,
      f"{block}/qkv": 2 * 6 * 6 * 18,
      f"{block}/out": 2 * 6 * 6 * 6,
      f"{block}/mlp_in": 2 * 6 * 6 * 18,
      f"{block}/mlp_out": 2 * 6 * 18 * 6,
      "head": 2 * 6 * 3,
    }

  def test_what_a_loop_repeats(self):
    # 7 tokens of 2 features; states of 3 entries with four gates; 5 logits.
    model = models.LSTM(5, dim=2, hidden=3)
    assert layer_costs(model, (7,), jnp.int32) == (
      LayerCost("input_0", *(2 * 7 * 2 * 12,) * 3),
      LayerCost("recurrent_0", *(2 * 7 * 3 * 12,) * 3),
      LayerCost("head", *(2 * 7 * 3 * 5,) * 3),
    )

  def test_a_matrix_for_each_head(self):
    # Of 7 tokens; the model itself is the layer.
    expected = 2 * 7 * 3 * 5 * 2
    assert costs_by_name(Heads(), (7, 3, 5)) == {"": (expected, 0, expected)}

  def test_which_inputs_need_gradients_and_what_is_called_often(self):
    once = 2 * 5 * 5
    assert costs_by_name(Mixed(), (5,)) == {
      "left": (once, 0, once),
      "right": (once, 0, once),
      "shifted": (once, once, once),
      "shared": (3 * once, 2 * once, 3 * once),
      "last": (2 * 5 * 3,) * 3,
    }


def xla_flops(op, *shapes):
  """XLA's count for an operation; nothing is compiled."""
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(op).lower(*arguments).cost_analysis().get("flops", 0)


CONVOLUTIONS = {
  "same, stride 2": ((7, 8), {"kernel_size": (3, 4), "strides": 2, "padding": "SAME"}),
  "stride 2 does not reach the end": ((8, 8), {"kernel_size": (3, 2), "strides": (2, 3)}),
  "one-sided padding": ((5, 6), {"kernel_size": (3, 3), "padding": ((2, 0), (0, 1))}),
  "cropped": ((7, 7), {"kernel_size": (3, 3), "padding": ((-1, 0), (1, -2))}),
  "dilated kernel": ((9, 8), {"kernel_size": (3, 2), "kernel_dilation": (2, 3), "padding": "SAME"}),
  "dilated input": ((5, 4), {"kernel_size": (3, 3), "input_dilation": (2, 3), "padding": 2}),
  "groups": ((5, 5), {"kernel_size": (3, 3), "feature_group_count": 2, "padding": 1}),
  "mostly padding": ((1, 9), {"kernel_size": (7, 7), "strides": 2, "padding": 3}),
  "signal": ((11,), {"kernel_size": (5,), "strides": 3, "padding": 2}),
  "circular": ((6, 6), {"kernel_size": (3, 3), "padding": "CIRCULAR"}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_each_product_of_a_convolution_is_as_ones_and_xla_say(name):
  sizes, fields = CONVOLUTIONS[name]
  seen = []

  def noted(lhs, rhs, *args, **kwargs):
    seen.append((lambda x, w: lax.conv_general_dilated(x, w, *args, **kwargs), lhs, rhs))
    return NATIVE.conv_general_dilated(lhs, rhs, *args, **kwargs)

  model, shape = Conv(6, fields), (*sizes, 4)
  ((_, forward, _, weight_gradient),) = layer_costs(model, shape)
  with injected(LayerOps(NATIVE.dot_general, noted)):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))

  op, x, w = seen[0][0], seen[0][1].shape, seen[0][2].shape
  y = op(np.ones(x, np.float32), np.ones(w, np.float32))
  assert forward == weight_gradient == 2 * float(y.sum()) > 0
  assert forward == xla_flops(op, x, w)

  def input_gradient(w, g):
    return jax.linear_transpose(lambda x: op(x, w), jax.ShapeDtypeStruct(x, w.dtype))(g)

  def gradient_of_weights(x, g):
    return jax.linear_transpose(lambda w: op(x, w), jax.ShapeDtypeStruct(w, x.dtype))(g)

  assert forward == xla_flops(input_gradient, w, y.shape)
  assert forward == xla_flops(gradient_of_weights, x, y.shape)


def dense_products(jaxpr):
  """All matrix products and convolutions, those of inner jaxprs too, as often as they are run."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("dot_general", "conv_general_dilated"):
      yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        for _ in range(equation.params.get("length", 1)):
          yield from dense_products(inner)


def xla_flops_of_products(jaxpr):
  """XLA's count for each product alone, added up; those that are alike are counted once."""
  groups = defaultdict(list)
  for product in dense_products(jaxpr):
    shapes = tuple(operand.aval.shape for operand in product.invars)
    groups[product.primitive, str(product.params), shapes].append(product.params)
  return sum(
    len(alike) * xla_flops(partial(primitive.bind, **alike[0]), *shapes)
    for (primitive, _, shapes), alike in groups.items()
  )


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_as_xla_counts_them(name):
  costs = costs_of(name)
  model, shape, *dtype = MODELS[name]
  x = jax.ShapeDtypeStruct((BATCH, *shape), *(dtype or [jnp.float32]))
  variables = jax.eval_shape(model.init, jax.random.key(0), x)

  # The layers have the names that the engine has for them.
  assert sorted(cost.name for cost in costs) == sorted(trees.layer_names(variables["params"]))

  def loss(params, variables, x):
    variables = {**variables, "params": params}
    logits, state = model.apply(variables, x, train=True, mutable=["batch_stats"])
    return jnp.mean(logits**2), state

  expected = {
    "forward": BATCH * sum(cost.forward for cost in costs),
    "gradient": BATCH * sum(sum(cost[1:]) for cost in costs),
  }
  if name == "ViT":  # scores and mixtures, of 64 tokens in 2 blocks, are no layers
    attention = BATCH * 2 * 2 * (2 * 64**2 * model.dim)
    expected["forward"] += attention
    expected["gradient"] += 3 * attention
  if name == "Transformer":  # of 32 tokens, those behind too
    attention = BATCH * 2 * 2 * (2 * 32**2 * model.dim)
    expected["forward"] += attention
    expected["gradient"] += 3 * attention
  programs = {"forward": loss, "gradient": jax.value_and_grad(loss, has_aux=True)}
  for kind, program in programs.items():
    traced = jax.jit(program).trace(variables["params"], variables, x)
    assert expected[kind] == xla_flops_of_products(traced.jaxpr.jaxpr)
    # All that is not a product is less than a hundredth; softmax and GELU take more.
    gap = traced.lower().cost_analysis()["flops"] / expected[kind] - 1
    if name != "LSTM":  # of whose loop XLA counts one step
      assert 0 < gap < {"ViT": 0.05, "Transformer": 0.2}.get(name, 0.01)


@pytest.mark.parametrize("name", MODELS)
def test_products_that_are_found_cost_the_same(name):
  model, shape, *dtype = MODELS[name]
  dtype = dtype[0] if dtype else jnp.float32
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape), dtype))
  state = {name: part for name, part in variables.items() if name != "params"}

  def run(params, state, x):
    return model.apply({**state, "params": params}, x, train=True, mutable=list(state))

  x = jax.ShapeDtypeStruct((3, *shape), dtype)
  products = ops.find_layers(run, variables["params"], state, x, batch_axes=(None, 0))
  found = flops.product_costs(products)
  named = [cost._replace(name=cost.name.removesuffix("/kernel")) for cost in found]
  assert named == [*costs_of(name)]


def test_every_model_is_tested():
  others = {"BatchNorm", "Form", "Functions", "Network", "form_of", "functions_of", "network_of"}
  assert set(MODELS) == set(models.__all__) - others


NAMES = ("a", "b", "c")
DENSITIES = np.float32([0.25, 1, 0])


def inside(name, density):
  return flops.shares_inside_masks((), (), name, False, density, 1.0)


def shares_of(method, densities, target=0.125, is_first=False, **own):
  """Shares by the rule of a method; further arguments are fields of its Hyper or Options."""
  record = METHODS[method]
  options, hyper = (
    kind(**{name: value for name, value in own.items() if name in kind._fields})
    for kind in (record.options, record.hyper)
  )

  def rule(name, density):
    return record.layer_shares(options, hyper, name, is_first, density, target)

  return flops.work_shares(rule, NAMES, densities)


class TestShares:
  @pytest.mark.parametrize(
    ("method", "expected"),
    [
      ("fedavg", [DENSE] * 3),
      ("feddyn", [DENSE] * 3),
      ("fedpm", [DENSE] * 3),
      ("spafl", [DENSE] * 3),
      ("topk", [DENSE] * 3),
      ("sparsyfed", [(0.25, 0.25, 0.5), (1, 1, 1), (0, 0, 0.5)]),
      ("zerofl", [(0.125, 0.125, 0.125)] * 3),
      ("flash", [(0.25,) * 3, (1,) * 3, (0,) * 3]),
      ("feddst", [(0.25,) * 3, (1,) * 3, (0,) * 3]),
      ("fedmef", [(0.25, 0.25, 0.125), (1, 1, 0.5), (0, 0, 0)]),
      ("fedrts", [(0.25,) * 3, (1,) * 3, (0,) * 3]),
      ("fedtiny", [(0.25,) * 3, (1,) * 3, (0,) * 3]),
      ("prunefl", [(0.25,) * 3, (1,) * 3, (0,) * 3]),
      ("heterofl", [(0.25,) * 3, (1,) * 3, (0,) * 3]),
      ("ssfl", [(0.25,) * 3, (1,) * 3, (0,) * 3]),
      ("static", [(0.25,) * 3, (1,) * 3, (0,) * 3]),
      # Outside the mask there is the background.
      ("fedfade", [(1, 1, 0.25), (1, 1, 1), (1, 1, 0)]),
    ],
  )
  def test_by_method(self, method, expected):
    shares = shares_of(method, DENSITIES, activation_floor=0.5)
    assert shares == dict(zip(NAMES, expected, strict=True))
    assert list(shares) == list(NAMES)
    patterns = [s for s in METHODS[method].settings() if isinstance(s.rule, Pattern)]
    for pattern in patterns:
      plain = shares_of(method, DENSITIES, activation_floor=0.5, **{pattern.field: "^[bc]"})
      assert plain == shares | {"b": DENSE, "c": DENSE}
    assert len(patterns) == (method in ("sparsyfed", "zerofl"))

  def test_without_a_floor_activations_are_as_dense_as_weights(self):
    assert shares_of("sparsyfed", DENSITIES)["a"] == (0.25, 0.25, 0.25)

  def test_zerofl_leaves_the_first_layer_plain(self):
    assert shares_of("zerofl", DENSITIES, is_first=True) == dict.fromkeys(NAMES, DENSE)
    assert shares_of("sparsyfed", DENSITIES, is_first=True) == shares_of("sparsyfed", DENSITIES)

  def test_without_powerpropagation_sparsyfed_is_dense(self):
    dense = dict.fromkeys(NAMES, DENSE)
    assert shares_of("sparsyfed", DENSITIES, beta=1.0) == dense
    spectral = shares_of("sparsyfed", DENSITIES, beta=1.0, reparameterisation="spectral")
    assert spectral != dense

  def test_every_method_has_its_rule(self):
    for method in METHODS:
      shares = shares_of(method, [1, 1, 1], target=1.0, activation_sparsity=0.0)
      assert shares == dict.fromkeys(NAMES, DENSE)

  @pytest.mark.parametrize(
    ("changes", "message"),
    [
      ({"weight_densities": [1, 1]}, "one for each of 3 layers, found 2"),
      ({"weight_densities": [0, 1.5, 1]}, "weight_densities of b must be in .*, found 1.5"),
      ({"weight_densities": [0, 1, math.nan]}, "weight_densities of c must be in .*, found nan"),
    ],
  )
  def test_bad_input(self, changes, message):
    good = {
      "rule": lambda name, density: DENSE,
      "layer_names": NAMES,
      "weight_densities": DENSITIES,
    }
    with pytest.raises(ValueError, match=message):
      flops.work_shares(**(good | changes))


class TestSums:
  COSTS = (LayerCost("b", 8, 0, 8), LayerCost("a", 2**40, 2**40, 2**40), LayerCost("c", 4, 4, 4))
  SHARES = {
    "a": LayerShares(0.5, 0.25, 0.125),
    "b": LayerShares(0.25, 0.75, 1),
    "c": LayerShares(0, 0, 0),
  }

  def test_the_table_by_hand(self):
    rows = flops.flops_table(self.COSTS, self.SHARES, 10)
    columns = ("forward", "input_gradient", "weight_gradient", "total", "dense_total", "share")
    assert [tuple(row) for row in rows] == [("layer", *columns)] * 3
    assert [tuple(row.values()) for row in rows] == [
      ("b", 20, 0, 80, 100, 160, 10 / 16),
      ("a", 10 * 2**39, 10 * 2**38, 10 * 2**37, 70 * 2**37, 30 * 2**40, 7 / 24),
      ("c", 0, 0, 0, 0, 120, 0),
    ]
    assert all(type(value) is float for row in rows for value in list(row.values())[1:])
    assert flops.client_flops(self.COSTS, self.SHARES, 10) == 100 + 70 * 2**37

  def test_dense_is_the_sum_of_costs_per_example(self):
    costs = costs_of("CNN")
    dense = dict.fromkeys((cost.name for cost in costs), DENSE)
    one = sum(sum(cost[1:]) for cost in costs)
    for num_examples in (0, 1, 2.5, 50_000):
      assert flops.client_flops(costs, dense, num_examples) == num_examples * one
      rows = flops.flops_table(costs, dense, num_examples)
      assert [row["share"] for row in rows] == [1] * len(costs)

  def test_uniform_density_takes_its_share_of_everything(self):
    costs = costs_of("MLP")
    names = [cost.name for cost in costs]
    dense, sparse = (
      flops.client_flops(costs, flops.work_shares(inside, names, [density] * 3), 7)
      for density in (1, 0.125)
    )
    assert sparse == dense / 8

  def test_shares_belong_to_names_whatever_the_order(self):
    # Sorted, as trees are, shortcuts come where they are not computed.
    costs = costs_of("ResNet18")
    names = sorted(cost.name for cost in costs)
    assert names != [cost.name for cost in costs]
    pruned = "BasicBlock_4/shortcut"
    densities = [0.0 if name == pruned else 1.0 for name in names]
    shares = flops.work_shares(inside, names, densities)
    expected = sum(sum(cost[1:]) for cost in costs if cost.name != pruned)
    assert flops.client_flops(costs, shares, 1) == expected

  def test_bad_input(self):
    some = {"a": DENSE}
    for count in (flops.client_flops, flops.flops_table):
      with pytest.raises(ValueError, match="shares must hold every layer, found none of b, c"):
        count(self.COSTS, some, 1)
      with pytest.raises(ValueError, match="num_examples must not be negative, found -1"):
        count(self.COSTS, self.SHARES, -1)
