"""A 3x3 convolution with 16 products for every 2x2 outputs instead of 36.

Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, arXiv 1509.09308: the
kernel and tiles of 4x4 inputs, which overlap by two, are transformed, multiplied entry by entry,
summed over features (a matrix product for each of the 16 entries), and transformed to 2x2 outputs.
F(2x2, 3x3) in the paper's words. Its transforms only add, subtract and halve, so rounding grows
little; those of larger tiles would save more products and lose digits.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

WINDOW = 3
_TILE, _STEP = 4, 2
# Section 4.1 of the paper: of one axis of the input, of the kernel, and of the products.
_OF_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_OF_KERNEL = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_OF_PRODUCTS = ((1, 1, 1, 0), (0, 1, -1, -1))

# Arrays of one shape, for each place in a tile: all tiles' entries there. A row may be one array.
_Grid: TypeAlias = Sequence[Sequence[jax.Array] | jax.Array]
_Matrix: TypeAlias = Sequence[Sequence[int]]


def convolve_3x3(x: jax.Array, w: jax.Array, precision: Any = None) -> jax.Array:
  """Convolves without padding, at every place.

  Args:
    x: (batch, height, width, in_features) float array, height and width at least 3.
    w: (3, 3, in_features, out_features).
    precision: of the matrix products, as in `jax.lax.dot_general`.

  Returns:
    (batch, height - 2, width - 2, out_features).
  """
  out = [side - WINDOW + 1 for side in x.shape[1:3]]
  missing = [-side % _STEP for side in out]  # the last tiles may reach beyond the input
  padded = jnp.pad(x, ((0, 0), *((0, rest) for rest in missing), (0, 0)))
  return _convolve(padded, w, precision)[:, : out[0], : out[1]]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, w: jax.Array, precision: Any) -> jax.Array:
  return _forward(x, w, precision)[0]


def _forward(x: jax.Array, w: jax.Array, precision: Any) -> Any:
  tiles = _tiles_of(x)
  multiply = partial(jnp.matmul, precision=precision)
  products = list(map(multiply, tiles, _kernel_to_tile(w)))
  num_tiles = x.shape[0], *(side // _STEP - 1 for side in x.shape[1:3])
  return _interleave(_apply(_OF_PRODUCTS, products), num_tiles), (tiles, w)


# By hand: what autodiff makes of slices and stacks takes twice as long.
def _backward(precision: Any, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  tiles, w = residuals
  num_tiles = cotangent.shape[0], *(side // _STEP for side in cotangent.shape[1:3])
  outputs = [[cotangent[:, i::_STEP, j::_STEP] for j in range(_STEP)] for i in range(_STEP)]
  of_products = _stack(_apply(_transposed(_OF_PRODUCTS), outputs))
  product = partial(jnp.einsum, precision=precision)
  of_tiles = list(map(partial(product, "ptk,pck->ptc"), of_products, _kernel_to_tile(w)))
  of_kernel = jnp.stack(list(map(partial(product, "ptc,ptk->pck"), tiles, of_products)))
  of_input = _join(_apply(_transposed(_OF_INPUT), of_tiles), num_tiles)
  return of_input, _tile_to_kernel(of_kernel)


_convolve.defvjp(_forward, _backward)


def _tiles_of(x: jax.Array) -> list[jax.Array]:
  """Transforms the input's tiles: for each row of a tile, (4, number of tiles, in_features)."""
  last = [side - _TILE + 1 for side in x.shape[1:3]]
  entries = [
    [x[:, i : i + last[0] : _STEP, j : j + last[1] : _STEP] for j in range(_TILE)]
    for i in range(_TILE)
  ]
  return _stack(_apply(_OF_INPUT, entries))


def _kernel_to_tile(w: jax.Array) -> jax.Array:
  both = np.kron(_OF_KERNEL, _OF_KERNEL)
  return _exact_product(both, w).reshape(_TILE, _TILE, *w.shape[2:])


def _tile_to_kernel(tile: jax.Array) -> jax.Array:
  both = np.kron(_OF_KERNEL, _OF_KERNEL).T
  return _exact_product(both, tile).reshape(WINDOW, WINDOW, *tile.shape[2:])


def _exact_product(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  rows = x.reshape(matrix.shape[1], -1)
  return jnp.matmul(matrix.astype(x.dtype), rows, precision=jax.lax.Precision.HIGHEST)


def _apply(matrix: _Matrix, grid: _Grid) -> list[list[jax.Array]]:
  """Computes matrix grid matrix^T, whose entries are arrays, by additions alone."""

  def entry(down: Sequence[int], across: Sequence[int]) -> jax.Array:
    signs = np.outer(down, across)
    terms = [(signs[i, j], grid[i][j]) for i, j in zip(*np.nonzero(signs), strict=True)]
    total = terms[0][1] * terms[0][0].astype(terms[0][1].dtype)
    for sign, term in terms[1:]:
      total = total + term if sign > 0 else total - term
    return total

  return [[entry(down, across) for across in matrix] for down in matrix]


def _transposed(matrix: _Matrix) -> _Matrix:
  return list(zip(*matrix, strict=True))


# A row at a time: of all 16 in one array, the compiler would write each by itself and then copy it.
def _stack(grid: _Grid) -> list[jax.Array]:
  return [jnp.stack([entry.reshape(-1, entry.shape[-1]) for entry in row]) for row in grid]


def _interleave(grid: _Grid, shape: tuple[int, ...]) -> jax.Array:
  """Puts the entries of tiles of 2x2 side by side: (batch, height, width, features)."""
  rows = [jnp.stack([entry.reshape(*shape, -1) for entry in row], axis=3) for row in grid]
  batch, height, width = shape
  return jnp.stack(rows, axis=2).reshape(batch, _STEP * height, _STEP * width, -1)


def _join(grid: _Grid, shape: tuple[int, ...]) -> jax.Array:
  """Adds up tiles of 4x4 that overlap by two: (batch, height, width, features)."""
  batch, height, width = shape

  def shifted(i: int, j: int) -> jax.Array:
    tiles = grid[i][j].reshape(*shape, -1)
    down, across = i // _STEP, j // _STEP
    return jnp.pad(tiles, ((0, 0), (down, 1 - down), (across, 1 - across), (0, 0)))

  def entry(i: int, j: int) -> jax.Array:
    first, *others = [shifted(p, q) for p in (i, i + _STEP) for q in (j, j + _STEP)]
    return sum(others, first)

  sums = [[entry(i, j) for j in range(_STEP)] for i in range(_STEP)]
  return _interleave(sums, (batch, height + 1, width + 1))
