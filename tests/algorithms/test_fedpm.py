"""Rounds of probabilities of masks, against a plain reference in NumPy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import trees
from sparsyfed_jax.types import total
from sparsyfed_jax.wire import codec
from tests import cases
from tests.algorithms import reference
from tests.algorithms.reference_net import NAMES, Rule, each, replace_kernels
from tests.algorithms.test_reference import (
  COHORTS,
  TOLERANCE,
  VALUES,
  assert_noticed,
  library_round,
  plain_clients,
  plain_method,
)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def noise(key, shapes):
  """The library's uniform numbers."""
  keys = jax.random.split(key, len(NAMES))
  return {
    name: np.asarray(jax.random.uniform(one, shapes[name]), np.float64)
    for name, one in zip(NAMES, keys, strict=True)
  }


class Scores(Rule):
  """Scores of weights that stay: a mask is drawn in each step."""

  def __init__(self, drawn, key):
    self._drawn, self._key = drawn, key

  def before_step(self, theta):
    self._key, now = jax.random.split(self._key)
    self._noise = noise(now, {name: w.shape for name, w in self._drawn.items()})
    return theta

  def weights(self, name, kernel):
    return np.where(self._noise[name] < sigmoid(kernel), self._drawn[name], 0)

  def slope(self, name, kernel):
    return self._drawn[name] * sigmoid(kernel) * (1 - sigmoid(kernel))


def run_round(method, number, params, drawn, counts, key, total_weight):
  """Runs a round; returns the new parameters, counts (a - 1 and a + b - 2), and the mean loss."""
  theta = reference.double(params)
  chances = {name: np.clip(theta[name]["kernel"], 0.01, 0.99) for name in NAMES}
  scores = replace_kernels(theta, {name: np.log(p / (1 - p)) for name, p in chances.items()})
  goal, losses = each(np.zeros_like, theta), []
  kept, total = counts
  if (number - 1) % method.values["fedpm_reset_every"] == 0:
    kept, total = {name: np.zeros(kept[name].shape) for name in NAMES}, 0.0
  clients = plain_clients(key)
  for client_number, client in zip(sum(COHORTS, ()), clients, strict=True):
    if client.size == 0:
      continue
    own_key = jax.random.fold_in(jax.random.fold_in(key, client_number), 1)
    training, last = jax.random.split(own_key)
    rule = Scores(drawn, training)
    end, seen = reference.train(method, number, client, scores, rule, cases.EPOCHS)
    losses.extend(seen)
    uniform = noise(last, {name: w.shape for name, w in drawn.items()})
    masks = {name: uniform[name] < sigmoid(end[name]["kernel"]) for name in NAMES}
    part = client.size / total_weight
    kept = {name: kept[name] + part * masks[name] for name in NAMES}
    total += part
    share = client.size / sum(one.size for one in clients)
    goal = each(lambda sum_, leaf, p=share: sum_ + p * leaf, goal, end)
  goal = replace_kernels(goal, {name: kept[name] / total for name in NAMES})
  return reference.server_step(method, theta, goal), (kept, total), np.mean(losses)


def by_name(leaves):
  return dict(zip(NAMES, (np.asarray(leaf, np.float64) for leaf in leaves), strict=True))


