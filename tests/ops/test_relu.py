"""ReLU and its gradient, on every platform those of `jax.nn.relu`."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from sparsyfed_jax import ops
from tests import cases

VALUES = np.float32([-np.inf, -1, -1e-9, -0.0, 0, 1e-9, 2, np.inf, np.nan])


@pytest.mark.usefixtures("on_any_platform")
@pytest.mark.parametrize("shape", [(9,), (3, 3), (1, 3, 3, 1)])
@pytest.mark.parametrize("batched", [False, True])
def test_value_and_gradient_are_those_of_relu(shape, batched):
  x, cotangent = VALUES.reshape(shape), np.arange(1, 10, dtype=np.float32).reshape(shape)

  def both(relu):
    def run(x, cotangent):
      y, vjp = jax.vjp(relu, x)
      return y, vjp(cotangent)[0]

    return jax.jit(jax.vmap(run) if batched else run)(x, cotangent)

  found = both(ops.relu)
  cases.assert_same_bits(found, both(nn.relu))
  np.testing.assert_array_equal(np.asarray(found[1]) != 0, x > 0)
