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
  return _pool(_of_windows(x, window), window, False)


def max_pool_of_relu(x: jax.Array, window: int) -> jax.Array:
  """Computes `max_pool(jax.nn.relu(x), window)`, in less time on accelerators.

  There the ReLU comes after, of the largest alone, and value and gradient are the same.

  Args:
    x: as in `max_pool`.
    window: as in `max_pool`.

  Returns:
    As `max_pool`.

  Raises:
    AssertionError: x is not of rank 4.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> ops.max_pool_of_relu(jnp.arange(16.0).reshape(1, 4, 4, 1) - 6, 2)[0, :, :, 0].tolist()
    [[0.0, 1.0], [7.0, 9.0]]
  """
  return _pool(_of_windows(x, window), window, True)


def _of_windows(x: jax.Array, window: int) -> jax.Array:
  chex.assert_rank(x, 4)
  rows, columns = (side // window for side in x.shape[1:3])
  return x[:, : rows * window, : columns * window]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _pool(x: jax.Array, window: int, is_of_relu: bool) -> jax.Array:
  return _forward(x, window, is_of_relu)[0]


def _forward(x: jax.Array, window: int, is_of_relu: bool) -> tuple[jax.Array, Any]:
  settings = window, is_of_relu
  y, *found = by_platform(x, cpu=_max_of_windows, default=_max_of_places, settings=settings)
  return y, (x, *found)


def _backward(
  window: int, is_of_relu: bool, residuals: Any, cotangent: jax.Array
) -> tuple[jax.Array]:
  operands, settings = (*residuals, cotangent), (window, is_of_relu)
  share = by_platform(*operands, cpu=_share_by_windows, default=_share_by_places, settings=settings)
  return (share,)


_pool.defvjp(_forward, _backward)


# Both give the result, the largest of each window and by how many places it is reached; on CPUs
# that is counted later, and nothing reads what stands for it here. There a ReLU comes first: a
# round of `cnn32` takes 1.1 times as long with it after the pool.
def _max_of_windows(x: jax.Array, window: int, is_of_relu: bool) -> tuple[jax.Array, ...]:
  largest = jnp.max(_windows(jax.nn.relu(x) if is_of_relu else x, window), axis=(2, 4))
  return largest, largest, largest


# As autodiff would, but the ties are counted place by place: its sum over two axes is slow on CPU.
def _share_by_windows(
  x: jax.Array,
  largest: jax.Array,
  _: jax.Array,
  cotangent: jax.Array,
  window: int,
  is_of_relu: bool,
) -> jax.Array:
  windows = _windows(jax.nn.relu(x) if is_of_relu else x, window)
  ties = sum((windows[:, :, i, :, j] == largest).astype(cotangent.dtype) for i, j in _grid(window))
  # Divided once for a window, not once for each of its places.
  share = lax.optimization_barrier(cotangent / ties)
  shares = jnp.where(windows == _spread(largest), _spread(share), 0).reshape(x.shape)
  return jnp.where(x > 0, shares, 0) if is_of_relu else shares


def _windows(x: jax.Array, window: int) -> jax.Array:
  batch, height, width, features = x.shape
  return x.reshape(batch, height // window, window, width // window, window, features)


def _spread(x: jax.Array) -> jax.Array:
  return x[:, :, None, :, None]


# Accelerators would copy an array for a reduction over two axes inside: a place of all windows is a
# slice with strides.
def _max_of_places(x: jax.Array, window: int, is_of_relu: bool) -> tuple[jax.Array, ...]:
  places = _places(x, window)
  largest = functools.reduce(jnp.maximum, places)
  ties = sum((place == largest).astype(x.dtype) for place in places)
  # Together, so that the places are read once. Where a ReLU gives 0, nothing asks for the largest.
  y = jax.nn.relu(largest) if is_of_relu else largest
  y, ties = lax.optimization_barrier((y, ties))
  return y, y, ties


def _share_by_places(
  x: jax.Array,
  largest: jax.Array,
  ties: jax.Array,
  cotangent: jax.Array,
  window: int,
  is_of_relu: bool,
) -> jax.Array:
  share = cotangent / ties
  if is_of_relu:
    share = jnp.where(largest > 0, share, 0)
  is_largest = _windows(x, window) == _spread(largest)
  return jnp.where(is_largest, _spread(share), 0).reshape(x.shape)


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
