"""What a round reports: bytes equal to those of the wire format, for every method."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sparsyfed_jax import trees
from sparsyfed_jax.fed import masked
from sparsyfed_jax.fed.measures import MEASURES, NO_MEASURES, measures
from sparsyfed_jax.metrics.masks import mask_iou, regrowth
from sparsyfed_jax.metrics.sparsity import layer_densities
from sparsyfed_jax.types import total
from sparsyfed_jax.wire import codec
from sparsyfed_jax.wire.rounding import round_to_wire
from sparsyfed_jax.wire.size import payload_bytes
from tests import cases

CLIENT = 3
ADJUSTED_BY_THE_SERVER = ("fedfade", "fedmef", "fedrts", "fedtiny", "prunefl")
WIRE_DTYPES = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


def on_wire(variables, masks):
  """Marks active weights that are 0 by their sign, as the wire format wants it."""
  kernels, rebuild = trees.split_prunable(variables["params"])
  pairs = zip(kernels, masks, strict=True)
  marked = [np.where(mask, np.where(w == 0, np.float32(-0.0), w), 0) for w, mask in pairs]
  return jax.device_get({**variables, "params": rebuild(marked)})


def encode(*arguments, value_dtype=None):
  return codec.encode(*arguments, value_dtype=value_dtype, keep_signed_zeros=True)


def received_by(download):
  if isinstance(download, masked.Download):
    return on_wire(download.variables, download.masks)
  return jax.device_get(with_extra(download.variables, download.extra))


def with_extra(variables, extra):
  """Puts what a method sends beside the model with it, as SCAFFOLD does."""
  return {**variables, "control": extra} if extra else variables


def sent_by(upload):
  """The upload before it was weighted; a weight moves no zero."""
  both = with_extra(upload.variables, getattr(upload, "control", ()))
  plain = jax.tree.map(lambda leaf: np.asarray(leaf / upload.weight), both)
  if isinstance(upload, masked.Upload):
    return on_wire(plain, [np.asarray(kept) > 0 for kept in upload.kept])
  return plain


def exchange(method, name, state, **setup):
  made = cases.algorithm(method, name, **setup)
  download = made.broadcast(state)
  data = cases.client_data(cases.problem(name).federation, CLIENT)
  memory = made.memory(cases.variables(name), cases.hyper(method))
  run = cases.client(method, name, **setup)
  upload, _, metrics = run(download, memory, data, jax.random.key(4))
  return download, upload, metrics


def check_bytes(method, name, state, value_dtype=None, **setup):
  download, upload, metrics = exchange(method, name, state, **setup)
  received, sent = received_by(download), sent_by(upload)
  assert total(metrics["round_uplink_bytes"].value) == len(
    encode(sent, received, value_dtype=value_dtype)
  )
  new_state, row = cases.server(method, name, **setup)(state, upload)
  if "downlink_bytes" not in row:  # not of the method's own counting
    after = cases.algorithm(method, name, **setup).broadcast(new_state).variables
    row = setup.get("measures", MEASURES).step(download.variables, after)
  known = received if method == "ssfl" else None  # the mask, which was sent before
  assert row["downlink_bytes"] == len(encode(received, known, value_dtype=value_dtype))
  return download, upload


# What sends masks as bits, and what differs by client, have tests of their own.
@pytest.mark.parametrize(
  "method",
  cases.over_methods(name for name in cases.FORMS if name not in ("fedpm", "heterofl")),
)
def test_bytes_are_those_of_the_wire_format(method):
  download, upload = check_bytes(method, "batchnorm", cases.trained(method, "batchnorm"))
  received, sent = received_by(download), sent_by(upload)
  for wire_dtype in WIRE_DTYPES.values():
    expected = len(encode(sent, received, value_dtype=wire_dtype))
    counted = payload_bytes(sent, received, wire_dtype, keep_signed_zeros=True)
    assert counted == expected


@pytest.mark.parametrize(
  ("method", "dtype"),
  [("sparsyfed", "bfloat16"), pytest.param("feddst", "float16", marks=pytest.mark.slow)],
)
def test_values_of_other_types_are_rounded_as_the_wire_format_rounds(method, dtype):
  wire_dtype = WIRE_DTYPES[dtype]
  setup = {"wire_dtype": wire_dtype, "measures": measures(wire_dtype)}
  state = cases.trained(method, "linear")
  download, upload = check_bytes(method, "linear", state, wire_dtype, **setup)
  received = received_by(download)
  payload = encode(received, value_dtype=wire_dtype)
  cases.assert_same_bits(codec.decode(payload), received)
  plain, _, _ = exchange(method, "linear", state)
  assert not cases.same_bits(received, received_by(plain))
  # Weighted by a power of 2 sums would be exact; here by 7, so only what is sent can be compared.
  values = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(sent_by(upload))])
  rounded = values.astype(np.dtype(wire_dtype)).astype(np.float32)
  np.testing.assert_allclose(values, rounded, rtol=1e-6, atol=0)


def test_warm_up_sends_masks_alone():
  state = cases.start("flash", "linear")
  download, upload, metrics = exchange("flash", "linear", state)
  masks = [np.asarray(kept) > 0 for kept in upload.kept]
  expected = len(codec.encode(masks, [np.asarray(mask) for mask in download.masks]))
  assert total(metrics["round_uplink_bytes"].value) == expected
  assert expected < len(encode(sent_by(upload), received_by(download)))


@pytest.mark.parametrize("method", ["ssfl", "static-saliency"])
def test_clients_that_find_saliency_send_scores_alone(method):
  download, upload, metrics = exchange(method, "batchnorm", cases.start(method, "batchnorm"))
  received, sent = (
    {"scores": trees.split_prunable(one["params"])[0]}
    for one in (received_by(download), sent_by(upload))
  )
  expected = len(codec.encode(sent, received))
  assert total(metrics["round_uplink_bytes"].value) == expected
  assert expected < len(encode(sent_by(upload), received_by(download)))


def test_ssfl_sends_its_mask_once():
  state, sizes = cases.start("ssfl", "batchnorm"), []
  for i in range(3):
    download = cases.algorithm("ssfl", "batchnorm").broadcast(state)
    received = received_by(download)
    upload, _ = cases.run_cohort("ssfl", "batchnorm", state, (0, 3, 5), key=jax.random.key(i))
    state, row = cases.server("ssfl", "batchnorm")(state, upload)
    sizes.append(int(row["downlink_bytes"]))
    assert sizes[-1] == len(encode(received, received if i == 2 else None))
  assert sizes[0] > sizes[1] > sizes[2]


@functools.cache
def fedfade_of(is_given):
  task = cases.problem("batchnorm").task._replace(is_given=is_given)
  made = cases.form("fedfade", cases.make_setup(task))
  return made, jax.jit(made.client), jax.jit(made.server)


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("fade_until", [0.0, 6.0])
def test_fedfade_sends_a_model_that_is_given_once(is_given, fade_until):
  made, run_client, run_server = fedfade_of(is_given)
  drawn, hyper = cases.variables("batchnorm"), cases.hyper("fedfade", fedfade_fade_until=fade_until)
  state = made.init(drawn, hyper, jax.random.key(11))
  download = made.broadcast(state)
  data = cases.client_data(cases.problem("batchnorm").federation, CLIENT)
  upload, _, _ = run_client(download, (), data, jax.random.key(2))
  _, row = run_server(state, upload)
  if is_given and fade_until:
    sent = drawn
  elif is_given:  # clients compute with the norms, which are not trained yet
    sent = received_by(download)
    sent = {**sent, "params": {**sent["params"], "BatchNorm_0": drawn["params"]["BatchNorm_0"]}}
  else:  # biases and statistics; clients draw the weights
    sent = on_wire(download.variables, [np.zeros_like(mask) for mask in download.masks])
  sent = jax.device_get({**dict(state.variables), **sent})
  assert int(row["downlink_bytes"]) == len(encode(sent))


@pytest.mark.parametrize("method", ADJUSTED_BY_THE_SERVER)
def test_what_a_readjustment_needs_is_sent_where_it_is_due(method):
  # On what the laws have compiled already.
  state = cases.trained(method, "cnn")._replace(round=jnp.int32(3))
  download, upload, metrics = exchange(method, "cnn", state)
  votes = method in ("fedfade", "fedrts")
  extra = upload.extra.outside if method == "fedrts" else upload.extra
  scores = [np.asarray(leaf / upload.weight) for leaf in extra]
  outside = [~np.asarray(mask) for mask in download.masks]
  for score, one in zip(scores, outside, strict=True):
    assert np.any(score) and not np.any(score[~one])
  dtype = bool if votes else np.float32
  scores, outside = ([one.astype(dtype) for one in each] for each in (scores, outside))
  sent = {**sent_by(upload), "beside": scores}
  expected = len(encode(sent, {**received_by(download), "beside": outside}))
  assert total(metrics["round_uplink_bytes"].value) == expected
  assert expected > len(encode(sent_by(upload), received_by(download)))


def test_by_hand():
  def model(kernel):
    return {"params": {"Dense_0": {"kernel": jnp.float32([kernel]), "bias": jnp.float32([0])}}}

  # Of 10 weights one is new, one is gone, two are in both, one is in none but the first.
  before, after = model([0, 1, 2, 3] + [0] * 6), model([5, 1, 2, 0] + [0] * 6)
  for size in (0, 5):
    metrics = MEASURES.exchange(before, after, jnp.int32(size))
    expected = len(codec.encode(after, before)) if size else 0
    assert total(metrics["round_uplink_bytes"].value) == expected
    assert float(metrics["client_regrowth"].weight) == size
    assert float(metrics["client_regrowth"].total) == pytest.approx(size / 10)
  row = MEASURES.step(before, after)
  assert row["server_regrowth"] == np.float32(1 / 10)
  assert row["mask_iou"] == np.float32(2 / 4)
  assert row["received_density"].tolist() == row["layer_density"].tolist() == [np.float32(0.3)]
  sparsity = MEASURES.model(after)
  assert sparsity["global_sparsity"] == np.float32(8 / 11)
  assert sparsity["prunable_sparsity"] == np.float32(7 / 10)


def test_bytes_that_float32_would_round():
  kernel = jnp.ones((2500, 2501))
  model = {"params": {"Dense_0": {"kernel": kernel, "bias": jnp.ones(1)}}}
  metrics = MEASURES.exchange(model, model, jnp.int32(1))
  assert total(metrics["round_uplink_bytes"].value) == 25_010_027
  assert int(MEASURES.step(model, model)["downlink_bytes"]) == 25_010_077


def test_one_reading_counts_what_the_metrics_count_one_by_one():
  rng = np.random.default_rng(0)

  def draw(density):
    def leaf(old):
      values = np.where(rng.random(old.shape) < density, rng.normal(size=old.shape), 0)
      return jnp.asarray(values, jnp.float32)

    return jax.tree.map(leaf, cases.variables("batchnorm"))

  before, after = draw(0.4), draw(0.3)
  row = MEASURES.step(before, after)
  assert row["server_regrowth"] == regrowth(before["params"], after["params"])
  assert row["mask_iou"] == pytest.approx(float(mask_iou(before["params"], after["params"])))
  for name, variables in (("received_density", before), ("layer_density", after)):
    expected = [float(density) for density in layer_densities(variables["params"]).values()]
    assert row[name].tolist() == pytest.approx(expected, rel=1e-6)
  assert row["downlink_bytes"] == len(codec.encode(jax.device_get(before)))


def test_nothing_is_measured_where_nothing_should_be():
  state = cases.start("sparsyfed", "linear")
  _, with_measures, metrics = exchange("sparsyfed", "linear", state)
  _, without, fewer = exchange("sparsyfed", "linear", state, measures=NO_MEASURES)
  cases.assert_same_bits(without, with_measures)
  assert set(metrics) - set(fewer) == {"round_uplink_bytes", "client_regrowth"}


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_rounding(dtype):
  wire_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  rng = np.random.default_rng(0)
  tree = {"a": rng.normal(size=(50, 3)).astype(np.float32), "b": np.float32([0, -0.0, 1, -2.5])}
  rounded = jax.jit(round_to_wire, static_argnums=1)(tree, WIRE_DTYPES[dtype])
  expected = jax.tree.map(lambda leaf: leaf.astype(wire_dtype).astype(np.float32), tree)
  cases.assert_same_bits(rounded, expected)
  assert np.any(expected["a"] != tree["a"])


def test_rounding_moves_no_mask():
  tiny = np.float32([1e-30, -1e-30, 0])
  least = np.finfo(np.float16).smallest_normal
  rounded = jax.jit(round_to_wire, static_argnums=1)(tiny, jnp.float16)
  assert rounded.tolist() == [least, -least, 0]
  assert np.isinf(round_to_wire(jnp.float32(1e6), jnp.float16))
  assert round_to_wire(tiny, jnp.float32) is tiny
