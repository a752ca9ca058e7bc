"""What clients keep between rounds, on `cases.TinyCNN`, in NumPy's float64 and from the papers."""

import numpy as np

from tests.algorithms import reference
from tests.algorithms.reference_net import NAMES, Rule, each, replace_kernels


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


class Thresholds(Rule):
  """SpaFL: units are there whose mean magnitude is above a threshold, which is trained, too."""

  def __init__(self, coefficient):
    self._coefficient = coefficient

  def before_step(self, theta):
    self._thresholds = alive(theta, {name: theta[name]["threshold"] for name in NAMES})
    return {name: {**theta[name], "threshold": self._thresholds[name]} for name in NAMES}

  def weights(self, name, kernel):
    return kernel * (magnitudes(kernel) > self._thresholds[name])

  def gradient(self, name, kernel, dw):
    axes = tuple(range(kernel.ndim - 1))
    of_mask = (dw * kernel).sum(axes)
    is_left = magnitudes(kernel) > self._thresholds[name]
    of_kernel = dw * is_left + np.sign(kernel) * of_mask / (kernel.size // kernel.shape[-1])
    return {"kernel": of_kernel, "threshold": -of_mask}

  def penalty(self, theta):
    made = each(np.zeros_like, theta)
    for name in NAMES:
      made[name]["threshold"] = -self._coefficient * np.exp(-theta[name]["threshold"])
    return made


def magnitudes(kernel):
  """The mean magnitude of each output unit."""
  return np.stack([np.abs(kernel[..., unit]).mean() for unit in range(kernel.shape[-1])])


def alive(theta, thresholds):
  """Sets thresholds of layers to 0 of which a hundredth of the units is left, or less."""
  found = {}
  for name in NAMES:
    left = magnitudes(theta[name]["kernel"]) > thresholds[name]
    found[name] = thresholds[name] if left.mean() > 0.01 else 0 * thresholds[name]
  return found


def followed(params, before, now):
  """Moves weights as thresholds have moved."""
  kernels = {}
  for name in NAMES:
    kernel = params[name]["kernel"].copy()
    # A window, or the inputs of a dense layer.
    size = kernel.shape[0] * kernel.shape[1] if kernel.ndim == 4 else kernel.shape[0]
    for unit in range(kernel.shape[-1]):
      change = now[name][unit] - before[name][unit]
      kernel[..., unit] -= np.sign(kernel[..., unit].sum()) * change / size
    kernels[name] = kernel
  return replace_kernels(params, kernels)


def spafl_model(params, thresholds):
  """Makes the model of a client."""
  kept, found = alive(params, thresholds), {}
  for name in NAMES:
    kernel = params[name]["kernel"]
    found[name] = np.where(magnitudes(kernel) > kept[name], kernel, 0)
  return replace_kernels(params, found)


def spafl_round(method, number, thresholds, own, clients, epochs):
  """Runs a round of SpaFL.

  Args:
    method, number, clients, epochs: as in `scaffold_round`.
    thresholds: {layer: (units,)} of the server.
    own: of each client its params, the thresholds it began with, and those it ended with; those of
      the round are replaced.

  Returns:
    The new thresholds.
  """
  mean = {name: np.zeros_like(tau) for name, tau in thresholds.items()}
  for key, share in _shares(clients):
    params, received, _ = own[key]
    theta = followed(params, received, thresholds)
    theta = {name: {**theta[name], "threshold": thresholds[name]} for name in NAMES}
    rule = Thresholds(method.values["spafl_penalty"])
    end, _ = reference.train(method, number, clients[key], theta, rule, epochs)
    ended = {name: end[name].pop("threshold") for name in NAMES}
    own[key] = end, thresholds, ended
    mean = {name: mean[name] + share * ended[name] for name in NAMES}
  rate = method.values["server_lr"]
  return {name: thresholds[name] - rate * (thresholds[name] - mean[name]) for name in NAMES}


def _shares(clients):
  total = sum(client.size for client in clients.values())
  return [(key, client.size / total) for key, client in clients.items() if client.size > 0]
