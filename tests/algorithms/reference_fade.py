"""FedFade, as plain as `reference`."""

import jax
import numpy as np

from sparsyfed_jax.fed.pruning import positive_noise
from tests.algorithms.reference import (
  Report,
  budget,
  double,
  largest,
  masked,
  power,
  server_step,
  shares,
  train,
)
from tests.algorithms.reference_masked import Round, erk, exactly
from tests.algorithms.reference_net import NAMES, Rule, each, loss_gradient, replace_kernels

START_KEY = jax.random.key(11)  # of `cases.start`


def start(method, params):
  """Makes the server's first parameters and masks."""
  fade = Fade(method, 1, double(params))
  masks = choose(fade.kernels(fade.drawn), *fade.budget(0))
  theta = {name: power(w, 1 / fade.beta) for name, w in fade.kernels(fade.drawn).items()}
  started = masked(replace_kernels(fade.drawn, theta), masks)
  return fade.with_biases(started, masks, 1, each(np.zeros_like, started)), exactly(masks)


def kind(method, number):
  """Says what happens in a round besides training inside the masks."""
  values = method.values
  is_due = number % values["fedfade_update_every"] == 0
  return "readjust" if is_due and number < values["fedfade_update_until"] else "train"


def run_round(method, number, params, masks, drawn, clients, epochs):
  """Runs a round, as `reference_masked.run_round` does; `drawn` are the parameters as drawn."""
  fade, theta, what = Fade(method, number, double(drawn)), double(params), kind(method, number)
  behind = fade.background(number)
  goal, losses, votes = each(np.zeros_like, theta), [], fade.nothing()
  for client, share in shares(clients):
    begin = fade.with_biases(theta, masks, number, behind)
    end, seen = train(
      method,
      number,
      client,
      begin,
      Composed(fade, masks, behind),
      epochs,
      lambda one, epoch: fade.with_biases(one, masks, number, behind),
    )
    losses.extend(seen)
    if what == "readjust":
      composed = replace_kernels(end, fade.composed(end, masks, behind))
      gradient, _ = loss_gradient(Rule(), composed, *client.epochs[epochs - 1][-1])
      outside = {name: np.where(masks[name], 0, gradient[name]["kernel"]) for name in NAMES}
      (least, most), (stay, stays) = fade.budget(0), fade.budget(fade.rate)
      chosen = choose(outside, {n: least[n] - stay[n] for n in NAMES}, most - stays)
      votes = {name: votes[name] + share * chosen[name] for name in NAMES}
    sent = fade.with_biases(masked(end, masks), masks, number, each(np.zeros_like, end))
    goal = each(lambda total, leaf, p=share: total + p * leaf, goal, sent)
  new, chosen = server_step(method, theta, goal), masks
  after = fade.background(number + 1)
  if what == "readjust":
    chosen = _exchanged(fade, new, masks, after, votes, number)
  kernels = {}
  for name in NAMES:
    begun = power(after[name]["kernel"], 1 / fade.beta)
    if method.has("grows", "zero"):
      begun = np.zeros_like(begun)
    kernels[name] = np.where(masks[name], new[name]["kernel"], begun)
  new = masked(replace_kernels(new, kernels), chosen)
  new = fade.with_biases(new, masks, number, after)
  new = fade.with_biases(new, chosen, number + 1, each(np.zeros_like, new))
  return Round(new, exactly(chosen), drawn, Report(np.mean(losses), 0.0))


