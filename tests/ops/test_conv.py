"""Convolutions by products against the native one, and the pooling against flax's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from sparsyfed_jax import ops
from tests import reference

LAYOUT = ("NHWC", "HWIO", "NHWC")
PAD_1 = ((1, 1), (1, 1))
EXACT = lax.Precision.HIGHEST

# Kernel, strides, padding, dilation; on (2, 9, 7, 3) inputs.
GEOMETRIES = {
  "3x3 valid": ((3, 3), (1, 1), "VALID", (1, 1)),
  "3x3 same": ((3, 3), (1, 1), "SAME", (1, 1)),
  "3x3 stride 2 same": ((3, 3), (2, 2), "SAME", (1, 1)),
  "3x3 stride 2 padded by 1": ((3, 3), (2, 2), PAD_1, (1, 1)),
  "1x1": ((1, 1), (1, 1), "VALID", (1, 1)),
  "1x1 stride 2": ((1, 1), (2, 2), "VALID", (1, 1)),
  "2x2 same lower": ((2, 2), (1, 1), "SAME_LOWER", (1, 1)),
  "5x3 strides 1 and 2": ((5, 3), (1, 2), "SAME", (1, 1)),
  "3x3 dilated": ((3, 3), (1, 1), "SAME", (2, 2)),
  "2x3 dilated 3 and 2, strided": ((2, 3), (2, 1), "VALID", (3, 2)),
  "one-sided padding": ((3, 2), (2, 2), ((0, 2), (3, 1)), (1, 1)),
  "cropping": ((2, 2), (1, 1), ((-1, 0), (0, -2)), (1, 1)),
  "a whole side": ((9, 1), (1, 1), "VALID", (1, 1)),
  "more than a side, strided": ((10, 1), (3, 1), "VALID", (1, 1)),
}


def example(kernel, shape=(2, 9, 7, 3), features=4, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal(shape).astype(np.float32)
  w = rng.standard_normal((*kernel, shape[-1], features)).astype(np.float32)
  return x, w


def value_and_gradients(conv, x, w):
  """The value and the gradients of both arguments."""

  def run(x, w):
    y, vjp = jax.vjp(conv, x, w)
    return y, *vjp(reference.cotangent(y))

  return jax.jit(run)(x, w)


def assert_all_close(found, expected):
  for a, b in zip(found, expected, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


class TestConv:
  @pytest.mark.parametrize("lowering", [name for name in ops.LOWERINGS if name != "native"])
  @pytest.mark.parametrize("name", GEOMETRIES)
  def test_lowerings_equal_the_native_convolution(self, name, lowering):
    kernel, strides, padding, dilation = GEOMETRIES[name]
    found, expected = (
      value_and_gradients(conv, *example(kernel))
      for conv in (
        lambda x, w: ops.LOWERINGS[lowering](x, w, strides, padding, dilation, EXACT),
        lambda x, w: lax.conv_general_dilated(
          x, w, strides, padding, None, dilation, LAYOUT, precision=EXACT
        ),
      )
    )
    assert_all_close(found, expected)

  @pytest.mark.parametrize("name", ["3x3 stride 2 same", "3x3 dilated", "one-sided padding"])
  def test_takes_the_arguments_of_lax(self, name):
    kernel, strides, padding, dilation = GEOMETRIES[name]
    x, w = example(kernel)
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, LAYOUT)
    found, expected = (
      jax.jit(
        lambda x, w, conv=conv: conv(
          lhs=x,
          rhs=w,
          window_strides=strides,
          padding=padding,
          lhs_dilation=(1, 1),
          rhs_dilation=dilation,
          dimension_numbers=numbers,
          precision=EXACT,
        )
      )(x, w)
      for conv in (ops.conv_general_dilated, lax.conv_general_dilated)
    )
    assert_all_close([found], [expected])

  def test_a_kernel_per_client(self):
    x, w = example((3, 3), (5, 2, 6, 5, 3))
    w = np.stack([w * (i + 1) for i in range(5)])
    conv = jax.jit(
      lambda x, w: ops.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=LAYOUT, precision=EXACT
      )
    )
    np.testing.assert_allclose(
      jax.vmap(conv)(x, w), np.stack([conv(*pair) for pair in zip(x, w, strict=True)]), rtol=1e-5
    )

  # What differs from a plain call, and the shapes of both arguments.
  FALLBACKS = {
    "groups": ({"feature_group_count": 2}, (2, 6, 5, 4), (3, 3, 2, 6)),
    "batch groups": ({"batch_group_count": 2}, (4, 6, 5, 3), (3, 3, 3, 6)),
    "input dilation": ({"lhs_dilation": (2, 1), "padding": PAD_1}, (2, 6, 5, 3), (3, 3, 3, 4)),
    "NCHW": ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, (2, 3, 6, 5), (4, 3, 3, 3)),
    "NCHW by default": ({"dimension_numbers": None}, (2, 3, 6, 5), (4, 3, 3, 3)),
    "HWOI": ({"dimension_numbers": ("NHWC", "HWOI", "NHWC")}, (2, 6, 5, 3), (3, 3, 4, 3)),
    "one axis": (
      {"dimension_numbers": ("NWC", "WIO", "NWC"), "window_strides": (2,)},
      (2, 6, 3),
      (3, 3, 4),
    ),
    "wider result": ({"preferred_element_type": jnp.float32}, (2, 6, 5, 3), (3, 3, 3, 4)),
  }

  @pytest.mark.parametrize("name", FALLBACKS)
  def test_everything_else_is_left_to_lax(self, name):
    different, *shapes = self.FALLBACKS[name]
    arguments = {"window_strides": (2, 1), "padding": "SAME", "dimension_numbers": LAYOUT}
    arguments |= different
    rng = np.random.default_rng(0)
    dtype = jnp.bfloat16 if name == "wider result" else jnp.float32
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    found, expected = (
      jax.jit(lambda x, w, conv=conv: conv(x, w, **arguments))(x, w)
      for conv in (ops.conv_general_dilated, lax.conv_general_dilated)
    )
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)

  def test_16_bits(self):
    x, w = (array.astype(jnp.bfloat16) for array in example((3, 3)))
    conv = jax.jit(
      lambda x, w, conv: conv(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT), static_argnums=2
    )
    y = conv(x, w, ops.conv_general_dilated)
    expected = conv(np.float32(x), np.float32(w), lax.conv_general_dilated)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), expected, rtol=0.02, atol=0.05)

  def test_gives_flax_its_convolution(self):
    x, w = example((3, 3))
    variables = {"params": {"kernel": w, "bias": np.arange(4, dtype=np.float32)}}
    found, expected = (
      jax.jit(nn.Conv(4, (3, 3), 2, conv_general_dilated=conv, precision=EXACT).apply)(variables, x)
      for conv in (ops.conv_general_dilated, lax.conv_general_dilated)
    )
    assert_all_close([found], [expected])


class TestWinograd:
  # Shape of the input and padding; the kernel is 3x3.
  SHAPES = {
    "even": ((2, 8, 6, 16), "SAME"),
    "odd": ((2, 9, 7, 16), "SAME"),
    "odd and even, valid": ((3, 9, 8, 17), "VALID"),
    "one output": ((1, 3, 3, 16), "VALID"),
    "one row of outputs": ((2, 3, 9, 16), "VALID"),
    "from one entry": ((1, 1, 1, 16), PAD_1),
    "one-sided padding": ((2, 5, 6, 16), ((2, 0), (1, 3))),
    "cropping": ((2, 9, 8, 16), ((-1, 0), (0, -2))),
  }

  @pytest.mark.parametrize("name", SHAPES)
  def test_equals_float64(self, name):
    shape, padding = self.SHAPES[name]
    x, w = example((3, 3), shape, features=18)
    found = value_and_gradients(lambda x, w: ops.conv_winograd(x, w, (1, 1), padding), x, w)
    with jax.enable_x64(True):
      expected = value_and_gradients(
        lambda x, w: ops.LOWERINGS["native"](x, w, (1, 1), padding),
        x.astype(np.float64),
        w.astype(np.float64),
      )
    for a, b in zip(found, expected, strict=True):
      assert a.shape == b.shape and a.dtype == jnp.float32
      np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())

  def test_a_kernel_per_client(self):
    x, w = example((3, 3), (3, 2, 6, 5, 16), features=16)
    w = np.stack([w * (i + 1) for i in range(3)])
    conv = partial(value_and_gradients, ops.conv_winograd)
    for found, expected in zip(
      jax.vmap(conv)(x, w), zip(*map(conv, x, w), strict=True), strict=True
    ):
      np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)

  @pytest.mark.parametrize(
    ("kernel", "features", "arguments"),
    [
      ((3, 3), 15, ((1, 1), "SAME")),
      ((3, 3), 16, ((2, 1), "SAME")),
      ((3, 3), 16, ((1, 1), "SAME", (1, 2))),
      ((5, 5), 16, ((1, 1), "SAME")),
      ((1, 1), 16, ((1, 1), "SAME")),
      ((3, 3), 16, ((1, 1), ((0, 0), (-3, -3)))),
    ],
    ids=["few features", "strided", "dilated", "5x5", "1x1", "no outputs"],
  )
  def test_everything_else_goes_by_patches(self, kernel, features, arguments):
    x, w = example(kernel, (2, 9, 7, 16), features)
    found, expected = (
      jax.jit(lambda x, w, conv=conv: conv(x, w, *arguments))(x, w)
      for conv in (ops.conv_winograd, ops.conv_patches)
    )
    np.testing.assert_array_equal(found, expected)

  def test_a_waveform_meets_one_row_of_the_kernel(self):
    x, w = example((3, 3), (2, 1, 40, 16), features=16)
    flops = [
      jax.jit(lambda x, w, conv=conv: conv(x, w, (1, 1), "SAME"))
      .lower(x, w)
      .cost_analysis()["flops"]
      for conv in (ops.conv_winograd, ops.conv_patches)
    ]
    assert flops[0] == flops[1]

  def test_takes_fewer_products(self):
    x, w = example((3, 3), (8, 18, 18, 64), features=64)
    flops = [
      jax.jit(lambda x, w, conv=conv: conv(x, w)).lower(x, w).cost_analysis()["flops"]
      for conv in (ops.conv_winograd, ops.conv_patches)
    ]
    assert 36 / 16 > flops[1] / flops[0] > 1.7  # the rest are additions


def flax_pool(x, window):
  return nn.max_pool(x, (window, window), (window, window))


class TestMaxPool:
  @pytest.mark.parametrize(
    ("sides", "window"), [((6, 6), 2), ((7, 5), 2), ((9, 8), 3), ((3, 4), 1), ((5, 5), 6)]
  )
  def test_equals_flax_where_nothing_ties(self, sides, window):
    shape = (2, *sides, 3)
    x = np.random.default_rng(0).permutation(np.arange(np.prod(shape), dtype=np.float32))
    for found, expected in zip(
      *(
        self.value_and_gradient(lambda x, pool=pool: pool(x, window), x.reshape(shape) - 100)
        for pool in (ops.max_pool, flax_pool)
      ),
      strict=True,
    ):
      np.testing.assert_array_equal(found, expected)

  def value_and_gradient(self, pool, x):
    def run(x):
      y, vjp = jax.vjp(pool, x)
      return y, *vjp(reference.cotangent(y))

    return jax.jit(run)(x)

  def test_ties_share_the_gradient(self):
    x = jnp.array([[2.0, 2.0, 0.0], [1.0, 2.0, 9.0]]).reshape(1, 2, 3, 1)
    gradient = jax.jit(jax.grad(lambda x: 3 * jnp.sum(ops.max_pool(x, 2))))(x)
    np.testing.assert_allclose(gradient[0, :, :, 0], [[1, 1, 0], [0, 1, 0]])
