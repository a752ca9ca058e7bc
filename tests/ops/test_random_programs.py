"""Labels of the batch on random programs that move entries, against what each entry depends on."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparsyfed_jax import ops
from sparsyfed_jax.ops.rows import of_examples

PROGRAMS = 30


def factors(rng, n):
  """A random shape of n entries."""
  shape = []
  while n > 1:
    shape.append(int(rng.choice([k for k in range(2, n + 1) if n % k == 0])))
    n //= shape[-1]
  return tuple(shape) or (1,)


def moves(rng, x):
  """Functions that move, drop, repeat or combine entries of x along a random axis."""
  axis, rank = int(rng.integers(x.ndim)), x.ndim
  n, shape = x.shape[axis], factors(rng, x.size)
  order, chosen = rng.permutation(rank), jnp.asarray(rng.integers(0, n, n))
  matrix = jnp.asarray(rng.normal(size=(n, 3)), jnp.float32)
  pads = [(1, -1, 0) if i == axis else (0, 0, 0) for i in range(rank)]
  window = [2 if i == axis else 1 for i in range(rank)]
  yield lambda x: x.reshape(shape)
  yield lambda x: x.transpose(order)
  yield lambda x: jnp.flip(x, axis)
  yield lambda x: jnp.roll(x, 1, axis)
  yield lambda x: jnp.take(x, chosen, axis=axis)
  yield lambda x: jnp.concatenate([x, x], axis)
  yield lambda x: jnp.stack([x, 2 * x], axis)
  yield lambda x: jnp.tensordot(x, matrix, ((axis,), (0,)))
  yield lambda x: jnp.cumsum(x, axis)
  yield lambda x: jnp.sort(x, axis)
  yield lambda x: lax.pad(x, jnp.float32(0), pads)
  yield lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, [1] * rank, "SAME")
  yield lambda x: jnp.tanh(x) + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) / x.size
  if n > 1:
    yield lambda x: lax.slice_in_dim(x, 1, n, axis=axis)
    yield lambda x: lax.slice_in_dim(x, 0, n, 2, axis=axis)
    yield lambda x: lax.dynamic_slice_in_dim(x, jnp.int32(0), n - 1, axis)
  if rank > 1:
    yield lambda x: jnp.max(x, axis)
    yield lambda x: lax.map(lambda each: each[::-1], x)
    yield lambda x: lax.scan(lambda carry, each: (carry, carry * each), x[0] * 0 + 2, x)[1]
  if n % 2 == 0:
    yield lambda x: jnp.split(x, 2, axis)[1]


def random_program(seed):
  """An input, where the batch is in it, and a list of functions."""
  rng = np.random.default_rng(seed)
  axis, size = int(rng.integers(3)), int(rng.integers(2, 5))
  shape = [size if i == axis or seed % 3 == 0 else int(rng.integers(1, 4)) for i in range(3)]
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  steps, y = [], x
  while len(steps) < 1 + seed % 4:
    step = list(moves(rng, y))
    step = step[int(rng.integers(len(step)))]
    if 0 < step(y).size <= 400 and step(y).ndim:
      steps, y = [*steps, step], step(y)
  return x, axis, steps


def run(steps, x):
  for step in steps:
    x = step(x)
  return x


def trace(seed):
  x, axis, steps = random_program(seed)
  y = run(steps, x)

  def fn(w, x):
    return jnp.tensordot(run(steps, x), w, ((y.ndim - 1,), (0,)))

  (product,) = ops.find_layers(fn, jnp.ones((y.shape[-1], 2)), x, batch_axes=axis)
  return x, axis, steps, np.asarray(y), product.rows


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_an_entry_depends_on_no_other_example(seed):
  x, axis, steps, before, rows = trace(seed)
  if rows is None or isinstance(rows, ops.Unknown):
    return  # `test_most_are_followed` counts these
  for number in range(x.shape[axis]):
    place = tuple(number if i == axis else slice(None) for i in range(3))
    changed = np.asarray(run(steps, x.at[place].multiply(-1.7))) != before
    mine = of_examples(jnp.arange(x.shape[axis]) == number, before.shape, rows)
    assert not np.any(changed & ~np.asarray(mine))


def test_most_are_followed():
  found = [trace(seed)[-1] for seed in range(PROGRAMS)]
  assert sum(isinstance(rows, ops.Rows) for rows in found) >= PROGRAMS // 3
