"""Methods whose server readjusts the masks by what clients find, as plain as `reference`."""

import jax
import numpy as np

from tests.algorithms.reference import (
  Report,
  budget,
  cut,
  double,
  largest,
  masked,
  server_step,
  share_of,
  shares,
  train,
)
from tests.algorithms.reference_masked import Round, erk, exactly, exchange, kind
from tests.algorithms.reference_net import NAMES, Rule, each, loss_gradient, replace_kernels

START_KEY = jax.random.key(11)  # of `cases.start`


def run_round(method, number, params, masks, extra, clients, epochs):
  """Runs a round, as `reference_masked.run_round` does."""
  theta = double(params)
  budgets = Budgets(method, number, theta)
  is_due = kind(method, number) == "readjust"
  goal, losses = each(np.zeros_like, theta), []
  scores, votes = ({name: np.zeros(masks[name].shape) for name in NAMES} for _ in range(2))
  for client, share in shares(clients):
    rule = Rule()
    if method.name == "fedmef":
      steps = sum(map(len, client.epochs[:epochs]))
      rule = Extruding(method, budgets.lowest(theta, masks) if is_due else None, steps)
    end, seen = train(
      method, number, client, theta, rule, epochs, lambda one, epoch: masked(one, masks)
    )
    losses.extend(seen)
    goal = each(lambda total, leaf, p=share: total + p * leaf, goal, end)
    own = budgets.survivors(end, masks)
    votes = {name: votes[name] + share * own[name] for name in NAMES}
    if is_due:
      gradient, _ = loss_gradient(Rule(), end, *client.epochs[epochs - 1][-1])
      for name in NAMES:
        outside = np.where(masks[name], 0, gradient[name]["kernel"])
        scores[name] += share * _sent(method, outside, budgets.exchanged(name))
  new = server_step(method, theta, goal)
  report = Report(np.mean(losses), 0.0)
  if method.name == "fedrts":
    best = budgets.survivors(new, masks)
    trust = method.values["fedrts_trust"]
    inside = {name: (1 - trust) * best[name] + trust * votes[name] for name in NAMES}
    outside = {name: (1 - trust) / 2 + trust * scores[name] for name in NAMES}
    extra = _learn(method, extra, masks, inside, outside if is_due else None)
    chosen = _draw(extra, number, budgets.whole) if is_due else masks
    return Round(masked(new, chosen), exactly(chosen), extra, report)
  if not is_due:
    return Round(new, exactly(masks), extra, report)
  new, chosen = budgets.exchange(new, masks, scores)
  return Round(new, exactly(chosen), extra, report)


def _sent(method, gradient, number):
  """What a client sends of a layer's gradient outside the mask."""
  if method.name == "prunefl":
    return gradient**2
  chosen = largest(np.abs(gradient), number)
  return chosen if method.name == "fedrts" else np.where(chosen, gradient, 0)


def _learn(method, beliefs, masks, inside, outside):
  """Adds the outcomes of a round to each weight's successes and failures; lists of arrays."""
  strength, learned = method.values["fedrts_strength"], ([], [])
  for name, a, b in zip(NAMES, *beliefs, strict=True):
    a, b, mask = np.array(a, np.float64), np.array(b, np.float64), masks[name]
    outcomes = [(mask, inside)] if outside is None else [(mask, inside), (~mask, outside)]
    for where, outcome in outcomes:
      a[where] += strength * outcome[name][where]
      b[where] += strength * (1 - outcome[name][where])
    learned[0].append(a)
    learned[1].append(b)
  return learned


def _draw(beliefs, number, counts):
  """Marks the largest of the library's draws."""
  keys = jax.random.split(jax.random.fold_in(START_KEY, number - 1), len(NAMES))
  chosen = {}
  for name, key, a, b in zip(NAMES, keys, *beliefs, strict=True):
    draws = np.asarray(jax.random.beta(key, a.astype(np.float32), b.astype(np.float32)))
    chosen[name] = largest(draws, counts[name])
  return chosen


class Budgets:
  """How many weights of each layer are in the mask, and stay there."""

  def __init__(self, method, number, theta):
    progress = min(number / method.values[f"{method.name}_update_until"], 1)
    rate = method.values[f"{method.name}_drop_rate"] / 2 * (1 + np.cos(np.pi * progress))
    densities = erk(theta, method.values["density"])
    sizes = {name: theta[name]["kernel"].size for name in NAMES}
    self.whole = {name: budget(densities[name], sizes[name]) for name in NAMES}
    self.stay = {name: budget(densities[name] * (1 - rate), sizes[name]) for name in NAMES}

  def exchanged(self, name):
    return self.whole[name] - self.stay[name]

  def survivors(self, theta, masks):
    """The largest weights of each layer."""
    magnitudes = {name: np.abs(theta[name]["kernel"]) for name in NAMES}
    return {
      name: largest(np.where(masks[name], magnitudes[name], 0), self.stay[name]) for name in NAMES
    }

  def lowest(self, theta, masks):
    """The others of the mask."""
    kept = self.survivors(theta, masks)
    return {name: masks[name] & ~kept[name] for name in NAMES}

  def exchange(self, theta, masks, scores):
    """Drops the smallest weights, and grows, from 0, where scores are large."""
    kept, grown = {}, {}
    for name in NAMES:
      w = np.where(masks[name], np.abs(theta[name]["kernel"]), 0)
      counts = self.whole[name], self.stay[name]
      kept[name], new = exchange(w, np.abs(scores[name]), *counts)
      grown[name] = kept[name] | new
    return masked(theta, kept), grown


class Extruding(Rule):
  """FedMef: pruned activations and, in rounds that end in a readjustment, extrusion."""

  def __init__(self, method, lowest, num_steps):
    self._values, self._is_norm = method.values, method.has("penalty", "norm")
    self._lowest, self._num_steps = lowest, num_steps

  def inputs(self, name, weights, x):
    threshold = cut(np.abs(x), share_of(x, 1 - self._values["fedmef_activation_sparsity"]))
    return np.where(np.abs(x) >= threshold, x, 0)

  def penalty(self, theta):
    slopes = {name: np.zeros(theta[name]["kernel"].shape) for name in NAMES}
    if self._lowest is not None:
      for name, w in self._low(theta).items():
        length = np.sqrt(np.sum(w**2))
        slope = w / length if self._is_norm and length > 0 else 2 * w
        slopes[name] = self._values["fedmef_extrusion"] * slope
    return replace_kernels(each(np.zeros_like, theta), slopes)

  def speed(self, theta, step):
    if self._lowest is None:
      return 1.0
    rest = sum(np.abs(w).sum() for w in self._low(theta).values())
    z = step / self._num_steps
    decay = (1 - z) / (1 / 2 + (1 - z) / 2)
    raised = self._values["fedmef_boost"] * decay * (2 / (1 + np.exp(-rest)) - 1)
    return min(self._values["fedmef_boost_limit"], max(1.0, raised))

  def _low(self, theta):
    return {name: np.where(self._lowest[name], theta[name]["kernel"], 0) for name in NAMES}
