"""Convolutions in passes, as a TPU has them, against float64 and against what is lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparsyfed_jax import ops
from sparsyfed_jax.ops.backend import passes
from tests import reference
from tests.ops.test_conv import GEOMETRIES, LAYOUT, example

# (in, out) features: parts of few inputs lie side by side, then those of few outputs, then none.
FEATURES = {"inputs": (3, 4), "outputs": (22, 40), "neither": (50, 50)}
# Of the largest entry: float32 rounds at 6e-8, three passes miss products of 2^-16 and less.
TOLERANCES = {"highest": 1e-6, "high": 2e-5}


def native(x, w, strides, pads, dilation):
  return lax.conv_general_dilated(x, w, strides, pads, None, dilation, LAYOUT)


def in_float64(x, w, *how):
  with jax.enable_x64(True):
    y, vjp = jax.vjp(lambda x, w: native(x, w, *how), *map(np.float64, (x, w)))
    return [np.array(each) for each in (y, *vjp(reference.cotangent(y)))]


@jax.jit(static_argnums=(2, 3, 4, 5))
def in_passes(x, w, *how):
  y = passes.convolve(x, w, *how)
  return y, *passes.gradients(x, w, reference.cotangent(y), *how)


def assert_close(found, expected, tolerance):
  for a, b in zip(found, expected, strict=True):
    assert a.shape == b.shape and a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def pads_of(x, w, strides, padding, dilation):
  if not isinstance(padding, str):
    return padding
  reach = [(side - 1) * step + 1 for side, step in zip(w.shape[:2], dilation, strict=True)]
  return tuple(lax.padtype_to_pads(x.shape[1:3], reach, strides, padding))


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("side_by_side", FEATURES)
def test_equal_float64(side_by_side, precision):
  num_inputs, num_outputs = FEATURES[side_by_side]
  x, w = example((3, 3), (2, 7, 6, num_inputs), num_outputs)
  how = (1, 1), ((1, 1), (0, 2)), (1, 1)
  assert_close(in_passes(x, w, *how, precision), in_float64(x, w, *how), TOLERANCES[precision])


def test_three_passes_are_not_six():
  x, w = example((3, 3), (2, 7, 6, 3))
  how = (1, 1), ((0, 0), (0, 0)), (1, 1)
  three, six = (in_passes(x, w, *how, precision)[0] for precision in ("high", "highest"))
  assert 1e-7 < np.abs(three - six).max() / np.abs(six).max() < TOLERANCES["high"]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_geometry(name):
  kernel, strides, padding, dilation = GEOMETRIES[name]
  x, w = example(kernel)
  how = strides, pads_of(x, w, strides, padding, dilation), dilation
  if not passes.suit(x, w, *how, "highest"):
    assert name in ("1x1", "1x1 stride 2", "more than a side, strided")
    return
  assert_close(in_passes(x, w, *how, "highest"), in_float64(x, w, *how), TOLERANCES["highest"])


@pytest.mark.parametrize("scale", [1e-30, 1e30, 0.0])
def test_parts_keep_the_digits_of_every_size(scale):
  x, w = example((3, 3), (2, 7, 6, 3))
  how = (1, 1), ((0, 0), (0, 0)), (1, 1)
  expected = in_float64(x * np.float32(scale), w, *how)
  assert_close(in_passes(x * np.float32(scale), w, *how, "highest"), expected, 1e-6)


def test_what_is_not_finite_stays_so():
  x, w = example((3, 3), (1, 3, 3, 3))
  x[0, 1, 1, 1] = np.inf
  assert np.isnan(in_passes(x, w, (1, 1), ((0, 0), (0, 0)), (1, 1), "highest")[0]).all()


class TestLowering:
  """What `ops.conv_general_dilated` is on a TPU."""

  def module(self, x, w, platform="tpu", default="highest", **arguments):
    def run(x, w):
      with jax.default_matmul_precision(default):
        y, vjp = jax.vjp(
          lambda x, w: ops.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=LAYOUT, **arguments
          ),
          x,
          w,
        )
        return y, *vjp(y)

    return jax.jit(run).trace(x, w).lower(lowering_platforms=(platform,)).as_text()

  @pytest.mark.parametrize(
    ("side_by_side", "num_loops"), [("inputs", 1), ("outputs", 3), ("neither", 3)]
  )
  def test_passes_are_compiled_once(self, side_by_side, num_loops):
    num_inputs, num_outputs = FEATURES[side_by_side]
    found = self.module(*example((3, 3), (2, 7, 6, num_inputs), num_outputs))
    assert found.count("stablehlo.while") == num_loops
    assert found.count("stablehlo.convolution") == 3

  def test_a_sum_that_does_not_fit_is_left_to_the_compiler(self):
    for side, num_loops in ((31, 3), (32, 1)):  # but for the kernel's gradient, which is small
      found = self.module(*example((3, 3), (16, side, side, 64), 64))
      assert found.count("stablehlo.while") == num_loops

  @pytest.mark.parametrize("precision", ["default", "bfloat16"])
  def test_one_pass_needs_no_loop(self, precision):
    found = self.module(*example((3, 3)), default=precision)
    assert "stablehlo.while" not in found and "bf16" not in found

  def test_nor_do_16_bits(self):
    x, w = (array.astype(jnp.bfloat16) for array in example((3, 3)))
    assert "stablehlo.while" not in self.module(x, w)

  def test_nor_do_other_platforms(self):
    for platform in ("cpu", "cuda"):
      assert "stablehlo.while" not in self.module(*example((3, 3)), platform=platform)

  @pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
  def test_nor_do_clients_side_by_side(self, axes):
    pair = example((3, 3))
    x, w = (
      array if axis is None else np.stack([array] * 2)
      for array, axis in zip(pair, axes, strict=True)
    )

    def value_and_gradients(x, w):
      y, vjp = jax.vjp(
        lambda x, w: ops.conv_general_dilated(
          x, w, (1, 1), "SAME", dimension_numbers=LAYOUT, precision="highest"
        ),
        x,
        w,
      )
      return y, *vjp(y)

    run = jax.jit(jax.vmap(value_and_gradients, axes))
    found = run.trace(x, w).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.while" not in found and found.count("stablehlo.convolution") == 3
    for one, several in zip(jax.jit(value_and_gradients)(*pair), run(x, w), strict=True):
      np.testing.assert_allclose(several, np.stack([one] * 2), rtol=1e-5, atol=1e-5)

  def test_untuned_programs_can_be_exported(self):
    x, w = example((3, 3), (2, 7, 6, 50), 50)

    def run(x, w):
      return ops.conv_general_dilated(
        x, w, (1, 1), "SAME", precision="highest", dimension_numbers=LAYOUT
      )

    export = jax.export.export(jax.jit(run), platforms=["tpu"])
    with pytest.raises(ValueError, match="LayoutConstraint"):
      export(x, w)  # if this is accepted one day, the docstring can say less
    with ops.untuned():
      assert "stablehlo.while" not in export(x, w).mlir_module()

  def test_a_precision_of_the_call_comes_first(self):
    x, w = example((3, 3))
    assert "stablehlo.while" not in self.module(x, w, precision=lax.Precision.DEFAULT)
    both = (lax.Precision.HIGHEST,) * 2
    assert "stablehlo.while" in self.module(x, w, default="default", precision=both)
