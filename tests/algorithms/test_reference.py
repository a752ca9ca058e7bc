"""A round of each method on a convolutional network, against the plain reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests.algorithms import reference

# Shares of weights in each layer before the round: below and above the activations' floor, and so
# low that more is pruned of an activation than the zeros of a ReLU.
DENSITIES = {
  "dense": {"Conv_0": 1.0, "Conv_1": 1.0, "Conv_2": 1.0, "Dense_0": 1.0},
  "sparse": {"Conv_0": 0.5, "Conv_1": 0.35, "Conv_2": 0.1, "Dense_0": 0.35},
}
COHORTS = (3, 0, 5), (2, 1, 6)  # sizes 7, 6, 3, 1, 0, 1 in batches of 4
ROUND = 3
VALUES = {"server_lr": 0.7, "density": 0.31, "rounds": 4.0, "activation_floor": 0.3}


def thinned(params, densities):
  """Sets all but the largest weights of each kernel to 0."""

  def prune(kernel, density):
    threshold = np.quantile(np.abs(kernel), 1 - density)
    return jnp.where(jnp.abs(kernel) >= threshold, kernel, 0)

  return {
    name: {**layer, "kernel": prune(layer["kernel"], densities[name])}
    for name, layer in params.items()
  }


def library_round(method, state, key):
  # Two halves, for shapes that are compiled already.
  halves = [cases.run_cohort(method, "cnn", state, cohort, key=key) for cohort in COHORTS]
  upload, sums = cases.add(*halves)
  new, _ = cases.server(method, "cnn")(state, upload)
  return new.variables["params"], sums["train_loss"].value, sums["client_regrowth"].value


def plain_round(method, state, key, **changes):
  values = cases.HYPER | VALUES
  share = ROUND / values["rounds"]
  plain = reference.Method(
    beta=values["beta"] if method == "sparsyfed" else 1.0,
    density=values["density"] if method != "fedavg" else 1.0,
    prunes_activations=method == "sparsyfed",
    floor=values["activation_floor"],
    lr=values["client_lr"] ** (1 - share) * values["client_lr_final"] ** share,
    weight_decay=values["weight_decay"],
  )._replace(**changes)
  clients = []
  federation = cases.problem("cnn").federation
  x, y = np.asarray(federation.x), np.asarray(federation.y)
  for number in sum(COHORTS, ()):
    data = cases.client_data(federation, number)
    rows = np.asarray(data.indices)[: int(data.size)]
    batches = reference.batches_of(
      data, jax.random.fold_in(key, number), cases.EPOCHS, cases.BATCH_SIZE
    )
    assert sorted(np.concatenate([*batches, []])) == sorted(np.repeat(rows, cases.EPOCHS))
    clients.append((len(rows), batches))
  return reference.run_round(plain, state.variables["params"], clients, x, y, values["server_lr"])


@pytest.mark.parametrize("start", DENSITIES)
@pytest.mark.parametrize("method", ["fedavg", "topk", "sparsyfed"])
def test_a_round_is_that_of_the_plain_reference(method, start):
  key = jax.random.key(30)
  state = cases.start(method, "cnn", cases.hyper(**VALUES))
  params = thinned(state.variables["params"], DENSITIES[start])
  state = state._replace(round=jnp.int32(ROUND - 1), variables={"params": params})
  actual = library_round(method, state, key)
  expected = plain_round(method, state, key)
  cases.assert_close(actual, expected, 1e-4)

  # Each of these would be noticed.
  changes = {"lr": 0.25, "weight_decay": 0.0}
  if method != "fedavg":
    changes |= {"density": 0.36}
  if method == "sparsyfed":
    changes |= {"beta": 1.15}
    if start == "sparse":  # dense layers prune nothing
      changes |= {"prunes_activations": False, "floor": 0.0}
  for name, value in changes.items():
    other = plain_round(method, state, key, **{name: value})[0]
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), other, expected[0])
    assert max(jax.tree.leaves(gaps)) > 1e-3, name
