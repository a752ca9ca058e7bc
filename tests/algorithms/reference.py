"""FedAvg, Top-K, SparsyFed and ZeroFL on `cases.TinyCNN`, slow and plain, in NumPy's float64.

Written from the papers: one client, one batch of examples without padding, one layer at a time.
From the library comes only the order of the examples. `reference_masked` has the methods whose
masks are part of the server's state.
"""

import re
from fractions import Fraction
from math import ceil
from typing import NamedTuple

import jax
import numpy as np

from sparsyfed_jax.data.shuffle import shuffle
from sparsyfed_jax.types import ClientData, Key
from tests.algorithms.reference_net import NAMES, Rule, each, loss_gradient, replace_kernels


class Method(NamedTuple):
  """A method's name, its options and the fields of `Hyper` as plain numbers."""

  name: str
  options: dict[str, str]
  values: dict[str, float]

  def has(self, option, value):
    return self.options.get(option) == value

  def rate(self, number):
    """The clients' learning rate in a round, counted from 1."""
    share = number / self.values["rounds"]
    return self.values["client_lr"] ** (1 - share) * self.values["client_lr_final"] ** share


class Batch(NamedTuple):
  """Examples of one step."""

  x: np.ndarray
  y: np.ndarray


class Client(NamedTuple):
  """One client of a round."""

  size: int
  epochs: list[list[Batch]]
  single: list[Batch]  # of a client that does not train, which takes the first
  keys: list[Key]  # one for each epoch


def make_client(data: ClientData, key: Key, batch_size: int, epochs: int) -> Client:
  """Puts a client's examples in the library's order."""
  size = int(data.size)
  x, y = np.asarray(data.x), np.asarray(data.y)

  def batches(key):
    order = np.asarray(shuffle(key, data).indices)[:size]
    rows = [order[i : i + batch_size] for i in range(0, size, batch_size)]
    return [Batch(x[one], y[one]) for one in rows]

  keys = [jax.random.fold_in(key, epoch) for epoch in range(epochs)]
  return Client(size, [batches(one) for one in keys], batches(key), keys)


class Report(NamedTuple):
  """What a round's clients measured: means over the examples seen and over the clients."""

  loss: float
  regrowth: float


def run_round(method, number, params, clients, epochs):
  """Runs a round.

  Args:
    method: a Method.
    number: of the round, from 1.
    params: {layer: {"kernel", "bias"}}.
    clients: a list of Client.
    epochs: of each client.

  Returns:
    The new params, and a Report.
  """
  theta = double(params)
  mean = each(np.zeros_like, theta)
  losses, regrown = [], 0.0
  for client, share in shares(clients):
    end, seen = train(method, number, client, theta, client_rule(method, theta), epochs)
    sent = upload(method, theta, end)
    mean = each(lambda total, leaf, p=share: total + p * leaf, mean, sent)
    losses += seen
    regrown += share * regrowth(theta, sent)
  return server_step(method, theta, mean), Report(np.mean(losses), regrown)


def double(params):
  return each(lambda leaf: np.asarray(leaf, np.float64), params)


def shares(clients):
  """Pairs each client that has an example with its share of the examples."""
  total = sum(client.size for client in clients)
  return [(client, client.size / total) for client in clients if client.size > 0]


def train(method, number, client, theta, rule, epochs, change=lambda theta, epoch: theta):
  """Trains one client; returns its parameters and the loss of each example seen.

  Args:
    method, number, client: as in `run_round`.
    theta: what it starts from.
    rule: how its layers compute.
    epochs: how many.
    change: what happens after each step, with `epoch` None, and after each epoch.
  """
  rate, decay = method.rate(number), method.values["weight_decay"]
  losses, step = [], 0
  for epoch in range(epochs):
    for x, y in client.epochs[epoch]:
      theta = rule.before_step(theta)
      gradient, batch_losses = loss_gradient(rule, theta, x, y)
      losses.extend(batch_losses)
      gradient = each(np.add, gradient, rule.penalty(theta))
      speed = rate * rule.speed(theta, step)
      theta = each(lambda t, g, r=speed: t - r * (g + decay * t), theta, gradient)
      step += 1
      theta = change(theta, None)
    theta = change(theta, epoch)
  return theta, losses


