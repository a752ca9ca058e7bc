"""Max pooling whose gradient is fast on CPU, where XLA's select-and-scatter is not."""

import functools

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
  return jnp.max(x.reshape(batch, rows, window, columns, window, features), axis=(2, 4))


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
