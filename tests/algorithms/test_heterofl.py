"""HeteroFL against models that are really narrow, and what it sends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.fed.channels import is_place, places_of
from sparsyfed_jax.fed.task import classification, plain_layers
from sparsyfed_jax.models import CNN, MLP, ResNet18
from sparsyfed_jax.types import Batch, total
from sparsyfed_jax.wire import encode
from tests import cases
from tests.algorithms import reference, reference_heterofl
from tests.algorithms.test_reference import COHORTS, TOLERANCE, VALUES, plain_clients

MEMBERS = sum(COHORTS, ())
SLOW = VALUES | {"client_lr": 0.2, "client_lr_final": 0.1}  # divided outputs have large gradients
OTHERS = {"client_lr": 0.3, "client_lr_final": 0.15, "weight_decay": 0.3, "server_lr": 0.8}
MODELS = {
  "cnn": (CNN(10, channels=(4, 8), hidden=12), (12, 12, 1)),
  "resnet": (ResNet18(10, width=4), (8, 8, 3)),
  "mlp": (MLP(10, hidden=(8, 6)), (5,)),
}


def masks_of(places, width, has_label=None):
  return jax.tree.map(lambda place: place.mask(width, has_label), places, is_leaf=is_place)


def scaled_federation(widths):
  federation = cases.problem("cnn").federation
  scales = federation.density_scales
  for number, width in zip(MEMBERS, widths, strict=True):
    scales = scales.at[number].set(width)
  return federation._replace(density_scales=scales)


@pytest.mark.parametrize("variant", ["heterofl", "heterofl-divided", "heterofl-own", "fixed"])
def test_rounds_are_those_of_narrow_models(variant):
  setup, federation, fixed = {}, None, (1.0, 0.25, 0.6, 0.5, 0.3, 0.75)
  if variant == "fixed":
    variant, setup, federation = "heterofl", {"heterogeneous": True}, scaled_federation(fixed)
  base, options = cases.VARIANTS[variant]
  state = cases.start(variant, "cnn", cases.hyper(variant, **SLOW))
  method = reference.Method(base, options, cases.HYPER | SLOW)
  for number in (1, 2):
    key = jax.random.key(30 + number)
    halves = [
      cases.run_cohort(variant, "cnn", state, cohort, federation, key, **setup)
      for cohort in COHORTS
    ]
    upload, sums = cases.add(*halves)
    new, _ = cases.server(variant, "cnn")(state, upload)
    report = reference.Report(sums["train_loss"].value, sums["client_regrowth"].value)
    clients, widths = plain_clients(key), fixed
    if not setup:
      keys = [jax.random.fold_in(key, member) for member in MEMBERS]
      widths = [reference_heterofl.drawn_width(method, one) for one in keys]
      assert len(set(widths)) > 1

    def run(method, widths=widths, number=number, state=state, clients=clients):
      params = state.variables["params"]
      return reference_heterofl.run_round(method, number, params, clients, widths, cases.EPOCHS)

    cases.assert_close((new.variables["params"], report), run(method), TOLERANCE)
    others = [method._replace(values=method.values | {name: OTHERS[name]}) for name in OTHERS]
    others.append(method._replace(options={"outputs": "divided"} if not options else {}))
    for other in others:
      with pytest.raises(AssertionError):
        cases.assert_close((new.variables["params"], report), run(other), 10 * TOLERANCE)
    with pytest.raises(AssertionError):
      wider = [1.0] * len(widths)
      cases.assert_close((new.variables["params"], report), run(method, wider), 10 * TOLERANCE)
    state = new


@functools.cache
def gradient_of(name):
  """Makes a task, and a function of variables to the gradient by their parameters."""
  model, shape = MODELS[name]
  task = classification(model, shape)
  x = jax.random.normal(jax.random.key(2), (6, *shape))
  batch = Batch(x, jnp.arange(6), jnp.ones(6, bool))

  def loss(params, variables):
    whole = {**variables, "params": params}
    return task.loss(whole, batch, plain_layers, jax.random.key(0))[0]

  return task, jax.jit(lambda variables: jax.grad(loss)(variables["params"], variables))


@pytest.mark.parametrize("width", [0.5, 0.3, 0.125])
@pytest.mark.parametrize("name", MODELS)
def test_a_narrow_model_reads_nothing_of_what_it_lacks(name, width):
  task, gradient = gradient_of(name)
  places = places_of("heterofl", task)
  noise = iter(jax.random.split(jax.random.key(1), 200))
  variables = jax.tree.map(
    # Biases so large that no channel is dead.
    lambda leaf: leaf + (1 if leaf.ndim == 1 else jax.random.normal(next(noise), leaf.shape) / 3),
    dict(task.init(jax.random.key(0))),
  )
  masks = masks_of(places, jnp.float32(width))
  narrow = jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, variables)
  pairs = zip(*map(jax.tree.leaves, (masks["params"], gradient(narrow))), strict=True)
  for mask, leaf in pairs:
    assert not np.any(np.asarray(leaf)[~np.asarray(mask)])
    assert np.any(np.asarray(leaf)[np.asarray(mask)])


def test_what_mixes_channels_is_refused():
  task = classification(ResNet18(10, width=8, norm="group"), (8, 8, 3))
  with pytest.raises(ValueError, match="heterofl: cannot make .*GroupNorm_0/.* narrower"):
    places_of("heterofl", task)


def test_channels_that_come_first_lie_together_where_images_are_flattened():
  def model(params, x):
    x = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "VALID")
    return jax.nn.relu(x).reshape(x.shape[0], -1) @ params["dense"]

  def init(key):
    return {"conv": jnp.ones((2, 1, 1, 1)), "dense": jnp.ones((8, 3))}

  task = classification((init, model), (1, 2, 2))
  places = places_of("heterofl", task)
  mask = masks_of(places, jnp.float32(0.5))["params"]["dense"]["kernel"]
  np.testing.assert_array_equal(np.asarray(mask)[:, 0], [True] * 4 + [False] * 4)


def test_a_client_sends_and_receives_its_own_coordinates():
  name = "batchnorm"
  federation = cases.problem(name).federation
  federation = federation._replace(density_scales=federation.density_scales.at[3].set(0.5))
  state = cases.trained("heterofl", name)
  arguments = "heterofl", name, state
  sizes, densities = [], []
  for number in (3, 0):
    upload, metrics = cases.run_client(*arguments, number, federation, heterogeneous=True)
    masks = jax.tree.map(lambda kept: np.asarray(kept) > 0, upload.kept)
    sent = jax.tree.map(
      lambda leaf, mask, w=upload.weight: np.where(mask, np.asarray(leaf / w), 0),
      upload.variables,
      masks,
    )
    # Exact zeros inside are told from what is not there by their sign.
    sent = jax.tree.map(
      lambda leaf, mask: np.where(mask & (leaf == 0), np.float32(-0.0), leaf), sent, masks
    )
    size = len(encode(sent, sent, keep_signed_zeros=True))
    assert total(metrics["round_uplink_bytes"].value) == size
    sizes.append(size)
    densities.append([mask.mean() for mask in cases.kernels(masks["params"]).values()])
  assert sizes[0] < 0.7 * sizes[1]
  assert densities == [[0.5, 0.5], [1.0, 1.0]]
  upload, _ = cases.run_cohort(*arguments, (3, 0), federation, heterogeneous=True)
  _, row = cases.server("heterofl", name)(state, upload)
  assert float(row["downlink_bytes"]) == pytest.approx(np.mean(sizes))
  # Clients 3 and 0 have 7 and 6 examples.
  expected = np.average(densities, axis=0, weights=[7, 6])
  np.testing.assert_allclose(row["received_density"], expected, rtol=1e-6)


def test_what_nobody_has_stays():
  federation = cases.problem("mlp").federation
  federation = federation._replace(density_scales=federation.density_scales * 0.5)
  state = cases.trained("heterofl", "mlp")
  upload, _ = cases.run_cohort("heterofl", "mlp", state, (3, 0), federation, heterogeneous=True)
  new, _ = cases.server("heterofl", "mlp")(state, upload)
  before, after = (one.variables["params"]["Dense_0"]["kernel"] for one in (state, new))
  np.testing.assert_array_equal(after[:, 4:], before[:, 4:])
  assert np.all(after[:, :4] != before[:, :4])


def test_own_labels_are_refused_where_no_classes_are_predicted():
  made = cases.algorithm("heterofl-own", "mlp")
  data = cases.client_data(cases.problem("mlp").federation, 3)
  download = made.broadcast(cases.start("heterofl-own", "mlp"))
  with pytest.raises(ValueError, match="labels='own': the task predicts no classes"):
    made.client(download, (), data._replace(y=data.y.astype(jnp.float32)), jax.random.key(0))
