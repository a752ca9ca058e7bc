"""Max pooling without XLA's select-and-scatter, which is slow on CPUs."""

import functools
import itertools
from typing import Any

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
  rows, columns = (side // window for side in x.shape[1:3])
  return _pool(x[:, : rows * window, : columns * window], window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x: jax.Array, window: int) -> jax.Array:
  return _forward(x, window)[0]


def _forward(x: jax.Array, window: int) -> tuple[jax.Array, Any]:
  largest, ties = by_platform(x, cpu=_max_of_windows, default=_max_of_places, settings=(window,))
  return largest, (x, largest, ties)


def _backward(window: int, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array]:
  operands = *residuals, cotangent
  return (
    by_platform(*operands, cpu=_share_by_windows, default=_share_by_places, settings=(window,)),
  )


_pool.defvjp(_forward, _backward)


# Both tell the largest of each window and by how many places it is reached; on CPUs that is counted
# later, and nothing reads what stands for it here.
def _max_of_windows(x: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
  largest = jnp.max(_windows(x, window), axis=(2, 4))
  return largest, largest


# As autodiff would, but the ties are counted place by place: its sum over two axes is slow on CPU.
def _share_by_windows(
  x: jax.Array, largest: jax.Array, _: jax.Array, cotangent: jax.Array, window: int
) -> jax.Array:
  windows = _windows(x, window)
  ties = sum((windows[:, :, i, :, j] == largest).astype(cotangent.dtype) for i, j in _grid(window))
  # Divided once for a window, not once for each of its places.
  share = lax.optimization_barrier(cotangent / ties)
  return jnp.where(windows == _spread(largest), _spread(share), 0).reshape(x.shape)


def _windows(x: jax.Array, window: int) -> jax.Array:
  batch, height, width, features = x.shape
  return x.reshape(batch, height // window, window, width // window, window, features)


def _spread(x: jax.Array) -> jax.Array:
  return x[:, :, None, :, None]


# Accelerators would copy an array for a reduction over two axes inside: a place of all windows is a
# slice with strides.
def _max_of_places(x: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
  places = _places(x, window)
  largest = functools.reduce(jnp.maximum, places)
  ties = sum((place == largest).astype(x.dtype) for place in places)
  return lax.optimization_barrier((largest, ties))  # together, so that the places are read once


def _share_by_places(
  x: jax.Array, largest: jax.Array, ties: jax.Array, cotangent: jax.Array, window: int
) -> jax.Array:
  is_largest = _windows(x, window) == _spread(largest)
  return jnp.where(is_largest, _spread(cotangent / ties), 0).reshape(x.shape)


def _grid(window: int) -> list[tuple[int, int]]:
  return list(itertools.product(range(window), range(window)))


def _places(x: jax.Array, window: int) -> list[jax.Array]:
  return [x[:, i::window, j::window] for i, j in _grid(window)]


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
