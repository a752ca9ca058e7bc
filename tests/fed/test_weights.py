"""Tasks that start from given weights: how paths are matched, what is left out, what is frozen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsyfed_jax as sf
from sparsyfed_jax import trees
from sparsyfed_jax.fed.simulation import simulate
from sparsyfed_jax.fed.task import classification
from sparsyfed_jax.models import MLP
from sparsyfed_jax.types import Batch
from tests import cases
from tests.models.strangers import MODELS, SHAPE

KEY = jax.random.key(3)
# Whose masks are random, or of a share of each layer's weights, from the start.
INSIDE_MASKS = ("feddst", "static", "static-erk", "flash", "flash-jmwst", "flash-pdst", "flash-nst")


def shapes_of(tree):
  return {
    trees.path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def first_model(method, task, **values):
  """Makes the model with which a run is evaluated first."""
  algorithm = cases.form(method, cases.make_setup(task))
  start = algorithm.init(task.init(KEY), cases.hyper(method, **values), jax.random.key(4))
  return algorithm.model(start)


# The model has no convolutions.
@pytest.mark.parametrize(
  "method",
  cases.over_methods(
    (name for name in cases.VARIANTS if not name.endswith("convolutions")),
    quick=(*cases.QUICK, "fedpm"),
  ),
)
def test_each_method_starts_from_the_weights(method):
  weights, problem = cases.variables("batchnorm"), cases.problem("batchnorm")
  task = sf.with_weights(problem.task, weights)
  # Of a method that never is dense, with all weights inside its masks.
  found = first_model(method, task, density=1.0)
  cases.assert_close(found, weights, 1e-5)
  batch = Batch(problem.x_test, problem.y_test, jnp.ones(10, bool))
  scores = [task.evaluate(one, batch)["loss"].total for one in (found, weights)]
  assert abs(scores[0] - scores[1]) < 1e-5 * scores[1]
  drawn = first_model(method, problem.task, density=1.0)
  assert abs(task.evaluate(drawn, batch)["loss"].total - scores[1]) > 1e-2


@pytest.mark.parametrize("method", cases.over_methods(INSIDE_MASKS, quick=["feddst"]))
def test_masks_begin_where_a_sparse_model_has_its_weights(method):
  if method not in cases.VARIANTS:
    pytest.skip("another method is tested")
  plain = cases.problem("mlp").task
  theirs = first_model(method, plain)
  assert any(np.any(leaf == 0) for leaf in cases.kernels(theirs["params"]).values())
  task = sf.with_weights(plain, theirs)
  cases.assert_same_bits(first_model(method, task), theirs)
  algorithm = cases.form(method, cases.make_setup(task))
  dense = sf.with_weights(plain, cases.variables("mlp"))
  state = algorithm.init(dense.init(KEY), cases.hyper(method), KEY)
  kept = cases.kernels(algorithm.model(state)["params"])
  for name, leaf in cases.kernels(cases.variables("mlp")["params"]).items():
    outside = np.abs(leaf[kept[name] == 0])
    assert outside.max() <= np.abs(leaf[kept[name] != 0]).min()


def test_a_mask_is_as_dense_as_it_is_asked_though_the_weights_are_sparser():
  weights = jax.tree.map(lambda leaf: jnp.where(leaf > 0.4, leaf, 0), cases.variables("mlp"))
  task = sf.with_weights(cases.problem("mlp").task, weights)
  algorithm = cases.form("static", cases.make_setup(task))
  masks = algorithm.init(task.init(KEY), cases.hyper("static"), KEY).masks
  assert [round(float(mask.mean()), 1) for mask in masks] == [0.4, 0.4]


W = np.ones((9, 4))
FAULTS = {
  "missing": (lambda w: w["params"]["Dense_0"], "missing Dense_0/bias, Dense_0/kernel, Dense_1/b"),
  "over": (lambda w: {**w, "opt": {"count": np.zeros(3)}}, "over opt/count$"),
  "shape": (
    lambda w: {"Dense_0": w["params"]["Dense_0"], "Dense_1": {"bias": W[0], "kernel": W[:8, :3]}},
    r"different: Dense_1/bias is \(4,\), must be \(3,\)$",
  ),
  "transposed": (
    lambda w: jax.tree.map(lambda leaf: leaf.T if leaf.shape == (5, 8) else leaf, w),
    r"different: Dense_0/kernel is \(8, 5\), must be \(5, 8\)$",
  ),
  "dtype": (
    lambda w: jax.tree.map(lambda leaf: leaf.astype(int), w),
    "different: Dense_0/bias is of int32, must be of float32, Dense_0/kernel is of int32",
  ),
  "infinite": (
    lambda w: jax.tree.map(lambda leaf: leaf.at[..., 0].set(jnp.inf), w),
    "Dense_0/bias is not finite, must be",
  ),
  "nothing": (lambda w: {}, "the weights hold no arrays"),
  "text": (lambda w: "weights.pkl", "the weights hold no arrays: .* are weights.pkl"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_told_in_a_line(fault):
  change, message = FAULTS[fault]
  with pytest.raises(ValueError, match=message) as refused:
    sf.with_weights(cases.problem("mlp").task, change(cases.variables("mlp")))
  assert "\n" not in str(refused.value)


def test_long_lists_are_cut():
  weights = {f"w{number}": np.zeros(1) for number in range(20)}
  with pytest.raises(ValueError, match=r"over w0, w1, w10, w11, w12, w13, w14, w15 and 12 more"):
    sf.with_weights(cases.problem("mlp").task, weights)


@pytest.mark.parametrize(
  ("patterns", "message"),
  [
    (dict(exclude="Dense_9"), "^exclude='Dense_9': must find a parameter: Dense_0/bias, "),
    (dict(exclude="Dense"), "^exclude='Dense': must leave a parameter to be taken"),
    (dict(freeze="^kernel"), "^freeze='.kernel': must find a parameter: Dense_0/bias, "),
    (dict(freeze="Dense"), "^freeze='Dense': must leave a parameter to be trained"),
    (
      dict(freeze="kernel", exclude="Dense_1"),
      "^freeze='kernel': must find none of what exclude='Dense_1' leaves as it is drawn, finds"
      " Dense_1/kernel$",
    ),
  ],
)
def test_patterns_that_find_nothing_or_all_are_refused(patterns, message):
  with pytest.raises(ValueError, match=message):
    sf.with_weights(cases.problem("mlp").task, cases.variables("mlp"), **patterns)


def test_a_head_of_other_classes_is_drawn():
  weights = cases.variables("mlp")
  other = classification(MLP(7, hidden=(8,)), (5,))
  with pytest.raises(ValueError, match=r"Dense_1/kernel is \(8, 3\), must be \(8, 7\)"):
    sf.with_weights(other, weights)
  task = sf.with_weights(other, weights, exclude="Dense_1")
  made = [task.init(key)["params"] for key in jax.random.split(KEY)]
  for one in made:
    cases.assert_same_bits(one["Dense_0"], weights["params"]["Dense_0"])
  kernels = [one["Dense_1"]["kernel"] for one in made]
  assert kernels[0].shape == (8, 7) and np.any(kernels[0] != kernels[1])
  cases.assert_same_bits(
    made[0]["Dense_1"], other.init(jax.random.split(KEY)[0])["params"]["Dense_1"]
  )
  without = {"params": {"Dense_0": weights["params"]["Dense_0"]}}
  cases.assert_same_bits(
    sf.with_weights(other, without, exclude="Dense_1").init(KEY), task.init(KEY)
  )


def test_statistics_come_along_or_are_told():
  weights, plain = cases.variables("batchnorm"), cases.problem("batchnorm").task
  task = sf.with_weights(plain, weights)
  cases.assert_same_bits(task.init(KEY), weights)
  assert task.remarks == plain.remarks
  without = sf.with_weights(plain, weights["params"])
  assert "no batch_stats of BatchNorm_0/mean, BatchNorm_0/var: they" in without.remarks[-1]
  start = without.init(KEY)
  cases.assert_same_bits(start["params"], weights["params"])
  cases.assert_same_bits(start["batch_stats"], plain.init(KEY)["batch_stats"])


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("prefix", ["params/", ""])
def test_weights_may_be_a_table(separator, prefix):
  flat = jax.tree_util.tree_leaves_with_path(cases.variables("mlp")["params"])
  table = {
    (prefix + trees.path_name(path)).replace("/", separator): np.asarray(leaf, jnp.bfloat16)
    for path, leaf in flat
  }
  start = sf.with_weights(cases.problem("mlp").task, table).init(KEY)
  rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), start)
  cases.assert_same_bits(start, rounded)
  cases.assert_close(start, cases.variables("mlp"), 0.01)


@pytest.mark.parametrize("library", ["linen", "plain"])
@pytest.mark.parametrize("chosen", [(False, True), (True, False)])
def test_weights_may_be_of_a_task_of_other_prunable_parameters(library, chosen):
  make, _, layers = MODELS[library]
  before, after = (
    classification(make(), SHAPE, prunable=layers[1] if one else "") for one in chosen
  )
  learned = before.init(jax.random.key(0))
  found = sf.with_weights(after, learned).init(jax.random.key(7))
  assert jax.tree.structure(found) != jax.tree.structure(learned)
  cases.assert_same_bits(after.to_model(found), before.to_model(learned))


@pytest.mark.parametrize("library", MODELS)
def test_models_of_other_libraries_start_from_their_own_weights(library):
  make, evaluate, _ = MODELS[library]
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    task = classification(make(), SHAPE)
    x = jax.random.normal(KEY, (4, *SHAPE))
    learned = jax.tree.map(
      lambda leaf: leaf + 0.3 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
      task.init(jax.random.key(0)),
    )
    own = task.to_model(learned)
    # What is made of the variables in the library of the model, and what methods see.
    whole = sf.with_weights(task, own if library in ("linen", "nnx", "plain") else learned)
    found = whole.init(jax.random.key(7))
    cases.assert_same_bits(found, learned)
    assert whole.remarks == task.remarks
    np.testing.assert_allclose(evaluate(task.to_model(found), x), evaluate(own, x), atol=1e-5)
    if library in ("equinox", "haiku"):  # the parameters alone
      started = sf.with_weights(task, own[0])
      cases.assert_same_bits(started.init(KEY)["params"], learned["params"])
      assert "the weights have no state of " in started.remarks[-1]


# Freezing


@functools.cache
def frozen_run(method, freeze="Dense_0"):
  weights = cases.variables("mlp")
  task = sf.with_weights(cases.problem("mlp").task, weights, freeze=freeze)
  algorithm = cases.form(method, cases.make_setup(task))
  run = simulate(
    algorithm, task, cases.CLIENTS_PER_ROUND, 2, 3, cases.EVAL_BATCH_SIZE,
    num_clients=len(cases.SIZES),
  )  # fmt: skip
  state = run.init(cases.hyper(method), KEY)
  state, rows = run.run(state, cases.problem("mlp").federation, KEY, 3)
  return task, algorithm, state, rows


@pytest.mark.parametrize(
  "method",
  cases.over_methods(["sparsyfed", "feddst", "scaffold", "zerofl"], quick=["scaffold"]),
)
def test_what_is_frozen_stays_to_the_bit_and_is_not_sent(method):
  if method not in cases.VARIANTS:
    pytest.skip("another method is tested")
  weights, (task, algorithm, state, rows) = cases.variables("mlp"), frozen_run(method)
  assert list(algorithm.broadcast(state.server).variables["params"]) == ["Dense_1"]
  found = algorithm.model(state.server)
  assert shapes_of(found) == shapes_of(weights)
  cases.assert_same_bits(found["params"]["Dense_0"], weights["params"]["Dense_0"])
  assert np.any(found["params"]["Dense_1"]["kernel"] != weights["params"]["Dense_1"]["kernel"])
  assert rows["layer_density"].shape[1:] == (1,)  # of the layer that is trained
  whole = 4 * (5 * 8 + 8 + 8 * 3 + 3)
  assert 0 < rows["downlink_bytes"][0] < (2 if method == "scaffold" else 1) * whole
  assert (task.kernels, task.layer_names) == (("Dense_1",), ("Dense_0", "Dense_1"))
  assert task.frozen == ("Dense_0/bias", "Dense_0/kernel")


@pytest.mark.parametrize("method", cases.over_methods(["fedavg", "sparsyfed"], quick=["fedavg"]))
def test_training_beside_constants_is_that_of_a_model_with_constants(method):
  if method not in cases.VARIANTS:
    pytest.skip("another method is tested")
  params = cases.variables("mlp")["params"]
  body, head = params["Dense_0"], params["Dense_1"]

  def apply(own, x):
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ body["kernel"] + body["bias"][None])
    return x @ own["head"]["kernel"] + own["head"]["bias"][None]

  def both(own, x):
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ own["body"]["kernel"] + own["body"]["bias"][None])
    return x @ own["head"]["kernel"] + own["head"]["bias"][None]

  alone = classification((lambda key: {"head": head}, apply), (5,))
  pair = classification((lambda key: {"body": body, "head": head}, both), (5,))
  held = sf.with_weights(pair, {"body": body, "head": head}, freeze="^body")
  problem = cases.problem("mlp")
  models = []
  for task in (alone, held):
    run = simulate(
      cases.form(method, cases.make_setup(task)), task, 5, 2, 3, 4, num_clients=len(cases.SIZES)
    )
    state = run.init(cases.hyper(method), KEY)
    state, rows = run.run(state, problem.federation, KEY, 3)
    models.append(
      (state.server.variables["params"], rows, run.evaluate(state, problem.x_test, problem.y_test))
    )
  (one, one_rows, one_scores), (other, other_rows, other_scores) = models
  cases.assert_close(one, other, 1e-6)
  for name in ("train_loss", "downlink_bytes", "prunable_sparsity", "global_sparsity"):
    np.testing.assert_allclose(one_rows[name], other_rows[name], rtol=1e-6)
  assert abs(one_scores["test_loss"] - other_scores["test_loss"]) < 1e-6


def test_layers_that_cannot_be_followed_may_be_frozen():
  def apply(params, x):
    x = x.reshape(x.shape[0], -1) @ (params["mixed"] * jnp.tanh(params["scale"]))
    return x @ params["head"]

  def init(key):
    return {"mixed": jnp.ones((5, 4)), "scale": jnp.ones((5, 4)), "head": jnp.ones((4, 3))}

  task = classification((init, apply), (5,), prunable=".")
  assert task.problems
  held = sf.with_weights(task, init(KEY), freeze="mixed|scale")
  assert held.kernels == ("head",)
  cases.form("topk" if "topk" in cases.VARIANTS else cases.FORMS[0], cases.make_setup(held))


@pytest.mark.parametrize(("before", "now"), [("", "^b"), ("^b", ""), ("^a", "^b")])
def test_what_was_prunable_before_does_not_matter(before, now):
  def apply(params, x):
    return x.reshape(x.shape[0], -1) @ params["a"]["w"] @ params["b"]["kernel"]

  def init(key):
    one, other = jax.random.split(key)
    return {
      "a": {"w": jax.random.normal(one, (5, 4))},
      "b": {"kernel": jax.random.normal(other, (4, 3))},
    }

  earlier, later = (classification((init, apply), (5,), prunable=what) for what in (before, now))
  trained = earlier.init(KEY)
  found = later.to_model(sf.with_weights(later, trained).init(jax.random.key(9)))
  assert set(later.kernels) != set(earlier.kernels)
  jax.tree.map(np.testing.assert_array_equal, found, earlier.to_model(trained))
