"""The product of dense layers against that of lax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from sparsyfed_jax.ops.backend import dense
from tests import reference

LAST = (((1,), (0,)), ((), ()))
EXACT = lax.Precision.HIGHEST
RNG = np.random.default_rng(0)


def value_and_gradients(dot_general, x, w, numbers, **others):
  def run(x, w):
    y, vjp = jax.vjp(lambda x, w: dot_general(x, w, numbers, precision=EXACT, **others), x, w)
    return y, *vjp(reference.cotangent(y))

  return jax.jit(run)(x, w)


def draw(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
  ("x", "w", "numbers"),
  [
    (draw(10, 64), draw(64, 64), LAST),
    (draw(1, 1), draw(1, 1), LAST),
    (draw(3, 5, 7), draw(7, 4), (((2,), (0,)), ((), ()))),
    (draw(20, 7), draw(7, 200), LAST),
    (draw(21, 7), draw(7, 200), LAST),  # too many rows for outer products
    (draw(20, 7), draw(7, 201), LAST),  # too many features
    (draw(0, 7), draw(7, 4), LAST),
    (draw(5, 6), draw(4, 6), (((1,), (1,)), ((), ()))),
    (draw(3, 5, 7), draw(3, 7, 4), (((2,), (1,)), ((0,), (0,)))),
  ],
  ids=[
    "dense",
    "1x1",
    "three axes",
    "20 rows",
    "21 rows",
    "wide",
    "no rows",
    "transposed kernel",
    "batched",
  ],
)
def test_equals_lax(x, w, numbers):
  found = value_and_gradients(dense.dot_general, x, w, numbers)
  expected = value_and_gradients(lax.dot_general, x, w, numbers)
  for a, b in zip(found, expected, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_kernel_per_client():
  x, w = draw(4, 10, 6), draw(4, 6, 3)

  def gradient(x, w):
    return jax.grad(lambda w: jnp.sum(dense.dot_general(x, w, LAST) ** 2))(w)

  found = jax.jit(jax.vmap(gradient))(x, w)
  expected = 2 * np.float64(x).swapaxes(1, 2) @ (np.float64(x) @ np.float64(w))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_wider_result_is_left_to_lax():
  x, w = (jnp.asarray(draw(*shape), jnp.bfloat16) for shape in [(5, 6), (6, 4)])
  wider = {"preferred_element_type": jnp.float32}
  found, expected = (dot(x, w, LAST, **wider) for dot in (dense.dot_general, lax.dot_general))
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, expected)


def test_gives_flax_its_product():
  x = draw(2, 5, 6)
  layer = nn.Dense(4, dot_general=dense.dot_general, precision=EXACT)
  variables = layer.init(jax.random.key(0), x)
  np.testing.assert_allclose(
    layer.apply(variables, x), nn.Dense(4, precision=EXACT).apply(variables, x), rtol=1e-6
  )
