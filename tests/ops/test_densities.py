"""Erdős–Rényi–kernel densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsyfed_jax.ops import erk_densities

SHAPES = [(3, 3, 1, 4), (3, 3, 4, 8), (1, 1, 8, 8), (128, 10)]


def slow(shapes, density):
  """Scales all layers, makes those above 1 dense, and starts over without them."""
  sizes = [np.prod(shape) for shape in shapes]
  raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
  dense = set()
  while True:
    left = density * sum(sizes) - sum(sizes[i] for i in dense)
    others = [i for i in range(len(shapes)) if i not in dense]
    if not others:
      return [1.0] * len(shapes)
    scale = left / sum(raw[i] * sizes[i] for i in others)
    above = {i for i in others if scale * raw[i] > 1}
    if not above:
      return [1.0 if i in dense else scale * raw[i] for i in range(len(shapes))]
    dense |= above


def test_by_hand():
  # Sides over sizes: (2 + 8) / 16 and (4 + 4) / 16. 16 of 32 weights: 10 x + 8 x = 16.
  found = erk_densities([(2, 8), (4, 4)], 0.5)
  np.testing.assert_allclose(found, [10 / 18, 8 / 18], rtol=1e-6)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.05, 0.3, 0.7, 0.99, 1.0])
def test_is_the_slow_form(density):
  found = jax.jit(lambda d: erk_densities(SHAPES, d))(jnp.float32(density))
  np.testing.assert_allclose(found, slow(SHAPES, density), rtol=1e-4, atol=1e-6)


def resnet18():
  """The kernels of a ResNet-18 for small images."""
  shapes, before = [(3, 3, 3, 64)], 64
  for width in (64, 128, 256, 512):
    shapes += [(3, 3, before, width), *[(3, 3, width, width)] * 3]
    shapes += [(1, 1, before, width)] * (before != width)
    before = width
  return [*shapes, (512, 10)]


def test_scaled_sparsities_are_those_of_feddsts_code():
  shapes = resnet18()
  found = erk_densities(shapes, 0.05, of_sparsities=True)
  assert sum(np.prod(shape) for shape in shapes) == 11_164_352
  np.testing.assert_allclose([found[0], found[-1]], [0.089, 0.146], atol=5e-4)
  # Sparsities in proportion to 1 - 16 / 64 and 1 - 8 / 16: 48 x + 8 x = 0.7 * 80.
  by_hand = erk_densities([(8, 8), (4, 4)], 0.3, of_sparsities=True)
  np.testing.assert_allclose(by_hand, [0.25, 0.5], rtol=1e-6)
  # 0.95 of it would be 71.25 / 56 of the larger layer: it is emptied, the rest is of the smaller.
  emptied = erk_densities([(8, 8), (4, 4)], 0.05, of_sparsities=True)
  np.testing.assert_allclose(emptied, [0.0, 0.25], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
  st.floats(0, 1, width=32),
)
def test_spends_the_budget(shapes, density):
  spends_the_budget(shapes, density)


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.tuples(st.integers(4, 40), st.integers(4, 40)), min_size=1, max_size=4),
  st.floats(0, 1, width=32),
)
def test_scaled_sparsities_spend_the_budget(shapes, density):
  spends_the_budget(shapes, density, of_sparsities=True)


def spends_the_budget(shapes, density, **form):
  with jax.disable_jit():
    found = np.asarray(erk_densities(shapes, density, **form), np.float64)
  sizes = np.array([a * b for a, b in shapes])
  assert (found >= 0).all() and (found <= 1).all()
  np.testing.assert_allclose((found * sizes).sum(), density * sizes.sum(), rtol=1e-3, atol=1e-3)
