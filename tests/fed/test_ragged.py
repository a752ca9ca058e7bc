"""The loop of clients side by side against one loop after the other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparsyfed_jax.fed import ragged
from tests import cases


def client(loop, own, shared, num_steps):
  """Uses in its body what is around: its own, what all share, and a key."""
  key = jax.random.key(own)
  start = {"sum": jnp.float32(0), "log": jnp.zeros(12, jnp.int32), "key": key}

  def body(i, carry):
    noise = jax.random.randint(jax.random.fold_in(key, i), (), 0, 100)
    return {
      "sum": carry["sum"] + shared[i] * own.astype(jnp.float32),
      "log": carry["log"].at[i].set(noise),
      "key": jax.random.split(carry["key"], 1)[0],
    }

  return loop(body, num_steps, start)


def plain(body, num_steps, carry):
  return lax.fori_loop(0, num_steps, body, carry)


SHARED = jnp.arange(12.0) - 3
STEPS = {
  "mixed": np.array([3, 0, 12, 1, 1, 7, 4, 12, 0, 5, 2, 9, 6, 1, 3, 8, 0, 0, 11, 2]),
  "equal": np.full(9, 4),
  "nobody": np.zeros(15, int),
  "one of many": np.array([0] * 14 + [6]),
  "alone": np.array([5]),
}


@pytest.mark.parametrize("name", STEPS)
def test_every_client_runs_its_own_number_of_steps(name):
  num_steps = jnp.asarray(STEPS[name], jnp.int32)
  own = jnp.arange(len(num_steps)) + 1
  each = jax.jit(jax.vmap(partial(client, ragged.ragged_loop), (0, None, 0)))
  found = each(own, SHARED, num_steps)
  for i, count in enumerate(num_steps):
    expected = client(plain, own[i], SHARED, count)
    cases.assert_same_bits(jax.tree.map(lambda leaf, i=i: leaf[i], found), expected)


def test_alone_it_is_the_plain_loop_also_where_nothing_is_its_own():
  args = jnp.int32(3), SHARED, jnp.int32(5)
  cases.assert_same_bits(client(ragged.ragged_loop, *args), client(plain, *args))
  # All do the same: the number of steps has no axis, and the result gets one.
  loop = jax.vmap(lambda own: ragged.ragged_loop(lambda i, carry: carry + 1, 4, own))
  assert loop(jnp.arange(3)).tolist() == [4, 5, 6]
  still = jax.vmap(lambda own: ragged.ragged_loop(lambda i, carry: carry + i, own, jnp.int32(0)))
  assert still(jnp.arange(5)).tolist() == [0, 0, 1, 3, 6]


def test_runs_side_by_side_of_clients_side_by_side():
  num_steps = jnp.asarray([STEPS["mixed"], STEPS["mixed"][::-1]], jnp.int32)
  own = jnp.arange(num_steps.size).reshape(num_steps.shape)
  clients = jax.vmap(partial(client, ragged.ragged_loop), (0, None, 0))
  found = jax.jit(jax.vmap(clients, (0, None, 0)))(own, SHARED, num_steps)
  expected = jax.vmap(jax.vmap(partial(client, plain), (0, None, 0)), (0, None, 0))
  cases.assert_same_bits(found, expected(own, SHARED, num_steps))


def test_no_step_is_taken_by_clients_that_are_done():
  taken = []

  def body(i, carry):
    jax.debug.callback(lambda i, _: taken.append(int(i)), i, carry)
    return carry + 1

  num_steps = jnp.array([1] * 30 + [20])
  jax.block_until_ready(
    jax.jit(jax.vmap(partial(ragged.ragged_loop, body), (0, 0)))(num_steps, num_steps)
  )
  jax.effects_barrier()
  # 31 clients take the first step, and only a few the other 19.
  assert len(taken) == 31 + 19 * ragged._widths(31)[-1]


def test_the_order_costs_steps_and_changes_nothing():
  num_steps = jnp.array([9, 0, 2, 9, 1] * 4)
  found = jax.jit(jax.vmap(partial(ragged.ragged_loop, lambda i, n: n + 1), (0, 0)))(
    num_steps, jnp.arange(20)
  )
  assert found.tolist() == (num_steps + jnp.arange(20)).tolist()


@pytest.mark.parametrize(
  ("sizes", "is_uneven"), [([20] * 5, False), ([16, 17, 30], False), ([1, 1, 160], True)]
)
def test_uneven_is_a_matter_of_steps(sizes, is_uneven):
  assert ragged.are_uneven(np.array(sizes), 16) is is_uneven


@pytest.mark.parametrize("method", cases.over_methods(["fedavg", "feddst"], quick=["fedavg"]))
def test_methods_train_the_same_in_it(method):
  numbers = (0, 5, 3, 6, 2, 1, 4) * 2
  uploads = [
    cases.run_cohort(
      method, "mlp", cases.trained(method, "mlp"), numbers, clients_per_chunk=14, ragged=is_ragged
    )[0]
    for is_ragged in (False, True)
  ]
  cases.assert_close(*uploads, 1e-5)