def server_step(method, theta, goal):
  """Gradient descent towards the goal; what is 0 there becomes 0."""
  rate = method.values["server_lr"]
  moved = each(lambda old, new: old - rate * (old - new), theta, goal)
  return replace_kernels(
    moved,
    {name: np.where(goal[name]["kernel"] == 0, 0, moved[name]["kernel"]) for name in NAMES},
  )


def regrowth(before, after):
  """The share of the kernels' entries that are 0 before and not after."""
  return np.mean((flat(before) == 0) & (flat(after) != 0))


def flat(theta):
  return np.concatenate([theta[name]["kernel"].reshape(-1) for name in NAMES])


def cut(magnitudes, kept):
  """The kept-th largest of an array."""
  return np.sort(magnitudes, axis=None)[::-1][kept - 1]


def largest(magnitudes, kept):
  """Marks the largest entries of an array, ties too, zeros never."""
  if kept == 0:
    return np.zeros(magnitudes.shape, bool)
  return (magnitudes > 0) & (magnitudes >= cut(magnitudes, kept))


def exact(share):
  """A share as the decimal it stands for, if it is one of up to six places."""
  millionths = round(share * 10**6)
  return Fraction(millionths, 10**6) if abs(share * 10**6 - millionths) < 1e-6 else Fraction(share)


def budget(share, size):
  """A layer's number of weights: without round(sparsity * size), half to even."""
  return size - round((1 - min(exact(share), 1)) * size)


def largest_of_all(theta, density, without=()):
  """Marks the largest magnitudes of kernels together; returns {layer: mask}."""
  names = [name for name in NAMES if name not in without]
  magnitudes = np.abs(np.concatenate([theta[name]["kernel"].reshape(-1) for name in names]))
  chosen = largest(magnitudes, budget(density, magnitudes.size))
  sizes = [theta[name]["kernel"].size for name in names]
  parts = np.split(chosen, np.cumsum(sizes)[:-1])
  return {
    name: part.reshape(theta[name]["kernel"].shape) for name, part in zip(names, parts, strict=True)
  }


def largest_of_each(theta, densities):
  """Marks the largest magnitudes of each kernel; densities: {layer: share}."""
  kernels = {name: np.abs(theta[name]["kernel"]) for name in NAMES}
  return {name: largest(w, budget(densities[name], w.size)) for name, w in kernels.items()}


def masked(theta, masks):
  """Sets the kernels' entries outside the masks to 0."""
  return replace_kernels(
    theta, {name: np.where(masks[name], theta[name]["kernel"], 0) for name in NAMES}
  )


def share_of(x, share):
  """How many of the activations are at least a share of them."""
  return ceil(exact(share) * x.size)


def client_rule(method, theta):
  """Makes the rule by which a client computes in a round; theta: what it received."""
  if method.name == "sparsyfed":
    return SparsyFed(method, theta)
  if method.name == "zerofl":
    return InPlace(method, theta) if method.has("form", "comparison") else Swat(method)
  return Rule()


def upload(method, start, end):
  """Makes a client's parameters as the server reads them: changes are added to the start."""
  density = method.values["density"]
  if method.name == "fedavg":
    return end
  changes = each(np.subtract, end, start)
  if method.name in ("topk", "sparsyfed"):
    if not method.has("upload", "changes"):
      return masked(end, largest_of_all(end, density))
    sent = masked(changes, largest_of_all(changes, density))
    return each(np.add, start, sent)
  density += method.values["zerofl_mask_ratio"]
  if method.has("form", "comparison"):
    return masked(end, largest_of_all(end, density))
  by_layer = dict.fromkeys(NAMES, density)
  if method.has("uplink", "masked_changes"):
    return each(np.add, start, masked(changes, largest_of_each(end, by_layer)))
  if method.has("uplink", "changes"):
    return each(np.add, start, masked(changes, largest_of_each(changes, by_layer)))
  return masked(end, largest_of_each(end, by_layer))


