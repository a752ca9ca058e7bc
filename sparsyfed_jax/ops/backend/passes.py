"""A float32 convolution as several of bfloat16, for a TPU.

A TPU multiplies bfloat16, of which three add up to a float32. Its compiler computes a product at
jax's highest precision in six passes, one for each pair of parts that matters (Henry, Tang &
Heinecke, 2019, arXiv 1904.06376). It unrolls all six of a convolution, and often does so twice,
because the first attempt does not fit its instruction memory. That takes from ten seconds to a
minute and a half for each. A loop over the passes is compiled once and estimated at as many cycles.
With few features, parts lie side by side in lanes that would be empty, and passes are saved. Sums
that are too large for the chip's fast memory are left to the compiler.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from sparsyfed_jax.ops.backend.count import LANES, SUBLANES

Pads = Sequence[tuple[int, int]]
_Product = Callable[[jax.Array, jax.Array], jax.Array]

# A part has 8 binary digits, as a bfloat16 has. So many bits of a float32 are not in its first 0, 1
# or more parts; of none the sign is left, of a zero.
_REST = {2: (31, 16, 0), 3: (31, 16, 8, 0)}
_ALL = np.uint32(2**32 - 1)
_DIGITS = 5  # binary, of an entry of _REST
_NUM_PARTS = {
  **dict.fromkeys((lax.Precision.HIGH, "high", "bfloat16_3x", "tensorfloat32"), 2),
  **dict.fromkeys((lax.Precision.HIGHEST, "highest", "float32"), 3),
}
_PRECISIONS = {2: lax.Precision.HIGH, 3: lax.Precision.HIGHEST}
_MOST_BYTES = 2**24  # of a TPU's fast memory that an operation is given
_HEIGHT_WIDTH_BATCH_FEATURES = Layout(major_to_minor=(1, 2, 0, 3))


def suit(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int],
  pads: Pads,
  dilation: Sequence[int],
  precision: Any,
) -> bool:
  """Tells whether `convolve` takes its arguments, or XLA's convolution is better.

  It takes float32 at a precision above the default, and leaves kernels of 1x1, which are matrix
  products, and empty arrays.
  """
  del strides
  spans = [
    side + sum(pad) - reach
    for side, pad, reach in zip(x.shape[1:3], pads, _reach(w, dilation), strict=True)
  ]
  is_matrix_product = w.shape[:2] == (1, 1)
  is_empty = 0 in (*x.shape, *w.shape) or min(spans) < 0
  return _num_parts(x.dtype, precision) > 1 and not is_matrix_product and not is_empty


def convolve(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int],
  pads: Pads,
  dilation: Sequence[int],
  precision: Any,
) -> jax.Array:
  """Convolves in passes over bfloat16 parts of both operands.

  Args:
    x: (batch, height, width, in_features) float32.
    w: (kernel_height, kernel_width, in_features, out_features) float32.
    strides: of the window.
    pads: (low, high) for height and width; negative ones crop.
    dilation: of the kernel.
    precision: as in `jax.lax.conv_general_dilated`, HIGH (three passes) or HIGHEST (six); None is
      what `jax.default_matmul_precision` says.

  Returns:
    (batch, out_height, out_width, out_features) float32; NaN where an operand is not finite.
  """
  return _convolve(x, w, _num_parts(x.dtype, precision), strides, pads, (1, 1), dilation)


def gradients(
  x: jax.Array,
  w: jax.Array,
  cotangent: jax.Array,
  strides: Sequence[int],
  pads: Pads,
  dilation: Sequence[int],
  precision: Any,
) -> tuple[jax.Array, jax.Array]:
  """Makes the gradients of x and w.

  Args:
    x: as in `convolve`, and so are all others.
    w: the kernel.
    cotangent: of the result of `convolve`, in its shape.
    strides: of the window.
    pads: of height and width.
    dilation: of the kernel.
    precision: of the products.

  Returns:
    Two float32 arrays, in the shapes of x and of w.
  """
  parts = _num_parts(x.dtype, precision)
  pads_of_input, pads_of_kernel = [], []
  for side, out, stride, reach, (low, _) in zip(
    x.shape[1:3], cotangent.shape[1:3], strides, _reach(w, dilation), pads, strict=True
  ):
    dilated = (out - 1) * stride + 1
    pads_of_input.append((reach - 1 - low, side + low - dilated))
    pads_of_kernel.append((low, reach - 1 + dilated - side - low))

  def product(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    # Features of x are what examples are elsewhere, and examples are added up.
    names = "CHWN", "IHWO", "HWNC"
    how = dilation, pads_of_kernel, (1, 1), strides, names
    return _multiply(x, cotangent, lax.Precision.DEFAULT, *how)

  turned = jnp.flip(w, (0, 1)).swapaxes(2, 3)
  of_input = _convolve(cotangent, turned, parts, (1, 1), pads_of_input, strides, dilation)
  left, right = (
    array if _fits_side_by_side(array, parts) else _laid_out(array) for array in (x, cotangent)
  )
  return of_input, _add_up(product, left, right, parts)


def _num_parts(dtype: jax.typing.DTypeLike, precision: Any) -> int:
  """Tells into how many parts a precision divides what is multiplied; 1 where it does not."""
  if precision is None:
    precision = jax.config.values["jax_default_matmul_precision"]
  of_both = precision if isinstance(precision, tuple) else (precision,)
  found = {_NUM_PARTS.get(each, 1) for each in of_both}
  return found.pop() if dtype == jnp.float32 and len(found) == 1 else 1


def _reach(w: jax.Array, dilation: Sequence[int]) -> list[int]:
  return [(window - 1) * step + 1 for window, step in zip(w.shape[:2], dilation, strict=True)]


def _convolve(x: jax.Array, w: jax.Array, parts: int, *how: Any) -> jax.Array:
  def product(x: jax.Array, w: jax.Array) -> jax.Array:
    return _multiply(x, w, lax.Precision.DEFAULT, *how)

  if _fits_side_by_side(x, parts):
    return _multiply_side_by_side(product, x, w, parts)
  if not _fits_beside_itself(jax.eval_shape(product, x, w)):
    return _multiply(x, w, _PRECISIONS[parts], *how)
  if parts * w.shape[3] <= LANES:
    return _add_up_side_by_side(product, _laid_out(x), w, parts)
  return _add_up(product, _laid_out(x), w, parts)


def _fits_beside_itself(result: jax.ShapeDtypeStruct) -> bool:
  """Tells whether a sum can be read and written by one operation without being cut.

  A pass over an array that is cut reads what lies around the cuts twice or more.
  """
  batch, height, width, features = result.shape
  rows = height * width * math.ceil(batch / SUBLANES)
  return 2 * rows * SUBLANES * math.ceil(features / LANES) * LANES * 4 < _MOST_BYTES


def _multiply(
  x: jax.Array,
  w: jax.Array,
  precision: lax.Precision,
  strides: Sequence[int],
  pads: Pads,
  input_dilation: Sequence[int],
  dilation: Sequence[int],
  names: tuple[str, str, str] = ("NHWC", "HWIO", "NHWC"),
) -> jax.Array:
  return lax.conv_general_dilated(
    x,
    w,
    strides,
    pads,
    input_dilation,
    dilation,
    names,
    precision=precision,
    preferred_element_type=jnp.float32,
  )


def _pairs(parts: int) -> list[tuple[int, int]]:
  """Lists the parts that are multiplied, beginning with the smallest products."""
  pairs = [(i, j) for i in range(parts) for j in range(parts - i)]
  return sorted(pairs, key=sum, reverse=True)


def _fits_side_by_side(x: jax.Array, parts: int) -> bool:
  return len(_pairs(parts)) * x.shape[3] <= LANES


# Of few features, such as an image's, the parts of all passes are the features of one convolution.
def _multiply_side_by_side(product: _Product, x: jax.Array, w: jax.Array, parts: int) -> jax.Array:
  left, right = zip(*_pairs(parts), strict=True)
  return product(
    jnp.concatenate([_part(x, *_REST[parts][i : i + 2]) for i in left], axis=3),
    jnp.concatenate([_part(w, *_REST[parts][j : j + 2]) for j in right], axis=2),
  )


# Where results have few features, those of all parts of w are computed together.
def _add_up_side_by_side(product: _Product, x: jax.Array, w: jax.Array, parts: int) -> jax.Array:
  features = w.shape[3]
  of_w = [_part(w, *_REST[parts][j : j + 2]) for j in range(parts)]
  stacked = jnp.stack(of_w, axis=3)
  part_of_x = _part_in_turn(range(parts)[::-1], parts)

  def multiply(k: jax.Array, x: jax.Array, stacked: jax.Array) -> jax.Array:
    matters = jnp.arange(parts)[:, None] <= k
    of_pass = jnp.where(matters, stacked, jnp.zeros((), stacked.dtype))
    return product(part_of_x(x, k), of_pass.reshape(*w.shape[:3], parts * features))

  results = _loop(multiply, parts, x, stacked)
  blocks = [results[..., j * features : (j + 1) * features] for j in range(parts)]
  return sum(blocks[-2::-1], blocks[-1])


def _add_up(product: _Product, x: jax.Array, w: jax.Array, parts: int) -> jax.Array:
  pairs = _pairs(parts)
  part_of_x, part_of_w = (_part_in_turn(part, parts) for part in zip(*pairs, strict=True))
  return _loop(lambda k, x, w: product(part_of_x(x, k), part_of_w(w, k)), len(pairs), x, w)


def _loop(
  multiply: Callable[..., jax.Array], num_passes: int, x: jax.Array, w: jax.Array
) -> jax.Array:
  def step(k: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    total, *operands = carry
    # Without it, bits of the operands are written before the loop, once more than they are.
    operands = lax.optimization_barrier(operands)
    return total + multiply(k, *operands), *operands

  result = jax.eval_shape(multiply, jnp.int32(0), x, w)
  start = jnp.zeros(result.shape, result.dtype), x, w
  return lax.fori_loop(0, num_passes, step, start)[0]


def _part_in_turn(numbers: Sequence[int], parts: int) -> Callable[..., jax.Array]:
  """Makes a function of an array and the pass, whose part it takes.

  Numbers of passes are read from the digits of one: entries of an array would be read from memory.
  """
  fewer, more = (
    np.uint32(sum(_REST[parts][i + after] << _DIGITS * k for k, i in enumerate(numbers)))
    for after in (0, 1)
  )

  def part(x: jax.Array, k: jax.Array) -> jax.Array:
    place = (k * _DIGITS).astype(jnp.uint32)
    digits = np.uint32(2**_DIGITS - 1)
    return _part(x, (fewer >> place) & digits, (more >> place) & digits)

  return part


def _part(x: jax.Array, rest_before: Any, rest_after: Any) -> jax.Array:
  bits = lax.bitcast_convert_type(x, jnp.uint32)
  before, after = (
    lax.bitcast_convert_type(bits & (_ALL << jnp.uint32(rest)), jnp.float32)
    for rest in (rest_before, rest_after)
  )
  return (after - before).astype(jnp.bfloat16)


# As the compiler itself lays out what convolutions read. It does not look into a loop for that, and
# in its default layout the gradient of a max pool is estimated at four times the cycles.
def _laid_out(x: jax.Array) -> jax.Array:
  return with_layout_constraint(x, _HEIGHT_WIDTH_BATCH_FEATURES)