def test_rounds_are_those_of_the_plain_reference():
  state = cases.start("fedpm", "cnn", cases.hyper("fedpm", **VALUES))
  drawn = by_name(state.extra.weights)
  plain = cases.variables("cnn")["params"]
  for name in NAMES:
    w = np.asarray(plain[name]["kernel"], np.float64)
    np.testing.assert_allclose(drawn[name], np.sign(w) * np.sqrt(2 * np.mean(w**2)), rtol=1e-5)
    np.testing.assert_array_equal(state.variables["params"][name]["kernel"], 0.5)
  for number in (1, 2, 3):
    key = jax.random.key(30 + number)
    new, report = library_round("fedpm", state, key)

    def compare(method, tolerance, number=number, before=state, new=new, report=report, key=key):
      counts = by_name(before.extra.kept), float(before.extra.total)
      params, (kept, total), loss = run_round(
        method, number, before.variables["params"], drawn, counts, key, float(sum(cases.SIZES))
      )
      cases.assert_close(new.variables["params"], params, tolerance)
      cases.assert_close((by_name(new.extra.kept), new.extra.total), (kept, total), tolerance)
      cases.assert_close(report.loss, loss, tolerance)

    compare(plain_method("fedpm"), TOLERANCE)
    changes = {"client_lr": 0.9, "client_lr_final": 0.05, "server_lr": 0.8, "weight_decay": 0.3}
    if number > 1:  # counts begin anew in rounds 1 and 3
      changes |= {"fedpm_reset_every": 5.0}
    others = [plain_method("fedpm", **{name: value}) for name, value in changes.items()]
    if number == 2:
      others = others[:-1]
    assert_noticed(compare, others)
    state = new
  model = cases.algorithm("fedpm", "cnn").model(state)
  uniform = noise(
    jax.random.fold_in(jax.random.key(11), 3), {name: w.shape for name, w in drawn.items()}
  )
  for name in NAMES:
    chances = np.asarray(state.variables["params"][name]["kernel"])
    expected = np.where(uniform[name] < chances, drawn[name], 0)
    np.testing.assert_allclose(model["params"][name]["kernel"], expected, rtol=1e-6)


def test_a_mask_is_sent_as_bits():
  state = cases.trained("fedpm", "cnn")
  upload, metrics = cases.run_client("fedpm", "cnn", state, 3)
  received = cases.algorithm("fedpm", "cnn").broadcast(state).variables

  def with_masks(variables, is_kept):
    kernels, rebuild = trees.split_prunable(variables["params"])
    return jax.device_get({**variables, "params": rebuild([is_kept(leaf) for leaf in kernels])})

  plain = jax.tree.map(lambda leaf: np.asarray(leaf / upload.weight), upload.variables)
  sent = with_masks(plain, lambda mask: mask > 0)
  likely = with_masks(received, lambda chance: chance >= 0.5)
  expected = len(codec.encode(sent, likely))
  assert total(metrics["round_uplink_bytes"].value) == expected
  masks = cases.flat_kernels(plain["params"])
  assert set(np.unique(masks)) == {0, 1} and 0.2 < masks.mean() < 0.8
  others = sum(leaf.size for leaf in jax.tree.leaves(plain)) - masks.size
  assert expected < masks.size / 8 + 4 * others + 100
  _, row = cases.server("fedpm", "cnn")(state, upload)
  assert 0.2 < row["prunable_sparsity"] < 0.8


def test_counts_begin_anew_although_nobody_took_part_then():
  state = cases.start("fedpm", "mlp", cases.hyper("fedpm", fedpm_reset_every=2.0))
  upload, _ = cases.run_cohort("fedpm", "mlp", state, (3, 0, 5))
  nothing = jax.tree.map(jnp.zeros_like, upload)
  share = upload.weight / sum(cases.SIZES)
  for sent, rounds_counted in ((upload, 1), (upload, 2), (nothing, 2), (upload, 1), (upload, 1)):
    state, _ = cases.server("fedpm", "mlp")(state, sent)
    np.testing.assert_allclose(state.extra.total, rounds_counted * share, rtol=1e-5)


@pytest.mark.parametrize("server", ["momentum", "adam"])
def test_probabilities_stay_within_bounds(server):
  state = cases.start("fedpm", "mlp", server=server)
  for i in range(4):
    upload, _ = cases.run_cohort("fedpm", "mlp", state, (3, 0, 5), key=jax.random.key(i))
    state, _ = cases.serve("fedpm", "mlp", state, upload, server)
  chances = cases.flat_kernels(state.variables["params"])
  assert chances.min() >= 0 and chances.max() <= 1 and chances.std() > 0.05