def _exchanged(fade, theta, masks, behind, votes, number):
  """Drops a share of the weights, and grows those of most votes."""
  worth = {}
  for name in NAMES:
    weight = power(theta[name]["kernel"], fade.beta)
    if not fade.method.has("drops", "smallest"):
      weight = weight - behind[name]["kernel"]
    worth[name] = np.where(masks[name], weight, 0)
  kept = choose(worth, *fade.budget(fade.rate))
  keys = jax.random.split(jax.random.fold_in(START_KEY, number - 1), len(NAMES))
  ranks = {}
  for name, key in zip(NAMES, keys, strict=True):
    noise = np.asarray(positive_noise(key, votes[name].shape), np.float64)
    ranks[name] = np.where(masks[name], 0, votes[name] * (1 + noise / 1000))
  least, most = fade.budget(0)

  def fill(scores):
    lacking = {name: least[name] - kept[name].sum() for name in NAMES}
    number = most - sum(mask.sum() for mask in kept.values())
    free = {name: np.where(kept[name], 0, scores[name]) for name in NAMES}
    more = choose(free, lacking, number)
    return {name: kept[name] | more[name] for name in NAMES}

  kept = fill(ranks)
  kept = fill(worth)
  return kept


def choose(scores, least, number):
  """Marks the largest of each layer, and then the largest of all others."""
  musts = {name: _largest(np.abs(scores[name]), least[name]) for name in NAMES}
  rest = [np.where(musts[name], 0, np.abs(scores[name])).reshape(-1) for name in NAMES]
  more = _largest(np.concatenate(rest), number - sum(must.sum() for must in musts.values()))
  parts = np.split(more, np.cumsum([len(one) for one in rest])[:-1])
  return {
    name: musts[name] | part.reshape(musts[name].shape)
    for name, part in zip(NAMES, parts, strict=True)
  }


def _largest(magnitudes, number):
  return largest(magnitudes, min(max(number, 0), magnitudes.size))


class Fade:
  """The numbers of a round, and what was drawn."""

  def __init__(self, method, number, drawn):
    self.method, self.drawn = method, drawn
    self._own = {
      name.removeprefix("fedfade_"): value
      for name, value in method.values.items()
      if name.startswith("fedfade_")
    }
    self.beta = self._own["beta"]
    progress = min(number / self._own["update_until"], 1)
    self.rate = self._own["drop_rate"] / 2 * (1 + np.cos(np.pi * progress))

  def kernels(self, theta):
    return {name: theta[name]["kernel"] for name in NAMES}

  def nothing(self):
    return {name: np.zeros(w.shape) for name, w in self.kernels(self.drawn).items()}

  def background(self, number):
    until = self._own["fade_until"]
    left = 0.0
    if number <= until:
      left = (1 - (number - 1) / until) ** self._own["fade_power"]
    return each(lambda leaf: left * leaf, self.drawn)

  def budget(self, rate):
    density = self.method.values["density"]
    sizes = {name: w.size for name, w in self.kernels(self.drawn).items()}
    by_layer = erk(self.drawn, density)
    least = {
      name: budget(by_layer[name] * self._own["floor"] * (1 - rate), sizes[name]) for name in NAMES
    }
    return least, budget(density * (1 - rate), sum(sizes.values()))

  def composed(self, theta, masks, behind):
    return {
      name: np.where(masks[name], power(theta[name]["kernel"], self.beta), behind[name]["kernel"])
      for name in NAMES
    }

  def with_biases(self, theta, masks, number, others):
    """Replaces the biases that are not trained in a round."""
    is_on = number > self._own["biases_from"]
    new = {}
    for name in NAMES:
      on = masks[name].reshape(-1, masks[name].shape[-1]).any(0) & is_on
      new[name] = {**theta[name], "bias": np.where(on, theta[name]["bias"], others[name]["bias"])}
    return new


class Composed(Rule):
  """Powers of the parameters inside the masks, and the background."""

  def __init__(self, fade, masks, behind):
    self._beta, self._masks, self._behind = fade.beta, masks, behind

  def weights(self, name, kernel):
    return np.where(self._masks[name], power(kernel, self._beta), self._behind[name]["kernel"])

  def slope(self, name, kernel):
    return np.where(self._masks[name], self._beta * np.abs(kernel) ** (self._beta - 1), 0)
