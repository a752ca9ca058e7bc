"""Max pooling whose gradient is fast on CPU, where XLA's select-and-scatter is not."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array, window: int) -> jax.Array:
  """Takes the largest value of each window; windows do not overlap and a remainder is dropped.

  Args:
    x: (batch, height, width, features) float array.
    window: the side of a square window.

  Returns:
    (batch, height // window, width // window, features). Where values tie for the largest, they
    share the gradient.
  """
  batch, height, width, features = x.shape
  rows, columns = height // window, width // window
  x = x[:, : rows * window, : columns * window]
  return _max_of_windows(x.reshape(batch, rows, window, columns, window, features))


@jax.custom_vjp
def _max_of_windows(windows: jax.Array) -> jax.Array:
  return jnp.max(windows, axis=(2, 4))


def _forward(windows: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  largest = _max_of_windows(windows)
  return largest, (windows, largest)


# As autodiff would, but the ties are counted place by place: its sum over two axes is slow on CPU.
def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
  windows, largest = residuals
  places = itertools.product(*(range(windows.shape[axis]) for axis in (2, 4)))
  ties = sum((windows[:, :, i, :, j] == largest).astype(cotangent.dtype) for i, j in places)
  # Divided once for a window, not once for each of its places.
  share = lax.optimization_barrier(cotangent / ties)
  is_largest = windows == _spread(largest)
  return (jnp.where(is_largest, _spread(share), 0),)


_max_of_windows.defvjp(_forward, _backward)


def _spread(x: jax.Array) -> jax.Array:
  return x[:, :, None, :, None]


def max_pool_overlapping(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
  """Takes the largest value of each window, where windows may overlap; PyTorch's MaxPool2d.

  Args:
    x: (batch, height, width, features) float array.
    window: the side of a square window.
    stride: between windows.
    padding: of -inf on each side, less than `window`.

  Returns:
    (batch, out_height, out_width, features), out = (side + 2 * padding - window) // stride + 1.
    Where values tie for the largest, they share the gradient, not always evenly.
  """
  for axis in (1, 2):
    x = _max_along(x, axis, window, stride, padding)
  return x


def _max_along(x: jax.Array, axis: int, window: int, stride: int, padding: int) -> jax.Array:
  pads = [(0, 0, 0)] * x.ndim
  pads[axis] = (padding, padding, 0)
  x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pads)
  reach = (x.shape[axis] - window) // stride * stride + 1
  taps = [lax.slice_in_dim(x, i, i + reach, stride, axis) for i in range(window)]
  return functools.reduce(jnp.maximum, taps)
