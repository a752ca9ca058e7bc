"""A round in which nobody is left, for every method: it is counted, and nothing else happens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases

# What a method does in its first rounds only.
STARTS_ANEW = cases.over_methods(
  ["flash", "flash-jmwst", "flash-magnitude", "static-saliency", "ssfl"], quick=["flash", "ssfl"]
)


def nothing(method, state, name="mlp"):
  """What a cohort uploads that vanished."""
  made = cases.algorithm(method, name)
  data = cases.client_data(cases.problem(name).federation, cases.EMPTY)
  memory = made.memory(cases.variables(name), cases.hyper(method))
  upload, *_ = jax.eval_shape(made.client, made.broadcast(state), memory, data, jax.random.key(0))
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), upload)


@pytest.mark.parametrize(
  ("method", "optimizer", "name"),
  cases.over_methods(cases.FORMS, "momentum", "mlp", quick=cases.FEW)
  + cases.over_methods(["fedavg", "flash-magnitude", "static"], "adam", "mlp", quick=["fedavg"])
  + [(name, "sgd", cases.problem_of(name)) for name in cases.LAWFUL],
)
def test_a_round_of_nobody_changes_nothing_but_its_number(method, optimizer, name):
  state = cases.start(method, name, server=optimizer)
  upload = nothing(method, state, name)
  rng = np.random.default_rng(0)
  # A state that no first round would be: statistics of the server's optimizer, another round.
  moved = jax.tree.map(
    lambda leaf: leaf + jnp.asarray(rng.random(leaf.shape), leaf.dtype), state.opt_state
  )
  later = state._replace(opt_state=moved, round=jnp.int32(3))
  for before in (state, later):
    after, row = cases.serve(method, name, before, upload, optimizer)
    assert int(after.round) == int(before.round) + 1
    cases.assert_same_bits(after._replace(round=before.round), before)
    assert all(np.isfinite(value).all() for value in row.values())


@pytest.mark.parametrize("method", STARTS_ANEW)
def test_what_the_first_round_is_for_is_done_in_the_first_that_has_anybody(method):
  hyper = cases.hyper(method, client_lr_final=cases.HYPER["client_lr"])
  name = cases.problem_of(method)
  start = cases.start(method, name, hyper)

  def follow(state, rounds):
    for seed in rounds:
      upload, _ = cases.run_cohort(method, name, state, (3, 0, 5), key=jax.random.key(seed))
      state, _ = cases.server(method, name)(state, upload)
    return state

  lost, _ = cases.server(method, name)(start, nothing(method, start, name))
  expected, late = follow(start, (1, 2)), follow(lost, (1, 2))
  assert int(late.round) == 3
  cases.assert_same_bits(late._replace(round=expected.round), expected)
  density = np.mean([np.mean(mask) for mask in late.masks])
  assert 0.2 < density < 0.7  # of 0.4, which masks have only after what the first round is for
  assert not cases.same_bits(late.variables, start.variables)


def test_weak_clients_start_from_the_dense_model_until_there_was_an_update(method="sparsyfed"):
  hyper = cases.hyper(method, ramp_rounds=0.0)
  start = cases.start(method, "mlp", hyper)
  lost, _ = cases.server(method, "mlp")(start, nothing(method, start))
  broadcast = cases.algorithm(method, "mlp").broadcast
  assert float(broadcast(lost).received_density) == 1
  upload, _ = cases.run_cohort(method, "mlp", lost, (3, 0, 5))
  trained, _ = cases.server(method, "mlp")(lost, upload)
  assert float(broadcast(trained).received_density) == np.float32(0.4)
