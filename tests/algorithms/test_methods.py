"""What sets each method apart, over several rounds on toy problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.fed import masked
from sparsyfed_jax.fed.method import Choice
from sparsyfed_jax.fed.pruning import prune_globally
from sparsyfed_jax.fed.server import Upload
from tests import cases

COHORT = (3, 0, 5)
ADJUSTED_BY_THE_SERVER = ("fedfade", "fedmef", "fedrts", "fedtiny", "prunefl")
DENSITY = 0.4


def play(method, num_rounds, name=None, epochs=cases.EPOCHS, **values):
  """Runs rounds; returns the states after each, and the upload of the last."""
  name, setup = name or cases.problem_of(method), {"epochs": epochs}
  state = cases.start(method, name, cases.hyper(method, density=DENSITY, **values), **setup)
  states, upload = [state], None
  for i in range(num_rounds):
    upload, _ = cases.run_cohort(method, name, state, COHORT, key=jax.random.key(i), **setup)
    state, _ = cases.server(method, name, **setup)(state, upload)
    states.append(state)
  return states, upload


def density(state):
  return np.mean(cases.flat_kernels(state.variables["params"]) != 0)


def num_weights():
  return cases.flat_kernels(cases.variables("mlp")["params"]).size


def mask_density(state):
  return np.mean(np.concatenate([np.ravel(mask) for mask in state.masks]))


@pytest.mark.parametrize(
  ("method", "epochs"),
  cases.over_methods(["feddst", "flash", "flash-jmwst", "flash-magnitude"], 1, quick=())
  + cases.over_methods(["feddst", "flash", "flash-jmwst", "flash-magnitude"], 3, quick=())
  + cases.over_methods(
    ["feddst", "flash", "flash-jmwst", *ADJUSTED_BY_THE_SERVER],
    cases.EPOCHS,
    quick=[name for name in cases.LAWFUL if name != "fedfade"],
  ),
)
def test_ends_at_its_target_density(method, epochs):
  # Of the reference's layers some have all that fedfade would give them.
  states, _ = play(method, 6, "mlp" if method == "fedfade" else None, epochs)
  layers = len(states[-1].masks)
  rounding = layers / sum(mask.size for mask in states[-1].masks)
  # Each layer rounds its budget on its own.
  assert mask_density(states[-1]) == pytest.approx(DENSITY, abs=rounding)
  assert density(states[-1]) <= DENSITY + rounding
  assert density(states[-1]) > 0.6 * DENSITY


@pytest.mark.parametrize(
  "method", cases.over_methods(["topk", "zerofl", "flash-nst"], quick=cases.LAWFUL)
)
def test_the_union_of_masks_is_denser_than_the_target(method):
  states, _ = play(method, 4, zerofl_mask_ratio=0.0)
  assert density(states[-1]) > 1.05 * DENSITY


def test_less_grows_back_in_sparsyfeds_clients_than_in_topks():
  regrown = {}
  for method in ("sparsyfed", "topk"):
    # So sparse that what a client grows in two epochs may displace what it received.
    values = cases.hyper(method, density=0.1, client_lr=1.0)
    state, regrown[method] = cases.start(method, "mlp", values), 0.0
    for i in range(6):
      upload, metrics = cases.run_cohort(method, "mlp", state, COHORT, key=jax.random.key(i))
      state, _ = cases.server(method, "mlp")(state, upload)
      regrown[method] += float(metrics["client_regrowth"].value)
  assert regrown["sparsyfed"] < 0.5 * regrown["topk"]


@pytest.mark.parametrize(
  "method",
  cases.over_methods(
    ["static", "static-saliency", "ssfl", "flash", "flash-magnitude"], quick=cases.LAWFUL
  ),
)
def test_the_mask_stays_once_it_is_found(method):
  states, _ = play(method, 4)
  cases.assert_same_bits(states[2].masks, states[4].masks)
  assert 0 < mask_density(states[4]) < 0.5


@pytest.mark.parametrize(
  "method",
  cases.over_methods(
    ["feddst", "flash-jmwst", "flash-nst", *ADJUSTED_BY_THE_SERVER], quick=cases.LAWFUL
  ),
)
def test_the_mask_adapts(method):
  states, _ = play(method, 5)
  assert not cases.same_bits(states[2].masks, states[5].masks)


def test_flash_warms_up_without_changing_the_model():
  states, _ = play("flash", 3, flash_warmup_rounds=2.0)
  cases.assert_same_bits(states[1].variables, states[0].variables)
  assert not cases.same_bits(states[2].variables, states[0].variables)
  assert not cases.same_bits(states[2].masks, states[0].masks)


def test_zerofl_predicts_as_sparsely_as_it_trains():
  states, _ = play("zerofl", 3, "mlp", zerofl_mask_ratio=0.5)
  model = cases.algorithm("zerofl", "mlp").model(states[-1])
  stored, predicting = (
    list(cases.kernels(v["params"]).values()) for v in (states[-1].variables, model)
  )
  np.testing.assert_array_equal(stored[0], predicting[0])  # the first layer is dense
  assert np.count_nonzero(predicting[1]) == round(DENSITY * predicting[1].size)
  assert np.count_nonzero(stored[1]) > np.count_nonzero(predicting[1])


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0.4), (0.2, 0.6), (0.6, 1.0)])
@pytest.mark.parametrize(
  "method", cases.over_methods(["zerofl", "zerofl-masked-changes", "zerofl-changes"])
)
def test_zerofl_sends_a_share_of_each_layer(method, ratio, share):
  state = cases.start(method, "mlp", cases.hyper(method, density=DENSITY, zerofl_mask_ratio=ratio))
  upload, _ = cases.run_client(method, "mlp", state, 3)
  for leaf in cases.kernels(upload.variables["params"]).values():
    # A change of exactly 0 is not sent, though it ranks.
    assert np.count_nonzero(leaf) <= round(share * leaf.size)
    assert np.count_nonzero(leaf) >= 0.9 * round(share * leaf.size) - 1


@pytest.mark.parametrize("method", cases.over_methods(["sparsyfed", "topk", "zerofl-comparison"]))
def test_a_client_sends_the_target_density(method):
  _, upload = play(method, 1, "mlp", zerofl_mask_ratio=0.0)
  assert isinstance(upload, Upload)
  state = cases.trained(method, "mlp")._replace(hyper=cases.hyper(method, zerofl_mask_ratio=0.0))
  alone, _ = cases.run_client(method, "mlp", state, 3)
  sent = cases.flat_kernels(alone.variables["params"])
  assert np.count_nonzero(sent) == round(DENSITY * sent.size)


@pytest.mark.parametrize(
  "method",
  cases.over_methods(
    n
    for n, record in METHODS.items()
    if record.takes_densities and n != "heterofl"  # channels
  ),
)
def test_clients_hold_what_they_can(method):
  # Clients 3 and 0 at a half and a quarter of the density.
  federation = cases.problem("mlp").federation
  scales = federation.density_scales.at[3].set(0.5).at[0].set(0.25)
  federation = federation._replace(density_scales=scales)
  if method == "flash":
    method = "flash-magnitude"
  state = cases.trained(method, "mlp")._replace(hyper=cases.hyper(method, zerofl_mask_ratio=0.0))
  counts = {}
  for number in (3, 0, 5):
    upload, _ = cases.run_client(method, "mlp", state, number, federation, heterogeneous=True)
    counts[number] = np.count_nonzero(cases.flat_kernels(upload.variables["params"]))
  total = DENSITY * num_weights()
  rounding = len(cases.kernels(state.variables["params"]))
  assert counts[5] == pytest.approx(total, abs=rounding)
  assert counts[3] == pytest.approx(total / 2, abs=rounding)
  assert counts[0] == pytest.approx(total / 4, abs=rounding)


@pytest.mark.parametrize("method", cases.over_methods(["sparsyfed", "topk"]))
def test_weak_clients_start_from_what_they_can_hold(method):
  federation = cases.problem("mlp").federation
  federation = federation._replace(density_scales=federation.density_scales * 0.25)
  # Without training what is sent is what was received, and of the first model that is all of it.
  values = {"client_lr": 1e-30, "client_lr_final": 1e-30, "density": DENSITY}
  state = cases.trained(method, "mlp")._replace(hyper=cases.hyper(method, **values))
  _, metrics = cases.run_client(method, "mlp", state, 3, federation, heterogeneous=True)
  sparse = float(metrics["train_loss"].value)
  _, metrics = cases.run_client(method, "mlp", state, 3, federation)
  whole = float(metrics["train_loss"].value)
  first = state._replace(updated=jnp.int32(0))
  _, metrics = cases.run_client(method, "mlp", first, 3, federation, heterogeneous=True)
  assert float(metrics["train_loss"].value) == whole != sparse


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_form_is_refused_by_name(name):
  setup, record = cases.make_setup(cases.problem("mlp").task), METHODS[name]
  for setting in record.settings():
    if isinstance(setting.rule, Choice):
      known = ", ".join(setting.rule.known)
      with pytest.raises(ValueError, match=f"{setting.field}='nosuch': must be one of {known}"):
        record.algorithm(setup, record.options(**{setting.field: "nosuch"}))


def kernel_only(shape, seed=0):
  noise = np.random.default_rng(seed).normal(size=shape)
  return {"params": {"Conv_0": {"kernel": jnp.asarray(noise, jnp.float32)}}}


def test_topk_keeps_what_rounding_the_pruned_leaves():
  # round(0.5 * 11) = 6 are pruned.
  pruned = prune_globally(kernel_only((1, 11))["params"], jnp.float32(0.5))
  assert np.count_nonzero(pruned["Conv_0"]["kernel"]) == 5


def test_flash_magnitude_keeps_the_floor_of_a_layers_share():
  # 432 * 0.00903 = 3.9, if one client of the round keeps 3 and nine keep 4.
  kernel = (3, 3, 3, 16)
  variables = kernel_only(kernel)
  task = cases.problem("cnn").task._replace(kernels=("Conv_0",))
  algorithm = cases.form("flash-magnitude", cases.make_setup(task))
  state = algorithm.init(variables, cases.hyper("flash", server_lr=1.0), jax.random.key(0))
  kept = np.zeros(432, np.float32)
  kept[:3], kept[3] = 10.0, 9.0
  upload = masked.Upload(
    jax.tree.map(lambda leaf: 10 * leaf, variables),
    [jnp.asarray(kept).reshape(kernel)],
    jnp.float32(10),
  )
  new, _ = jax.jit(algorithm.server)(state, upload)
  assert int(np.sum(new.masks[0])) == 3


@pytest.mark.parametrize("form", ["pdst", pytest.param("jmwst", marks=pytest.mark.slow)])
def test_flash_of_convolutions_leaves_dense_layers_dense(form):
  options = METHODS["flash"].options(form=form, prunes="convolutions")
  task = cases.problem("cnn").task
  made = METHODS["flash"].algorithm(cases.make_setup(task), options)
  state = made.init(cases.variables("cnn"), cases.hyper("flash", density=0.25), jax.random.key(0))
  *convolutions, dense = [np.asarray(mask) for mask in state.masks]
  assert dense.all()
  assert [mask.sum() for mask in convolutions] == [round(0.25 * m.size) for m in convolutions]
  with pytest.raises(ValueError, match="prunes='convolutions': the model has no convolution"):
    METHODS["flash"].algorithm(cases.make_setup(cases.problem("mlp").task), options)


def test_fedmef_prepares_for_nothing_where_nothing_is_dropped():
  uploads = []
  for extrusion, boost in ((0.3, 30.0), (0.0, 0.0)):
    values = {"fedmef_extrusion": extrusion, "fedmef_boost": boost, "fedmef_update_every": 1.0}
    state = cases.start("fedmef", "mlp", cases.hyper("fedmef", density=1.0, **values))
    uploads.append(cases.run_client("fedmef", "mlp", state, 3)[0].variables)
  cases.assert_same_bits(*uploads)
