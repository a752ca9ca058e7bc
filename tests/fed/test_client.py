"""Local training with gradients made up by the tests."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsyfed_jax.fed.client import Hooks, LocalTraining, last_batch, train
from sparsyfed_jax.fed.optimizers import sgd
from sparsyfed_jax.types import Batch, ClientData, Mean

MAX_SIZE = 7
PLAIN = Hooks()


def data_of(size, work=1.0):
  """Rows 10 to 16, of which the first `size` are the client's; the class of row i is i."""
  rows = jnp.arange(20, dtype=jnp.int32)
  x = rows.astype(jnp.float32)[:, None]
  return ClientData(
    x, rows, rows[10 : 10 + MAX_SIZE], jnp.int32(size), jnp.float32(1), jnp.float32(work)
  )


def log_steps(variables, batch: Batch, key):
  """Gradient 1, and a model whose state is a log of the classes of each step, -1 for zeros."""
  count = variables["state"]["count"]
  filling = -1 - batch.y - batch.x[:, 0].astype(jnp.int32)
  log = variables["state"]["log"].at[count].set(jnp.where(batch.valid, batch.y, filling))
  keys = variables["state"]["keys"].at[count].set(jax.random.key_data(key))
  size = jnp.sum(batch.valid, dtype=jnp.float32)
  scores = {"loss": Mean(10 * size, size), "accuracy": Mean(size * size, size)}
  grads = jax.tree.map(jnp.ones_like, variables["params"])
  return grads, ({"state": {"count": count + 1, "log": log, "keys": keys}}, scores)


def half(variables):
  return {**variables, "params": {"w": variables["params"]["w"] / 2}}


def half_of_epoch(variables, epoch, key):
  return {**variables, "params": {"w": variables["params"]["w"] / 2 - epoch}}


@partial(jax.jit, static_argnames=("momentum", "hooks"))
def run_traced(size, key, momentum, hooks):
  variables = {
    "params": {"w": jnp.float32(0)},
    "state": {
      "count": jnp.int32(0),
      "log": jnp.full((8, 3), -2, jnp.int32),
      "keys": jnp.zeros((8, 2), jnp.uint32),
    },
  }
  local = LocalTraining(batch_size=3, epochs=2, optimizer=sgd())
  optimizer = optax.sgd(1.0, momentum)
  return train(local, log_steps, optimizer, hooks, variables, data_of(size), key)


def run(size, seed=0, momentum=None, hooks=PLAIN):
  """Trains two epochs in batches of 3: the parameter, the log, the metrics."""
  trained, metrics = run_traced(jnp.int32(size), jax.random.key(seed), momentum, hooks)
  state = jax.tree.map(np.asarray, trained["state"])
  return float(trained["params"]["w"]), state, metrics


@pytest.mark.parametrize(("size", "steps"), [(0, 0), (1, 1), (3, 1), (4, 2), (7, 3)])
def test_each_epoch_takes_every_example_once(size, steps):
  w, state, _ = run(size)
  assert state["count"] == 2 * steps and w == -2 * steps
  assert (state["log"][2 * steps :] == -2).all()
  for epoch in np.split(state["log"][: 2 * steps], 2):
    flat = epoch.reshape(-1)
    assert sorted(flat[:size]) == list(range(10, 10 + size))
    assert (flat[size:] == -1).all()  # zeros fill the last batch up


def test_orders_differ_between_epochs_and_keys_and_are_no_order():
  logs = [run(7, seed=seed)[1]["log"] for seed in range(6)]
  orders = {tuple(epoch.reshape(-1)[:7]) for log in logs for epoch in np.split(log[:6], 2)}
  assert len(orders) == 12
  assert np.unique([order[0] for order in orders]).size > 3


def test_each_step_has_a_key_of_its_own():
  keys = [run(7, seed=seed)[1]["keys"][:6] for seed in range(2)]
  assert len(np.unique(np.concatenate(keys), axis=0)) == 12


def test_a_hook_precedes_every_step():
  # Halved before each of 2 * 2 steps of gradient 1 at rate 1: -1, -3/2, -7/4, -15/8.
  assert run(4, hooks=Hooks(before_step=half))[0] == -15 / 8


def test_a_hook_follows_every_epoch():
  # Two steps an epoch: -2, then -1; -3, then -3/2 - 1.
  assert run(4, hooks=Hooks(after_epoch=half_of_epoch))[0] == -5 / 2


def test_the_last_batch_is_that_of_the_last_step():
  data = data_of(7)
  local = LocalTraining(batch_size=3, epochs=2, optimizer=sgd())
  key = jax.random.key(0)
  batch = last_batch(local, data, key)
  assert run(7)[1]["log"][5].tolist() == [int(batch.y[0]), -1, -1]
  assert batch.valid.tolist() == [True, False, False]


def test_the_optimizer_remembers_between_steps_and_epochs():
  # Momentum 1/2: steps of 1, 3/2, 7/4, 15/8.
  assert run(4, momentum=0.5)[0] == -(1 + 3 / 2 + 7 / 4 + 15 / 8)


def test_metrics_are_means_over_examples_seen():
  # Batches of 3 and 1, twice: "accuracy" adds 9 and 1 over 8 examples.
  metrics = run(4)[2]
  assert {name: (float(m.total), float(m.weight)) for name, m in metrics.items()} == {
    "train_loss": (80, 8),
    "train_accuracy": (20, 8),
  }


def count_steps(sizes):
  """Counts how often a step's function runs with clients vmapped, and alone."""
  counts = []
  variables = {"params": {"w": jnp.float32(0)}}

  def grad_fn(variables, batch, key):
    jax.debug.callback(lambda _: counts.append(1), batch.valid)
    one = Mean(jnp.float32(1), jnp.float32(1))
    return variables["params"], ({}, {"loss": one, "accuracy": one})

  def client(size):
    local = LocalTraining(2, 1, sgd())
    data = data_of(0)._replace(size=size)
    arguments = local, grad_fn, optax.sgd(1.0), PLAIN, variables, data
    return train(*arguments, jax.random.key(0))

  jax.block_until_ready(jax.jit(jax.vmap(client))(jnp.int32(sizes)))
  jax.effects_barrier()
  return len(counts)


def test_a_chunk_runs_as_long_as_its_largest_client():
  # In batches of 2: 3 steps for 5 examples, for each of three clients; never the 4 of all rows.
  assert count_steps([1, 5, 0]) == 3 * 3
  assert count_steps([2]) == 1
  assert count_steps([0, 0]) == 0


@pytest.mark.parametrize(
  ("work", "steps"), [(0.0, 0), (0.01, 1), (1 / 3, 1), (0.4, 2), (0.9, 3), (1.0, 3)]
)
def test_a_straggler_does_a_part_of_each_epoch(work, steps):
  # Seven examples in batches of 3; gradient 1 at rate 1, two epochs.
  local = LocalTraining(batch_size=3, epochs=2, optimizer=sgd())
  one = Mean(jnp.float32(1), jnp.float32(1))

  def grad_fn(variables, batch, key):
    return {"w": jnp.float32(1)}, ({}, {"loss": one, "accuracy": one})

  arguments = local, grad_fn, optax.sgd(1.0), PLAIN, {"params": {"w": jnp.float32(0)}}
  trained, _ = train(*arguments, data_of(7, work), jax.random.key(0))
  assert float(trained["params"]["w"]) == -2 * steps
