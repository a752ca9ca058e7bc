"""Rounds of every method on a convolutional network, against the plain reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.algorithms import ALGORITHMS, OPTIONS
from tests import cases
from tests.algorithms import reference, reference_masked

# Shares of weights in each layer before the round: below and above the activations' floor, and so
# low that more is pruned of an activation than the zeros of a ReLU.
DENSITIES = {
  "dense": {"Conv_0": 1.0, "Conv_1": 1.0, "Conv_2": 1.0, "Dense_0": 1.0},
  "sparse": {"Conv_0": 0.5, "Conv_1": 0.35, "Conv_2": 0.1, "Dense_0": 0.35},
}
COHORTS = (3, 0, 5), (2, 1, 6)  # sizes 7, 6, 3, 1, 0, 1 in batches of 4
ROUND = 3
VALUES = {
  "server_lr": 0.7,
  "density": 0.31,
  "rounds": 4.0,
  "activation_floor": 0.3,
  # No product with a number of weights is so near an integer that float32 decides its ceiling.
  "flash_drop_rate": 0.47,
  "flash_warmup_rounds": 2.0,
}

AVERAGED = [
  name for name, (base, _) in cases.VARIANTS.items() if base not in ("feddst", "flash", "static")
]
# Name, variant, values that differ, and what happens in each round.
MASKED = [
  ("feddst", "feddst", {}, ("train", "readjust", "train", "readjust")),
  ("feddst-stops", "feddst", {"feddst_update_until": 2.0}, ("train", "train")),
  # So that Erdős–Rényi–kernel densities above 1 are capped.
  ("feddst-capped", "feddst", {"density": 0.6}, ("train", "readjust")),
  ("flash", "flash", {}, ("warm-up", "warm-up", "train")),
  ("flash-one-epoch", "flash", {"flash_warmup_epochs": 1.0}, ("warm-up", "warm-up")),
  ("flash-jmwst", "flash-jmwst", {}, ("warm-up", "warm-up", "update", "train", "update")),
  ("flash-nst", "flash-nst", {}, ("independent", "independent")),
  ("flash-magnitude", "flash-magnitude", {}, ("magnitude", "train")),
  ("static", "static", {}, ("train",)),
  ("static-saliency", "static-saliency", {}, ("saliency", "train")),
]
# What would be noticed in a kind of round, if it were computed with another value.
TRAINING = {"client_lr": 0.25, "weight_decay": 0.0, "server_lr": 0.8}
FLASH = {"density": 0.36, "flash_drop_rate": 0.35}
NOTICED = {
  "train": TRAINING,
  "readjust": TRAINING | {"density": 0.36, "feddst_drop_rate": 0.35, "feddst_update_until": 5.0},
  "warm-up": {"client_lr": 0.25, "weight_decay": 0.0, "flash_drop_rate": 0.35},
  "update": TRAINING | FLASH,
  "independent": TRAINING | FLASH,
  "magnitude": TRAINING | {"density": 0.36},
  "saliency": {"density": 0.36},
}


def plain_method(variant, values, **changes):
  base, options = cases.VARIANTS[variant]
  return reference.Method(base, options, cases.HYPER | values | changes)


def plain_clients(key):
  federation = cases.problem("cnn").federation
  made = [
    reference.Client(
      cases.client_data(federation, number), jax.random.fold_in(key, number), cases.BATCH_SIZE
    )
    for number in sum(COHORTS, ())
  ]
  for client in made:
    rows = np.asarray(client.data.indices)[: client.size]
    x = [batch[0] for batch in client.batches(1)]
    assert all(len(one) <= cases.BATCH_SIZE for one in x)
    if rows.size:
      expected = np.asarray(federation.x)[rows]
      np.testing.assert_array_equal(np.sort(np.concatenate(x), 0), np.sort(expected, 0))
  return made


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


def compare_round(state, report, expected):
  cases.assert_close(report, expected.report, 1e-4)
  compare_masks(state, expected.masks)
  if expected.params is not None:
    cases.assert_close(state.variables["params"], expected.params, 1e-4)
  if state.extra:
    cases.assert_close(state.extra, expected.warm_up, 1e-4)


@pytest.mark.parametrize(
  ("base", "options"),
  [*cases.VARIANTS.values(), ("static", {"mask": "erk"}), ("flash", {"form": "pdst"})],
)
def test_the_server_starts_like_the_plain_reference(base, options):
  setup = cases.make_setup(cases.problem("cnn").task)
  made = ALGORITHMS[base](setup, *([OPTIONS[base](**options)] if options else []))
  method = reference.Method(base, options, cases.HYPER | VALUES)
  plain = cases.variables("cnn")
  state = made.init(plain, cases.hyper(**VALUES), jax.random.key(31))
  if base in ("feddst", "flash", "static"):
    params, masks = reference_masked.start(method, plain["params"])
    compare_masks(state, masks)
  else:
    params = reference.start(method, plain["params"])
  if params is None:  # random masks, but the given weights
    params = reference.masked(reference.double(plain["params"]), named_masks(state))
  cases.assert_close(state.variables["params"], params, 1e-5)


@pytest.mark.parametrize("start", DENSITIES)
@pytest.mark.parametrize("variant", AVERAGED)
def test_a_round_is_that_of_the_plain_reference(variant, start):
  # The library stops the power iteration for spectral exponents early.
  tolerance = 1e-3 if variant == "sparsyfed-spectral" else 1e-4
  key = jax.random.key(30)
  state = cases.start(variant, "cnn", cases.hyper(**VALUES))
  params = thinned(state.variables["params"], DENSITIES[start])
  state = state._replace(round=jnp.int32(ROUND - 1), variables={"params": params})
  clients = plain_clients(key)

  def plain_round(method):
    return reference.run_round(method, ROUND, params, clients, cases.EPOCHS)

  method = plain_method(variant, VALUES)
  new, report = library_round(variant, state, key)
  actual = new.variables["params"], report
  expected = plain_round(method)
  cases.assert_close(actual, expected, tolerance)
  predicting = cases.algorithm(variant, "cnn").model(new)["params"]
  cases.assert_close(predicting, reference.model(method, new.variables["params"]), tolerance)

  # Each of these would be noticed.
  base, options = cases.VARIANTS[variant]
  changes = dict(TRAINING)
  if base != "fedavg":
    changes |= {"density": 0.36}
  if base == "zerofl":
    changes |= {"zerofl_mask_ratio": 0.2}
  if base == "sparsyfed":
    if variant != "sparsyfed-spectral":
      changes |= {"beta": 1.15}
    if start == "sparse":  # dense layers prune nothing
      changes |= {"activation_floor": 0.0}
  others = [
    method._replace(values=method.values | {name: value}) for name, value in changes.items()
  ]
  others += [
    method._replace(options={o: value for o, value in options.items() if o != name})
    for name in options
    if (name, start) != ("activation_threshold", "dense")
  ]
  for other in others:
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), plain_round(other)[0], expected[0])
    assert max(jax.tree.leaves(gaps)) > 10 * tolerance, other


@pytest.mark.parametrize(
  ("variant", "changes", "kinds"), [run[1:] for run in MASKED], ids=[run[0] for run in MASKED]
)
def test_rounds_with_masks_are_those_of_the_plain_reference(variant, changes, kinds):
  state = cases.start(variant, "cnn", cases.hyper(**VALUES, **changes))
  method = plain_method(variant, VALUES, **changes)
  for number, kind in enumerate(kinds, 1):
    key = jax.random.key(30 + number)
    clients = plain_clients(key)

    def plain_round(method, number=number, state=state, clients=clients):
      return reference_masked.run_round(
        method,
        number,
        state.variables["params"],
        named_masks(state),
        state.extra,
        clients,
        cases.EPOCHS,
      )

    new, report = library_round(variant, state, key)
    assert reference_masked.kind(method, number) == kind
    compare_round(new, report, plain_round(method))
    if kind == "warm-up" and number == 2:  # a new initialisation
      assert not any(np.any(layer["bias"]) for layer in new.variables["params"].values())

    for name, value in NOTICED[kind].items():
      other = plain_round(method._replace(values=method.values | {name: value}))
      with pytest.raises(AssertionError):
        compare_round(new, report, other)
        pytest.fail(f"{name} of round {number} could be another")
    state = new
