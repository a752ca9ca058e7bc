"""`cases.TinyCNN` in NumPy's float64: loss and gradient, one layer at a time, without padding."""

import numpy as np

# Name, stride and padding; a dense layer is a 1x1 convolution of a 1x1 image.
LAYERS = (("Conv_0", 1, 1), ("Conv_1", 2, 1), ("Conv_2", 1, 0), ("Dense_0", 1, 0))
NAMES = tuple(name for name, *_ in LAYERS)


class Rule:
  """How a client's layers compute with their kernels: this one plainly."""

  def before_step(self, theta):
    """Changes the parameters before the forward pass of each step."""
    return theta

  def weights(self, name, kernel):
    """What the layer multiplies with, forward and for the gradient of its input."""
    return kernel

  def slope(self, name, kernel):
    """The derivative of `weights`, as the method defines it."""
    return 1.0

  def gradient(self, name, kernel, dw):
    """The gradients of what the layer's weights are made of, by leaf."""
    return {"kernel": dw * self.slope(name, kernel)}

  def inputs(self, name, weights, x):
    """What the layer remembers of its input for the gradient of its weights."""
    return x

  def penalty(self, theta):
    """What is added to the gradient of a step."""
    return each(np.zeros_like, theta)

  def speed(self, theta, step):
    """The factor of the learning rate."""
    return 1.0


def loss_gradient(rule, theta, x, y):
  """Returns the gradient of the mean cross entropy, and the loss of each example."""
  weights = {name: rule.weights(name, theta[name]["kernel"]) for name in NAMES}
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
    kept = rule.inputs(name, w, inputs[i])
    shape = w.shape if w.ndim == 4 else (1, 1, *w.shape)
    dw = _conv_dw(kept, g, shape, stride, padding).reshape(w.shape)
    made = rule.gradient(name, theta[name]["kernel"], dw)
    gradient[name] = {**made, "bias": g.sum((0, 1, 2))}
    if i > 0:
      dx = _conv_dx(g, w.reshape(shape), inputs[i].shape, stride, padding)
      g = dx.reshape(outputs[i - 1].shape) * (outputs[i - 1] > 0)
  return gradient, losses


def each(fn, *trees):
  """Applies a function to the leaves of {layer: {leaf: array}}."""
  return {
    name: {leaf: fn(*(tree[name][leaf] for tree in trees)) for leaf in trees[0][name]}
    for name in trees[0]
  }


def replace_kernels(theta, kernels):
  """Puts other kernels, {layer: array}, beside the other leaves."""
  return {name: {**layer, "kernel": kernels[name]} for name, layer in theta.items()}


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
