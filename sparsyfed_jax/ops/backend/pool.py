"""Max pooling without XLA's select-and-scatter, which is slow on CPUs."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.choice import by_platform


def max_pool(x: jax.Array, window: int) -> jax.Array:
  """Takes the largest value of each window; windows do not overlap and a remainder is dropped.

  Args:
    x: (batch, height, width, features) float array.
    window: the side of a square window.

  Returns:
    (batch, height // window, width // window, features). Where values tie for the largest, they
    share the gradient.

  Raises:
    AssertionError: x is not of rank 4.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> ops.max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
  """
  chex.assert_rank(x, 4)
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


def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
  return (by_platform(*residuals, cotangent, cpu=_share_by_place, default=_share),)


# As autodiff would, but the ties are counted place by place: its sum over two axes is slow on CPU.
def _share_by_place(windows: jax.Array, largest: jax.Array, cotangent: jax.Array) -> jax.Array:
  places = itertools.product(*(range(windows.shape[axis]) for axis in (2, 4)))
  ties = sum((windows[:, :, i, :, j] == largest).astype(cotangent.dtype) for i, j in places)
  # Divided once for a window, not once for each of its places.
  share = lax.optimization_barrier(cotangent / ties)
  return jnp.where(windows == _spread(largest), _spread(share), 0)


def _share(windows: jax.Array, largest: jax.Array, cotangent: jax.Array) -> jax.Array:
  return jax.vjp(lambda windows: jnp.max(windows, axis=(2, 4)), windows)[1](cotangent)[0]


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

  Raises:
    AssertionError: x is not of rank 4.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> ops.max_pool_overlapping(jnp.arange(9.0).reshape(1, 3, 3, 1), 3, 2, 1)[0, :, :, 0].tolist()
    [[4.0, 5.0], [7.0, 8.0]]
  """
  chex.assert_rank(x, 4)
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
