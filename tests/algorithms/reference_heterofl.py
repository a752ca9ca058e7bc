"""HeteroFL on `cases.TinyCNN`, slow and plain: models that are cut out, trained, and put back."""

from math import ceil

import jax
import numpy as np

from tests.algorithms.reference import Report, double, server_step, shares
from tests.algorithms.reference_net import NAMES, Rule, each, loss_gradient

_WIDTH = 2**31 - 1  # the library's key of the width that a client draws


def drawn_width(method, key):
  """The width that a client draws: a half, as often as one of equally many levels says."""
  levels = method.values["heterofl_levels"]
  return 0.5 ** int(float(jax.random.uniform(jax.random.fold_in(key, _WIDTH))) * levels)


def places(theta, width):
  """Lists which channels a client has, of inputs and of outputs, layer by layer."""
  found, before = {}, np.arange(theta["Conv_0"]["kernel"].shape[2])
  for name in NAMES:
    *_, num_inputs, num_outputs = theta[name]["kernel"].shape
    if name == "Dense_0":  # of images flattened with their channels last
      num_channels = theta["Conv_2"]["kernel"].shape[-1]
      pixels = np.arange(num_inputs).reshape(-1, num_channels)
      found[name] = pixels[:, before].reshape(-1), np.arange(num_outputs)
    else:
      after = np.arange(ceil(round(width * num_outputs, 6)))
      found[name] = before, after
      before = after
  return found


def cut(theta, where):
  return {
    name: {
      "kernel": theta[name]["kernel"][..., where[name][0], :][..., where[name][1]],
      "bias": theta[name]["bias"][where[name][1]],
    }
    for name in NAMES
  }


def run_round(method, number, params, clients, widths, epochs):
  """Runs a round, as `reference.run_round` does.

  Args:
    method, number, params, clients, epochs: as there.
    widths: of each client.

  Returns:
    The new params, and a Report.
  """
  theta = double(params)
  totals, counts = each(np.zeros_like, theta), each(np.zeros_like, theta)
  losses, by_client = [], dict(zip(map(id, clients), widths, strict=True))
  for client, share in shares(clients):
    where = places(theta, by_client[id(client)])
    own = np.arange(theta["Dense_0"]["bias"].size)
    if method.has("labels", "own"):
      own = np.unique([label for batch in client.epochs[0] for label in batch.y])
    end, seen = _train(
      method, number, client, cut(theta, where), by_client[id(client)], epochs, own
    )
    losses += seen
    for name in NAMES:
      inputs, outputs = where[name]
      if name == "Dense_0":
        outputs = own
        end[name] = {"kernel": end[name]["kernel"][:, own], "bias": end[name]["bias"][own]}
      place = (..., inputs[:, None], outputs[None])
      totals[name]["kernel"][place] += share * end[name]["kernel"]
      counts[name]["kernel"][place] += share
      totals[name]["bias"][outputs] += share * end[name]["bias"]
      counts[name]["bias"][outputs] += share
  goal = each(
    lambda total, count, old: np.where(count > 0, total / np.where(count > 0, count, 1), old),
    totals,
    counts,
    theta,
  )
  return server_step(method, theta, goal), Report(np.mean(losses), 0.0)


def _train(method, number, client, theta, width, epochs, own):
  """Trains a narrow model, whose hidden layers' outputs may be divided by its width."""
  rate, decay = method.rate(number), method.values["weight_decay"]
  divided = 1 / width if method.has("outputs", "divided") else 1.0
  scale = {name: 1.0 if name == "Dense_0" else divided for name in NAMES}
  lacks = np.setdiff1d(np.arange(theta["Dense_0"]["bias"].size), own)
  theta = _without(theta, lacks)
  losses = []
  for epoch in range(epochs):
    for x, y in client.epochs[epoch]:
      scaled = {n: {k: scale[n] * leaf for k, leaf in theta[n].items()} for n in NAMES}
      gradient, seen = loss_gradient(Rule(), scaled, x, y)
      losses.extend(seen)
      gradient = {n: {k: scale[n] * leaf for k, leaf in gradient[n].items()} for n in NAMES}
      gradient = _without(gradient, lacks)
      theta = each(lambda t, g: t - rate * (g + decay * t), theta, gradient)
  return theta, losses


def _without(theta, classes):
  """Sets what makes the logits of classes to 0."""
  last = {name: leaf.copy() for name, leaf in theta["Dense_0"].items()}
  for leaf in last.values():
    leaf[..., classes] = 0
  return {**theta, "Dense_0": last}
