"""SparsyFed, Top-K and FedAvg on `cases.TinyCNN`, slow and plain, in NumPy's float64.

Written from the papers: one client, one batch of examples without padding, one layer at a time.
From the library comes only the order of the examples. Without pruned activations and with beta = 1
it is Top-K, and with density = 1 besides FedAvg.
"""

from typing import NamedTuple

import jax
import numpy as np

from sparsyfed_jax.data.batches import shuffle

# Name, stride and padding; a dense layer is a 1x1 convolution of a 1x1 image.
LAYERS = (("Conv_0", 1, 1), ("Conv_1", 2, 1), ("Conv_2", 1, 0), ("Dense_0", 1, 0))


class Method(NamedTuple):
  """What a client does."""

  beta: float
  density: float  # of the upload
  prunes_activations: bool
  floor: float
  lr: float
  weight_decay: float


def run_round(method, params, clients, x, y, server_lr):
  """Runs a round.

  Args:
    method: a Method.
    params: {layer: {"kernel", "bias"}}.
    clients: a list of (size, batches), where batches are the rows of x and y in each step.
    x: all examples.
    y: their classes.
    server_lr: of the server's gradient descent.

  Returns:
    The new params, the mean training loss, the mean client regrowth.
  """
  theta = _map(lambda leaf: np.asarray(leaf, np.float64), params)
  mean = _map(np.zeros_like, theta)
  num_examples = sum(size for size, _ in clients)
  losses, regrowth = [], 0.0
  for size, batches in clients:
    share = size / num_examples
    end, seen = train(method, theta, x, y, batches)
    end = top_k(end, method.density)
    mean = _map(lambda total, leaf, p=share: total + p * leaf, mean, end)
    losses += seen
    grown = [(theta[name]["kernel"] == 0) & (end[name]["kernel"] != 0) for name in theta]
    regrowth += share * np.concatenate([leaf.reshape(-1) for leaf in grown]).mean()

  def step(old, goal):
    return np.where(goal == 0, 0, old - server_lr * (old - goal))

  return _map(step, theta, mean), np.mean(losses), regrowth


def train(method, theta, x, y, batches):
  """Trains one client; returns its parameters and the loss of each example seen."""
  losses = []
  for rows in batches:
    gradient, batch_losses = _gradient(method, theta, x[rows], y[rows])
    losses.extend(batch_losses)
    theta = _map(lambda t, g: t - method.lr * (g + method.weight_decay * t), theta, gradient)
  return theta, losses


def top_k(theta, density):
  """Keeps the round(density * N) largest of all kernels' N magnitudes."""
  magnitudes = np.concatenate([np.abs(layer["kernel"]).reshape(-1) for layer in theta.values()])
  kept = int(np.round(density * magnitudes.size))
  threshold = np.sort(magnitudes)[::-1][kept - 1]

  def prune(leaf):
    return np.where(np.abs(leaf) >= threshold, leaf, 0)

  return {name: {**layer, "kernel": prune(layer["kernel"])} for name, layer in theta.items()}


def batches_of(data, key, epochs, batch_size):
  """Lists the rows of each batch of a client, in the library's order."""
  orders = [
    np.asarray(shuffle(jax.random.fold_in(key, epoch), data).indices)[: int(data.size)]
    for epoch in range(epochs)
  ]
  return [order[i : i + batch_size] for order in orders for i in range(0, len(order), batch_size)]


def _gradient(method, theta, x, y):
  weights = {name: _psi(theta[name]["kernel"], method.beta) for name in theta}
  inputs, outputs, h = [], [], np.asarray(x, np.float64)
  for name, stride, padding in LAYERS:
    w = weights[name]
    if w.ndim == 2:
      h, w = h.reshape(len(h), 1, 1, -1), w[None, None]
    inputs.append(h)
    outputs.append(_conv(h, w, stride, padding) + theta[name]["bias"])
    h = np.maximum(outputs[-1], 0)
  logits = outputs[-1].reshape(len(y), -1)
  odds = np.exp(logits - logits.max(1, keepdims=True))
  probabilities = odds / odds.sum(1, keepdims=True)
  losses = -np.log(probabilities[np.arange(len(y)), y])
  g = ((probabilities - np.eye(logits.shape[1])[y]) / len(y)).reshape(outputs[-1].shape)

  gradient = {}
  for i in reversed(range(len(LAYERS))):
    name, stride, padding = LAYERS[i]
    w = weights[name]
    kept = inputs[i]
    if method.prunes_activations:
      kept = _prune_activations(kept, np.count_nonzero(w), w.size, method.floor)
    shape = w.shape if w.ndim == 4 else (1, 1, *w.shape)
    dw = _conv_dw(kept, g, shape, stride, padding).reshape(w.shape)
    gradient[name] = {
      "kernel": dw * _dpsi(theta[name]["kernel"], method.beta),
      "bias": g.sum((0, 1, 2)),
    }
    if i > 0:
      dx = _conv_dx(g, w.reshape(shape), inputs[i].shape, stride, padding)
      g = dx.reshape(outputs[i - 1].shape) * (outputs[i - 1] > 0)
  return gradient, losses


def _psi(theta, beta):
  return np.sign(theta) * np.abs(theta) ** beta


def _dpsi(theta, beta):
  return beta * np.abs(theta) ** (beta - 1)  # 0.0 ** 0.0 is 1


def _prune_activations(x, num_nonzero, size, floor):
  k = max(-(-x.size * num_nonzero // size), int(np.ceil(np.float32(floor) * np.float32(x.size))))
  threshold = np.sort(np.abs(x).reshape(-1))[::-1][k - 1]
  return np.where(np.abs(x) >= threshold, x, 0)


def _windows(x, window, stride, padding):
  """Yields each position of the kernel and what all windows have there, as a view."""
  side = (x.shape[1] - window) // stride + 1
  for i in range(window):
    for j in range(window):
      yield i, j, x[:, i : i + stride * side : stride, j : j + stride * side : stride]


def _pad(x, padding):
  return np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _conv(x, w, stride, padding):
  x = _pad(x, padding)
  return sum(view @ w[i, j] for i, j, view in _windows(x, len(w), stride, padding))


def _conv_dw(x, g, shape, stride, padding):
  dw = np.zeros(shape)
  for i, j, view in _windows(_pad(x, padding), shape[0], stride, padding):
    dw[i, j] = np.einsum("bhwc,bhwo->co", view, g)
  return dw


def _conv_dx(g, w, shape, stride, padding):
  dx = _pad(np.zeros(shape), padding)
  for i, j, view in _windows(dx, len(w), stride, padding):
    view += g @ w[i, j].T
  return dx[:, padding : dx.shape[1] - padding, padding : dx.shape[2] - padding]


def _map(fn, *trees):
  return {
    name: {leaf: fn(*(tree[name][leaf] for tree in trees)) for leaf in trees[0][name]}
    for name in trees[0]
  }