def start(method, params):
  """Makes the server's first parameters of a plain initialisation."""
  theta = double(params)
  if method.name == "fedpm":  # probabilities, before any mask is known
    return replace_kernels(
      theta, {name: np.full_like(theta[name]["kernel"], 0.5) for name in NAMES}
    )
  if method.name == "spafl":  # thresholds
    return {name: np.zeros(theta[name]["kernel"].shape[-1]) for name in NAMES}
  if method.name != "sparsyfed" or method.has("reparameterisation", "spectral"):
    return theta
  betas = SparsyFed(method, theta).betas
  return replace_kernels(
    theta, {name: power(theta[name]["kernel"], 1 / betas[name]) for name in NAMES}
  )


def model(method, params):
  """Makes the parameters with which the plain model predicts."""
  theta = double(params)
  rule = client_rule(method, theta)
  return replace_kernels(theta, {name: rule.weights(name, theta[name]["kernel"]) for name in NAMES})


def power(u, exponent):
  return np.sign(u) * np.abs(u) ** exponent


class SparsyFed(Rule):
  """Powers of the parameters, and the largest inputs for their gradient."""

  def __init__(self, method, theta):
    self._floor = method.values["activation_floor"]
    self._first_batch = method.has("activation_threshold", "first_batch")
    self._thresholds = {}
    excluded = method.options.get("reparam_exclude")
    self._plain = [name for name in NAMES if excluded and re.search(excluded, name)]
    self.betas = dict.fromkeys(NAMES, method.values["beta"])
    if method.has("reparameterisation", "spectral"):
      self.betas = {name: _spectral(theta[name]["kernel"]) for name in NAMES}
    self.betas |= dict.fromkeys(self._plain, 1.0)

  def weights(self, name, kernel):
    return power(kernel, self.betas[name])

  def slope(self, name, kernel):
    beta = self.betas[name]
    return beta * np.abs(kernel) ** (beta - 1)  # 0.0 ** 0.0 is 1

  def inputs(self, name, weights, x):
    if name in self._plain:
      return x
    in_proportion = -(-x.size * np.count_nonzero(weights) // weights.size)
    threshold = cut(np.abs(x), max(in_proportion, share_of(x, self._floor)))
    # Of a dense layer nothing is pruned, and nothing remembered.
    if self._first_batch and weights.ndim == 4 and np.any(weights == 0):
      threshold = self._thresholds.setdefault(name, threshold)
    return np.where(np.abs(x) >= threshold, x, 0)


def _spectral(kernel):
  magnitudes = np.abs(kernel).reshape(-1, kernel.shape[-1])
  return 1 + magnitudes.mean() / np.linalg.svd(magnitudes, compute_uv=False)[0]


class Swat(Rule):
  """ZeroFL of the paper: sparse products, dense weights, all but the first layer."""

  def __init__(self, method):
    self._share = method.values["density"]

  def weights(self, name, kernel):
    if name == NAMES[0]:
      return kernel
    return np.where(largest(np.abs(kernel), budget(self._share, kernel.size)), kernel, 0)

  def inputs(self, name, weights, x):
    if name == NAMES[0]:
      return x
    return np.where(largest(np.abs(x), share_of(x, self._share)), x, 0)


class InPlace(Rule):
  """ZeroFL of SparsyFed's comparison: the stored weights are set to 0."""

  def __init__(self, method, theta):
    self._share = method.values["density"]
    self._weight_cuts = {}
    self._input_cuts = {}
    for name in NAMES:
      w = np.abs(theta[name]["kernel"])
      self._weight_cuts[name] = cut(w, share_of(w, self._share))

  def before_step(self, theta):
    masks = {}
    for name in NAMES:
      w = np.abs(theta[name]["kernel"])
      if name == NAMES[0]:
        masks[name] = np.ones(w.shape, bool)
      elif w.ndim == 4:
        masks[name] = w >= self._weight_cuts[name]
      else:
        masks[name] = largest(w, share_of(w, self._share))
    return masked(theta, masks)

  def inputs(self, name, weights, x):
    if name == NAMES[0]:
      return x
    threshold = cut(np.abs(x), share_of(x, self._share))
    if weights.ndim == 4:
      threshold = self._input_cuts.setdefault(name, threshold)
    return np.where(np.abs(x) >= threshold, x, 0)
