"""What clients keep between rounds, on `cases.TinyCNN`, in NumPy's float64 and from the papers."""

import numpy as np

from tests.algorithms import reference
from tests.algorithms.reference_net import NAMES, Rule, each


def scaffold_round(method, number, params, control, own, clients, epochs, total_weight):
  """Runs a round of SCAFFOLD, algorithm 1 with option II.

  Args:
    method: a `reference.Method`.
    number: of the round, from 1.
    params: {layer: {"kernel", "bias"}}.
    control: the server's c, like params.
    own: each client's c_i by its number; those of the round are replaced.
    clients: {number: `reference.Client`} of those that take part.
    epochs: of each client.
    total_weight: the examples of all clients there are.

  Returns:
    The new params and the new c.
  """
  theta, rate = reference.double(params), method.rate(number)
  mean, moved = each(np.zeros_like, theta), control
  for key, share in _shares(clients):
    correction = each(np.subtract, control, own[key])

    def correct(y, epoch, correction=correction):
      return y if epoch is not None else each(lambda a, b: a - rate * b, y, correction)

    client = clients[key]
    end, _ = reference.train(method, number, client, theta, Rule(), epochs, correct)
    num_steps = sum(map(len, client.epochs[:epochs]))
    gradient = each(lambda x, y, k=num_steps: (x - y) / (k * rate), theta, end)
    new = each(lambda a, b, g: a - b + g, own[key], control, gradient)
    part = client.size / total_weight
    moved = each(lambda c, a, b, p=part: c + p * (a - b), moved, new, own[key])
    mean = each(lambda total, leaf, p=share: total + p * leaf, mean, end)
    own[key] = new
  return reference.server_step(method, theta, mean), moved


class Regularised(Rule):
  """Adds `-<gradient, y> + alpha / 2 * |y - start|^2` to the loss."""

  def __init__(self, start, gradient, alpha):
    self._start, self._gradient, self._alpha = start, gradient, alpha

  def penalty(self, theta):
    return each(lambda y, g, w: -g + self._alpha * (y - w), theta, self._gradient, self._start)


def feddyn_round(method, number, params, h, own, clients, epochs, total_weight):
  """Runs a round of FedDyn, algorithm 1; arguments and results as in `scaffold_round`.

  Args:
    h: the server's, like params.
    own: each client's gradient by its number.
  """
  theta, alpha = reference.double(params), method.values["feddyn_alpha"]
  mean, moved = each(np.zeros_like, theta), h
  for key, share in _shares(clients):
    rule = Regularised(theta, own[key], alpha)
    end, _ = reference.train(method, number, clients[key], theta, rule, epochs)
    own[key] = each(lambda g, y, w: g - alpha * (y - w), own[key], end, theta)
    part = clients[key].size / total_weight
    moved = each(lambda a, y, w, p=part: a - alpha * p * (y - w), moved, end, theta)
    mean = each(lambda total, leaf, p=share: total + p * leaf, mean, end)
  goal = each(lambda a, b: a - b / alpha, mean, moved)
  return reference.server_step(method, theta, goal), moved


def feedback_round(method, number, params, rest, clients, epochs):
  """Runs a round of SparsyFed whose clients add what they have not sent to their next changes.

  Args:
    method, number, params, clients, epochs: as in `scaffold_round`.
    rest: {layer: array} of kernels by client; those of the round are replaced.

  Returns:
    The new params.
  """
  theta = reference.double(params)
  mean = each(np.zeros_like, theta)
  for key, share in _shares(clients):
    rule = reference.client_rule(method, theta)
    end, _ = reference.train(method, number, clients[key], theta, rule, epochs)
    changes = each(np.subtract, end, theta)
    for name in NAMES:
      changes[name]["kernel"] = changes[name]["kernel"] + rest[key][name]
    sent = reference.masked(changes, reference.largest_of_all(changes, method.values["density"]))
    rest[key] = {name: changes[name]["kernel"] - sent[name]["kernel"] for name in NAMES}
    mean = each(lambda total, t, s, p=share: total + p * (t + s), mean, theta, sent)
  return reference.server_step(method, theta, mean)


def _shares(clients):
  total = sum(client.size for client in clients.values())
  return [(key, client.size / total) for key, client in clients.items() if client.size > 0]
