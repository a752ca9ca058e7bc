"""Rounds of every method on a convolutional network, against the plain reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import ops
from sparsyfed_jax.algorithms import METHODS
from tests import cases
from tests.algorithms import reference, reference_adjusting, reference_fade, reference_masked

# Shares of weights in each layer before the round: below and above the activations' floor, and so
# low that more is pruned of an activation than the zeros of a ReLU.
DENSITIES = {
  "dense": {"Conv_0": 1.0, "Conv_1": 1.0, "Conv_2": 1.0, "Dense_0": 1.0},
  "sparse": {"Conv_0": 0.5, "Conv_1": 0.35, "Conv_2": 0.1, "Dense_0": 0.35},
}
COHORTS = (3, 0, 5), (2, 1, 6)  # sizes 7, 6, 3, 1, 0, 1 in batches of 4
ROUND = 3
VALUES = {
  "client_lr": 0.6,
  "client_lr_final": 0.2,
  "weight_decay": 0.1,
  "server_lr": 0.7,
  "density": 0.31,
  "rounds": 8.0,
  "activation_floor": 0.3,
  # No product with a number of weights is so near an integer that float32 decides its ceiling.
  "flash_drop_rate": 0.47,
  "flash_warmup_rounds": 2.0,
}

INSIDE_MASKS = (*reference_masked.ADJUSTED, "fedfade", "flash", "ssfl", "static")
AVERAGED = [
  name
  for name in cases.FORMS
  if cases.VARIANTS[name][0] not in INSIDE_MASKS
  and name not in (*cases.KEEP_MEMORY, "fedpm", "heterofl")
]
# Name, variant, values that differ, and what happens in each round.
MASKED = [
  ("feddst", "feddst", {}, ("train", "readjust", "train", "readjust")),
  ("feddst-stops", "feddst", {"feddst_update_until": 2.0}, ("train", "train")),
  # So that Erdős–Rényi–kernel densities above 1 are capped.
  ("feddst-capped", "feddst", {"density": 0.6}, ("train", "readjust")),
  ("feddst-release", "feddst-release", {}, ("train", "readjust")),
  ("fedmef", "fedmef", {}, ("train", "readjust", "train", "readjust")),
  ("fedmef-norm", "fedmef-norm", {}, ("train", "readjust")),
  ("fedrts", "fedrts", {}, ("train", "readjust", "train", "readjust")),
  ("fedtiny", "fedtiny", {}, ("train", "readjust", "train", "readjust")),
  ("prunefl", "prunefl", {}, ("train", "readjust", "train", "readjust")),
  ("fedfade", "fedfade", {}, ("train", "readjust", "train", "readjust", "train")),
  ("fedfade-smallest", "fedfade-smallest", {}, ("train", "readjust")),
  ("fedfade-zero", "fedfade-zero", {"fedfade_beta": 1.0}, ("train", "readjust", "train")),
  # Layers have all that they can have, and biases are trained from the start.
  (
    "fedfade-floor",
    "fedfade",
    {"fedfade_floor": 1.0, "fedfade_fade_until": 0.0, "fedfade_biases_from": 0.0},
    ("train", "readjust"),
  ),
  ("flash", "flash", {}, ("warm-up", "warm-up", "train")),
  ("flash-one-epoch", "flash", {"flash_warmup_epochs": 1.0}, ("warm-up", "warm-up")),
  ("flash-jmwst", "flash-jmwst", {}, ("warm-up", "warm-up", "update", "train", "update")),
  ("flash-nst", "flash-nst", {}, ("independent", "independent")),
  ("flash-magnitude", "flash-magnitude", {}, ("magnitude", "train")),
  ("flash-convolutions", "flash-convolutions", {}, ("warm-up", "warm-up", "train")),
  (
    "flash-jmwst-convolutions",
    "flash-jmwst-convolutions",
    {},
    ("warm-up", "warm-up", "update", "train"),
  ),
  ("flash-nst-convolutions", "flash-nst-convolutions", {}, ("independent",)),
  ("flash-magnitude-convolutions", "flash-magnitude-convolutions", {}, ("magnitude", "train")),
  ("ssfl", "ssfl", {}, ("saliency", "train")),
  ("static", "static", {}, ("train",)),
  ("static-saliency", "static-saliency", {}, ("saliency", "train")),
]
# Those in which every kind of round is, once; the others run with -m slow.
QUICK_MASKED = (
  *("feddst", "feddst-stops", "fedmef", "fedrts", "fedtiny", "prunefl", "fedfade", "fedfade-floor"),
  *("flash", "flash-jmwst", "flash-nst", "flash-magnitude", "ssfl", "static"),
)
# What would be noticed in a kind of round, if it were computed with another value.
LOCAL = {"client_lr": 0.5, "client_lr_final": 0.15, "weight_decay": 0.3}
TRAINING = LOCAL | {"server_lr": 0.8}
DENSITY = {"density": 0.26}
NOTICED = {
  "train": TRAINING,
  "readjust": TRAINING | DENSITY,
  "warm-up": LOCAL | {"flash_drop_rate": 0.35, "flash_warmup_epochs": 2.0},
  "update": TRAINING | DENSITY | {"flash_drop_rate": 0.35},
  "independent": TRAINING | DENSITY | {"flash_drop_rate": 0.35},
  "magnitude": TRAINING | DENSITY,
  "saliency": DENSITY,
}
# Of a method besides.
OWN_NOTICED = {
  "fedmef": {
    "train": {"activation_sparsity": 0.4},
    "readjust": {"activation_sparsity": 0.4, "extrusion": 0.2, "boost": 0.5, "boost_limit": 1.3},
  },
}
OWN_NOTICED["fedrts"] = dict.fromkeys(
  ("train", "readjust"), {"trust": 0.4, "strength": 3.0, "drop_rate": 0.35}
)
OWN_NOTICED["fedfade"] = {
  "readjust": {"beta": 1.15, "fade_until": 6.0},
}
ADJUSTMENT = {"drop_rate": 0.35, "update_until": 5.0}
TOLERANCE = 1e-5


def plain_method(variant, **changes):
  base, options = cases.VARIANTS[variant]
  return reference.Method(base, options, cases.HYPER | VALUES | changes)


def with_values(method, changes):
  """Lists the methods in which one value is another."""
  return [method._replace(values=method.values | {name: changes[name]}) for name in changes]


def noticed(method, kind):
  """What would be noticed in a kind of round of a method."""
  own = OWN_NOTICED.get(method.name, {}).get(kind, {})
  if kind == "readjust":
    own = own | ADJUSTMENT
  return NOTICED[kind] | {f"{method.name}_{name}": value for name, value in own.items()}


def run_masked_round(method, *arguments):
  """Runs a round of a method that trains inside masks."""
  if method.name == "fedfade":
    return reference_fade.run_round(method, *arguments)
  at_server = reference_masked.ADJUSTED[1:]
  room = reference_adjusting if method.name in at_server else reference_masked
  return room.run_round(method, *arguments)


def plain_clients(key):
  federation = cases.problem("cnn").federation
  clients = []
  for number in sum(COHORTS, ()):
    data = cases.client_data(federation, number)
    epochs = max(cases.EPOCHS, int(cases.HYPER["flash_warmup_epochs"]))
    client = reference.make_client(data, jax.random.fold_in(key, number), cases.BATCH_SIZE, epochs)
    own = np.asarray(federation.y)[np.asarray(data.indices)[: client.size]]
    for batches in client.epochs:
      seen = np.concatenate([*(batch.y for batch in batches), []])
      np.testing.assert_array_equal(np.sort(seen), np.sort(own))
    clients.append(client)
  return clients


def library_round(variant, state, key):
  # Two halves, for shapes that are compiled already.
  halves = [cases.run_cohort(variant, "cnn", state, cohort, key=key) for cohort in COHORTS]
  upload, sums = cases.add(*halves)
  new, _ = cases.server(variant, "cnn")(state, upload)
  return new, reference.Report(sums["train_loss"].value, sums["client_regrowth"].value)


def thinned(params, densities):
  """Sets all but the largest weights of each kernel to 0."""

  def prune(kernel, density):
    threshold = np.quantile(np.abs(kernel), 1 - density)
    return jnp.where(jnp.abs(kernel) >= threshold, kernel, 0)

  return {
    name: {**layer, "kernel": prune(layer["kernel"], densities[name])}
    for name, layer in params.items()
  }


def named_masks(state):
  layers = state.variables["params"]
  return {name: np.asarray(mask) for name, mask in zip(layers, state.masks, strict=True)}


def compare_masks(state, expected):
  for name, mask in named_masks(state).items():
    known = ~expected.is_open[name]
    np.testing.assert_array_equal(mask[known], expected.certain[name][known], name)
    assert mask.sum() == expected.sizes[name], name
    assert not np.any(np.asarray(state.variables["params"][name]["kernel"])[~mask]), name


def compare_round(state, report, expected, tolerance):
  cases.assert_close(report, expected.report, tolerance)
  compare_masks(state, expected.masks)
  if expected.params is not None:
    cases.assert_close(state.variables["params"], expected.params, tolerance)
  if state.extra:
    sums = jax.tree.leaves(state.extra), jax.tree.leaves(expected.warm_up)
    cases.assert_close(*sums, tolerance)


def assert_noticed(compare, others):
  """Checks that a comparison, (method, tolerance), fails with each of these, and by far."""
  for other in others:
    try:
      compare(other, 10 * TOLERANCE)
    except AssertionError:
      continue
    pytest.fail(f"could be {other}")


@pytest.mark.parametrize("variant", cases.VARIANTS)
def test_the_server_starts_like_the_plain_reference(variant):
  base, options = cases.VARIANTS[variant]
  setup = cases.make_setup(cases.problem("cnn").task)
  made = METHODS[base].algorithm(setup, METHODS[base].options(**options))
  method = reference.Method(base, options, cases.HYPER | VALUES)
  plain = cases.variables("cnn")
  state = made.init(plain, cases.hyper(base, **VALUES), jax.random.key(31))
  if base in INSIDE_MASKS:
    room = reference_fade if base == "fedfade" else reference_masked
    params, masks = room.start(method, plain["params"])
    compare_masks(state, masks)
  else:
    params = reference.start(method, plain["params"])
  if params is None:  # random masks, but the given weights
    params = reference.masked(reference.double(plain["params"]), named_masks(state))
  cases.assert_close(state.variables["params"], params, 1e-5)


@pytest.mark.parametrize("start", DENSITIES)
@pytest.mark.parametrize("variant", cases.over_methods(AVERAGED, quick=cases.DEFAULT_FORMS))
def test_a_round_is_that_of_the_plain_reference(variant, start):
  key = jax.random.key(30)
  state = cases.start(variant, "cnn", cases.hyper(variant, **VALUES))
  params = thinned(state.variables["params"], DENSITIES[start])
  state = state._replace(round=jnp.int32(ROUND - 1), variables={"params": params})
  new, report = library_round(variant, state, key)
  clients = plain_clients(key)

  def compare(method, tolerance):
    expected = reference.run_round(method, ROUND, params, clients, cases.EPOCHS)
    cases.assert_close((new.variables["params"], report), expected, tolerance)

  method = plain_method(variant)
  compare(method, TOLERANCE)
  predicting = cases.algorithm(variant, "cnn").model(new)["params"]
  # The library stops the power iteration for spectral exponents early.
  tolerance = 1e-3 if variant == "sparsyfed-spectral" else TOLERANCE
  cases.assert_close(predicting, reference.model(method, new.variables["params"]), tolerance)

  changes = dict(TRAINING)
  if method.name != "fedavg":
    changes |= DENSITY
  if method.name == "zerofl":
    changes |= {"zerofl_mask_ratio": 0.2}
  if method.name == "sparsyfed":
    if variant != "sparsyfed-spectral":
      changes |= {"beta": 1.15}
    if start == "sparse":  # dense layers prune nothing
      changes |= {"activation_floor": 0.6}
  options = set(method.options)
  if start == "dense":
    options -= {"activation_threshold"}
  forms = [
    method._replace(options={name: method.options[name] for name in options - {one}})
    for one in options
  ]
  assert_noticed(compare, with_values(method, changes) + forms)


@pytest.mark.parametrize(
  "variant",
  cases.over_methods(
    (name for name in AVERAGED if name in cases.DEFAULT_FORMS), quick=["sparsyfed"]
  ),
)
def test_a_round_without_tuning_is_that_of_the_plain_reference(variant):
  key = jax.random.key(30)
  state = cases.start(variant, "cnn", cases.hyper(variant, **VALUES))
  params = thinned(state.variables["params"], DENSITIES["sparse"])
  state = state._replace(round=jnp.int32(ROUND - 1), variables={"params": params})
  with ops.untuned():
    new, report = library_round(variant, state, key)
  method = plain_method(variant)
  expected = reference.run_round(method, ROUND, params, plain_clients(key), cases.EPOCHS)
  cases.assert_close((new.variables["params"], report), expected, TOLERANCE)


@pytest.mark.parametrize(
  "variant", cases.over_methods(["feddst", "flash", "static"], quick=["static"])
)
def test_rounds_with_masks_without_tuning_are_those_of_the_plain_reference(variant):
  state = cases.start(variant, "cnn", cases.hyper(variant, **VALUES))
  method = plain_method(variant)
  for number in (1, 2):
    key = jax.random.key(30 + number)
    with ops.untuned():
      new, report = library_round(variant, state, key)
    before = state.variables["params"], named_masks(state), state.extra, plain_clients(key)
    expected = run_masked_round(method, number, *before, cases.EPOCHS)
    compare_round(new, report, expected, TOLERANCE)
    state = new


@pytest.mark.parametrize(
  ("variant", "values", "kinds"),
  [
    pytest.param(*run, id=name, marks=() if name in QUICK_MASKED else pytest.mark.slow)
    for name, *run in MASKED
  ],
)
def test_rounds_with_masks_are_those_of_the_plain_reference(variant, values, kinds):
  state = cases.start(variant, "cnn", cases.hyper(variant, **(VALUES | values)))
  method = plain_method(variant, **values)
  for number, kind in enumerate(kinds, 1):
    room = reference_fade if method.name == "fedfade" else reference_masked
    assert room.kind(method, number) == kind
    key = jax.random.key(30 + number)
    new, report = library_round(variant, state, key)
    arguments = state.variables["params"], named_masks(state), state.extra, plain_clients(key)

    def compare(method, tolerance, number=number, arguments=arguments, new=new, report=report):
      expected = run_masked_round(method, number, *arguments, cases.EPOCHS)
      compare_round(new, report, expected, tolerance)

    compare(method, TOLERANCE)
    others = with_values(method, noticed(method, kind))
    if kind == "warm-up" and number == VALUES["flash_warmup_rounds"]:
      others += with_values(method, DENSITY)
      # A new initialisation.
      assert not any(np.any(layer["bias"]) for layer in new.variables["params"].values())
    if kind == "update":
      others.append(method._replace(options={"form": "jmwst"}))
    assert_noticed(compare, others)
    state = new


@pytest.mark.parametrize("variant", reference_masked.ADJUSTED[1:])
def test_readjusting_ties_and_dead_weights_is_that_of_the_plain_reference(variant):
  params = cases.variables("cnn")["params"]
  alike = {
    name: {**layer, "kernel": jnp.round(4 * layer["kernel"]) / 4} for name, layer in params.items()
  }
  alike["Conv_0"]["bias"] = alike["Conv_0"]["bias"].at[0].set(-100.0)  # never leaves the ReLU
  hyper = cases.hyper(variant, **VALUES)
  state = cases.algorithm(variant, "cnn").init({"params": alike}, hyper, jax.random.key(11))
  method = plain_method(variant)
  counts = [sum(int(np.sum(mask)) for mask in state.masks)]
  for number in (1, 2):
    key = jax.random.key(30 + number)
    new, report = library_round(variant, state, key)
    arguments = state.variables["params"], named_masks(state), state.extra, plain_clients(key)
    expected = run_masked_round(method, number, *arguments, cases.EPOCHS)
    compare_round(new, report, expected, TOLERANCE)
    state = new
    counts.append(sum(int(np.sum(mask)) for mask in state.masks))
  assert counts[0] == counts[1] != counts[2]
