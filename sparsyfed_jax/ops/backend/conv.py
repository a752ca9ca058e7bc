"""A convolution that stays fast under vmap and in loops.

One kernel per client makes a batched convolution a grouped one, and XLA's CPU backend runs any
convolution inside a loop without its fast library. Patches (concatenated slices) times a matrix are
a plain matrix product, which stays fast in both cases. So does a sum of products of shifted inputs,
which needs less memory. For 3x3 kernels, Winograd's algorithm needs less than half of the products.
`experiments.lowerings` measures them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from sparsyfed_jax.ops.backend import passes
from sparsyfed_jax.ops.backend.choice import by_platform
from sparsyfed_jax.ops.backend.winograd import WINDOW, convolve_3x3

Padding = str | Sequence[tuple[int, int]]
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_LEAST_FEATURES = 16


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: Padding,
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  batch_group_count: int = 1,
  precision: Any = None,
  preferred_element_type: Any = None,
) -> jax.Array:
  """Convolves like `jax.lax.conv_general_dilated`, by the lowering that suits the platform.

  Fits `flax.linen.Conv(conv_general_dilated=...)`. Two-dimensional NHWC convolutions without groups
  or input dilation become matrix products on CPUs, `conv_winograd`. On TPUs, in float32 at a
  precision above the default, they become loops over bfloat16 passes, unless they are mapped by
  `jax.vmap`. Everything else takes the native convolution. `jax.export` refuses the layouts that
  these loops ask for, so export for TPUs under `untuned`.

  Args:
    lhs: (batch, height, width, in_features) float array, or any other that lax takes.
    rhs: (kernel_height, kernel_width, in_features, out_features) float array of lhs's dtype, or any
      other that lax takes.
    window_strides: as in lax, and so are all others.
    padding: 'VALID', 'SAME', 'SAME_LOWER' or (low, high) for each spatial axis.
    lhs_dilation: of the input.
    rhs_dilation: of the kernel.
    dimension_numbers: the layout; ("NHWC", "HWIO", "NHWC") is what flax asks for.
    feature_group_count: groups of features.
    batch_group_count: groups of examples.
    precision: of the products.
    preferred_element_type: dtype of the result.

  Returns:
    The result of the lax function, to rounding.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> x, w = jnp.ones((1, 3, 3, 1)), jnp.ones((2, 2, 1, 1))
    >>> layout = ("NHWC", "HWIO", "NHWC")
    >>> y = ops.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=layout)
    >>> y[0, :, :, 0].tolist()
    [[4.0, 4.0], [4.0, 4.0]]
  """
  numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  is_plain = (
    lhs.ndim == 4
    and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    and feature_group_count == batch_group_count == 1
    and set(lhs_dilation or (1,)) == {1}
    and preferred_element_type is None
  )
  if is_plain:
    dilation = tuple(rhs_dilation or (1, 1))
    pads = tuple(map(tuple, _pads(lhs, rhs, window_strides, padding, dilation)))
    return _conv(lhs, rhs, (tuple(window_strides), pads, dilation, precision))
  return lax.conv_general_dilated(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count,
    batch_group_count,
    precision,
    preferred_element_type,
  )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, w: jax.Array, how: Any) -> jax.Array:
  tpu = _in_passes if passes.suit(x, w, *how) else None
  return by_platform(x, w, cpu=conv_winograd, tpu=tpu, default=conv_native, settings=how)


def _forward(x: jax.Array, w: jax.Array, how: Any) -> Any:
  return _conv(x, w, how), (x, w)


# What the forward pass computed, such as patches, is traced again, and the compiler merges both.
def _backward(how: Any, residuals: Any, cotangent: jax.Array) -> Any:
  tpu = _of_passes if passes.suit(*residuals, *how) else None
  operands = *residuals, cotangent
  return by_platform(*operands, cpu=_of_winograd, tpu=tpu, default=_of_native, settings=how)


def _of_winograd(x: jax.Array, w: jax.Array, cotangent: jax.Array, *how: Any) -> Any:
  return jax.vjp(lambda x, w: conv_winograd(x, w, *how), x, w)[1](cotangent)


def _of_native(x: jax.Array, w: jax.Array, cotangent: jax.Array, *how: Any) -> Any:
  return jax.vjp(lambda x, w: conv_native(x, w, *how), x, w)[1](cotangent)


def _in_passes(x: jax.Array, w: jax.Array, *how: Any) -> jax.Array:
  return _alone(lambda *of: passes.convolve(*of, *how), lambda *of: conv_native(*of, *how))(x, w)


def _of_passes(x: jax.Array, w: jax.Array, cotangent: jax.Array, *how: Any) -> Any:
  operands = x, w, cotangent
  return _alone(lambda *of: passes.gradients(*of, *how), lambda *of: _of_native(*of, *how))(
    *operands
  )


# Of clients side by side XLA makes a grouped convolution, whose layout is not that of one. In that
# of one, a TPU's compiler does not get through the max pool behind it (libtpu 0.0.52).
def _alone(alone: Callable[..., Any], side_by_side: Callable[..., Any]) -> Callable[..., Any]:
  run = custom_vmap(alone)

  @run.def_vmap
  def map_native(size: int, is_mapped: Sequence[bool], *operands: jax.Array) -> tuple[Any, Any]:
    del size
    results = jax.vmap(side_by_side, [0 if each else None for each in is_mapped])(*operands)
    return results, jax.tree.map(lambda _: True, results)

  return run


_conv.defvjp(_forward, _backward)


def conv_patches(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int] = (1, 1),
  padding: Padding = "VALID",
  dilation: Sequence[int] = (1, 1),
  precision: Any = None,
) -> jax.Array:
  """Convolves as one matrix product of patches (im2col).

  Args:
    x: (batch, height, width, in_features) float array.
    w: (kernel_height, kernel_width, in_features, out_features).
    strides: of the window.
    padding: 'VALID', 'SAME', or (low, high) for height and width.
    dilation: of the kernel.
    precision: of the matrix product, as in `jax.lax.dot_general`.

  Returns:
    (batch, out_height, out_width, out_features).

  Raises:
    AssertionError: x or w is not of rank 4, or they differ in dtype or features.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> ops.conv_patches(jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 8)), padding="SAME").shape
    (2, 5, 5, 8)
  """
  w, taps = _taps(x, w, strides, padding, dilation)
  patches = jnp.concatenate([tap for row in taps for tap in row], axis=-1)
  matrix = w.reshape(-1, w.shape[-1])
  rows = patches.reshape(-1, matrix.shape[0])
  out = jnp.matmul(rows, matrix, precision=precision)
  return out.reshape(*patches.shape[:3], w.shape[-1])


def conv_shifted(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int] = (1, 1),
  padding: Padding = "VALID",
  dilation: Sequence[int] = (1, 1),
  precision: Any = None,
) -> jax.Array:
  """Convolves as a sum of matrix products, one for each entry of the kernel.

  Needs less memory than `conv_patches`, whose arguments and result it has.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> ops.conv_shifted(jnp.ones((1, 2, 2, 1)), jnp.ones((2, 2, 1, 1))).item()
    4.0
  """
  w, taps = _taps(x, w, strides, padding, dilation)
  products = [
    jnp.matmul(taps[i][j], w[i, j], precision=precision)
    for i in range(w.shape[0])
    for j in range(w.shape[1])
  ]
  return sum(products[1:], products[0])


def conv_winograd(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int] = (1, 1),
  padding: Padding = "VALID",
  dilation: Sequence[int] = (1, 1),
  precision: Any = None,
) -> jax.Array:
  """Convolves by Winograd's algorithm where the kernel is 3x3 and dense, else by patches.

  Stride and dilation must be 1, features at least 16 and floats at least 32 bits wide for the
  algorithm (Lavin & Gray, CVPR 2016, arXiv 1509.09308) to pay. Arguments and result are those of
  `conv_patches`.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> ops.conv_winograd(jnp.ones((1, 4, 4, 16)), jnp.ones((3, 3, 16, 16)))[0, 0, 0, 0].item()
    144.0
  """
  _assert_shapes(x, w)
  pads = _pads(x, w, strides, padding, dilation)
  alive, pads = _without_dead_taps(x, w, strides, pads, dilation)
  if not _suits_winograd(x, alive, strides, pads, dilation):
    return conv_patches(x, w, strides, padding, dilation, precision)
  return convolve_3x3(_pad(x, pads), alive, precision)


def conv_native(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int] = (1, 1),
  padding: Padding = "VALID",
  dilation: Sequence[int] = (1, 1),
  precision: Any = None,
) -> jax.Array:
  """Convolves as the backend does; arguments and result are those of `conv_patches`."""
  return lax.conv_general_dilated(
    x, w, strides, padding, None, dilation, _LAYOUT, precision=precision
  )


# The ways of computing a convolution, by name.
LOWERINGS = {
  "native": conv_native,
  "patches": conv_patches,
  "shifted": conv_shifted,
  "winograd": conv_winograd,
}


def _assert_shapes(x: jax.Array, w: jax.Array) -> None:
  chex.assert_rank([x, w], 4)
  chex.assert_equal(x.dtype, w.dtype)
  chex.assert_equal(x.shape[3], w.shape[2])


def _suits_winograd(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int],
  pads: Sequence[tuple[int, int]],
  dilation: Sequence[int],
) -> bool:
  if {*strides, *dilation} != {1} or w.shape[:2] != (WINDOW, WINDOW):
    return False
  # With few features the transforms cost more than the products that they save, and 16 bits have
  # no digits to spare for them.
  if min(w.shape[2:]) < _LEAST_FEATURES or jnp.finfo(x.dtype).bits < 32:
    return False
  return all(side + sum(pad) >= WINDOW for side, pad in zip(x.shape[1:3], pads, strict=True))


def _pads(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int],
  padding: Padding,
  dilation: Sequence[int],
) -> Sequence[tuple[int, int]]:
  if isinstance(padding, str):
    return lax.padtype_to_pads(x.shape[1:3], _reach(w.shape[:2], dilation), strides, padding)
  return padding


def _pad(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
  none = (0, 0, 0)
  rows, columns = pads  # may be negative, which crops
  return lax.pad(x, jnp.zeros((), x.dtype), (none, (*rows, 0), (*columns, 0), none))


def _reach(window: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
  return tuple((n - 1) * d + 1 for n, d in zip(window, dilation, strict=True))


def _without_dead_taps(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  dilation: Sequence[int],
) -> tuple[jax.Array, list[tuple[int, int]]]:
  """Cuts off the outer rows and columns of the kernel that only ever meet padding.

  A waveform is an image of height 1, where this is most of a kernel.
  """
  pads = [(low, high) for low, high in padding]
  for axis in range(2):
    size, window, stride = x.shape[1 + axis], w.shape[axis], strides[axis]
    step = dilation[axis]
    low, high = pads[axis]
    out = max((size + low + high - (window - 1) * step - 1) // stride + 1, 0)
    alive = [
      tap
      for tap in range(window)
      if any(low <= tap * step + stride * place < low + size for place in range(out))
    ]
    if not alive:
      continue
    first, last = alive[0], alive[-1]
    w = lax.slice_in_dim(w, first, last + 1, axis=axis)
    # Windows start later, and end where the last one reaches.
    end = (out - 1) * stride + last * step + 1
    pads[axis] = (low - first * step, end - size - low)
  return w, pads


def _taps(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int],
  padding: Padding,
  dilation: Sequence[int],
) -> tuple[jax.Array, list[list[jax.Array]]]:
  """Makes what each entry of the kernel meets, (batch, out_height, out_width, in_features).

  Also returns the kernel without the entries that meet nothing.
  """
  _assert_shapes(x, w)
  pads = _pads(x, w, strides, padding, dilation)
  w, pads = _without_dead_taps(x, w, strides, pads, dilation)
  window = w.shape[:2]
  reach = _reach(window, dilation)
  x = _pad(x, pads)
  out = [max((x.shape[1 + a] - reach[a]) // strides[a] + 1, 0) for a in range(2)]

  def tap(i: int, j: int) -> jax.Array:
    start = (i * dilation[0], j * dilation[1])
    stop = [start[a] + out[a] * strides[a] for a in range(2)]
    return x[:, start[0] : stop[0] : strides[0], start[1] : stop[1] : strides[1]]

  return w, [[tap(i, j) for j in range(window[1])] for i in range(window[0])]
