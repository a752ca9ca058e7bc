"""Searches in images, which are laid out in several ways for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import ops
from sparsyfed_jax.ops.backend.digits import laid_out
from tests import reference

# And as what they are searched: features that fill a part of a register, or do not fit into one, in
# images that fill registers or do not; wide ones and small ones stay as they are.
SHAPES = {
  (5, 13, 8, 32): (130, 128),
  (5, 16, 16, 24): (5, 6144),
  (8, 7, 11, 48): (231, 128),
  (9, 15, 128): (9, 15, 128),
  (5, 61, 61, 1): (5, 61, 61, 1),
  (4, 8, 8, 32): (4, 8, 8, 32),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_images_are_searched_as_they_lie_in_a_tpu(shape, dtype):
  x = np.random.default_rng(0).integers(-99, 99, shape).astype(dtype)  # with ties and zeros
  (rows,) = laid_out([jnp.asarray(x)])
  assert rows.shape == SHAPES[shape]
  np.testing.assert_array_equal(np.sort(rows, axis=None), np.sort(x, axis=None))
  find = jax.jit(ops.kth_magnitude)
  with ops.untuned():
    for k in (1, x.size // 20, x.size, x.size + 1):
      assert float(find(x, k)) == reference.kth_magnitude(x.reshape(-1), k)
