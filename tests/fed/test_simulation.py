"""The compiled run: what it compiles, moves, reports and samples; the evaluation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.fed.algorithm import Algorithm
from sparsyfed_jax.fed.cohort import federation_of
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.simulation import State, simulate
from sparsyfed_jax.types import make_keys, total, weighted
from tests import cases

every_method = pytest.mark.parametrize("method", cases.over_methods(METHODS))
CHANGED = cases.HYPER | {
  "rounds": 4.0,
  "client_lr": 0.2,
  "client_lr_final": 0.1,
  "weight_decay": 0.05,
  "server_lr": 0.8,
  "client_dropout": 0.5,
  "straggler_fraction": 0.9,
  "density": 0.6,
  "ramp_rounds": 2.0,
  "beta": 1.5,
  "activation_floor": 0.9,
  "proximal_mu": 0.5,
  "zerofl_mask_ratio": 0.4,
  "flash_warmup_rounds": 2.0,
  "flash_warmup_epochs": 5.0,
  "flash_update_every": 3.0,
  "flash_drop_rate": 0.8,
  "feddst_update_every": 3.0,
  "feddst_update_until": 3.0,
  "feddst_drop_rate": 0.9,
  "feddyn_alpha": 0.7,
  "fedpm_reset_every": 4.0,
  "heterofl_levels": 2.0,
  "fedmef_update_every": 3.0,
  "fedmef_update_until": 3.0,
  "fedmef_drop_rate": 0.9,
  "fedmef_extrusion": 0.9,
  "fedmef_boost": 0.5,
  "fedmef_boost_limit": 1.2,
  "fedmef_activation_sparsity": 0.8,
  "fedrts_update_every": 3.0,
  "fedrts_update_until": 3.0,
  "fedrts_drop_rate": 0.9,
  "fedrts_trust": 0.2,
  "fedrts_strength": 1.0,
  "fedtiny_update_every": 3.0,
  "fedtiny_update_until": 3.0,
  "fedtiny_drop_rate": 0.9,
  "prunefl_update_every": 3.0,
  "prunefl_update_until": 3.0,
  "prunefl_drop_rate": 0.9,
  "spafl_penalty": 0.4,
  "fedfade_update_every": 3.0,
  "fedfade_update_until": 3.0,
  "fedfade_drop_rate": 0.9,
  "fedfade_fade_until": 2.0,
  "fedfade_fade_power": 3.0,
  "fedfade_biases_from": 0.0,
  "fedfade_floor": 0.9,
  "fedfade_beta": 1.5,
}
# What every method reads.
COMMON_HYPER = (
  "rounds",
  "client_lr",
  "client_lr_final",
  "weight_decay",
  "proximal_mu",
  "server_lr",
  "client_dropout",
  "straggler_fraction",
)
# What server optimizers read; see tests/fed/test_optimizers.py.
OPTIMIZER_HYPER = ("server_tau",)


def begin(method, values=None):
  """Makes a simulation's state before round 1."""
  return cases.whole(method, "linear", cases.start(method, "linear", values))


def run(method, state, num_rounds=3, federation=None, **simulation):
  return cases.simulation(method, "linear", **simulation).run(
    cases.copy(state),
    federation or cases.problem("linear").federation,
    jax.random.key(3),
    num_rounds,
  )


def check_shapes(rows):
  """Checks the shapes of five rows; returns the names of those that are counts in parts."""
  by_layer = {name for name, row in rows.items() if row.shape == (5, 1)}
  assert by_layer == {"layer_density", "received_density"}
  in_parts = {name for name, row in rows.items() if row.shape == (5, 3)}
  assert in_parts == {"round_uplink_bytes", "examples"}
  others = rows.keys() - by_layer - in_parts
  assert {rows[name].shape for name in others} == {(5,)}
  return in_parts


@every_method
class TestRun:
  def test_nothing_recompiles_when_values_change(self, method):
    simulation = cases.simulation(method, "linear")
    run(method, begin(method))
    compiled = simulation.run._cache_size()
    state = begin(method, cases.hyper(method, **CHANGED))
    federation = cases.problem("linear").federation
    run(method, state, 1, federation._replace(sizes=federation.sizes // 2))
    assert simulation.run._cache_size() == compiled

  def test_nothing_moves_between_host_and_device(self, method):
    simulation = cases.simulation(method, "linear")
    state, num_rounds = begin(method), jnp.int32(3)
    problem, key = cases.problem("linear"), jax.random.key(3)
    jax.block_until_ready(simulation.evaluate(state, problem.x_test, problem.y_test))
    expected = run(method, state)
    with jax.transfer_guard("disallow"):
      state, rows = simulation.run(state, problem.federation, key, num_rounds)
      scores = simulation.evaluate(state, problem.x_test, problem.y_test)
      with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        simulation.run(state, problem.federation, key, 3)  # the guard is awake
    cases.assert_same_bits((state, rows), expected)
    assert np.isfinite(scores["test_loss"])

  def test_the_state_is_donated(self, method):
    state = begin(method)
    problem = cases.problem("linear")
    simulation = cases.simulation(method, "linear")
    simulation.run(state, problem.federation, jax.random.key(3), 1)
    donated = state.server.variables, state.memories
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
    assert not problem.federation.x.is_deleted()

  def test_rows_are_those_of_the_rounds_done(self, method):
    state, rows = run(method, begin(method), 3)
    assert int(state.server.round) == 3
    assert rows["round"].tolist() == [1, 2, 3, 0, 0]
    in_parts = check_shapes(rows)
    later, more = run(method, state, 2)
    assert int(later.server.round) == 5 and more["round"].tolist() == [4, 5, 0, 0, 0]
    for name in ("clients", "examples", "round_uplink_bytes", "downlink_bytes", "train_loss"):
      values = total(rows[name]) if name in in_parts else np.asarray(rows[name])
      assert (values[:3] > 0).all() and (values[3:] == 0).all()

  def test_no_rounds_change_nothing(self, method):
    state = begin(method)
    cases.assert_same_bits(run(method, state, 0)[0], state)

  def test_a_round_without_examples_changes_nothing(self, method):
    federation = cases.problem("linear").federation
    nobody = federation._replace(sizes=jnp.zeros_like(federation.sizes))
    start, _ = run(method, begin(method), 2)
    state, rows = run(method, start, 2, nobody)
    server = state.server._replace(round=start.server.round)
    cases.assert_same_bits(state._replace(server=server), start)
    assert total(rows["examples"]).tolist() == rows["clients"].tolist() == [0] * 5
    assert np.isnan(rows["train_loss"][:2]).all()  # the mean of nothing
    cases.assert_same_bits(rows["server_regrowth"], jnp.zeros(5))
    state, rows = run(method, state, 1)
    assert all(np.isfinite(row).all() for row in rows.values())
    learned = state.server.variables, state.memories
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learned))
    assert not cases.same_bits(state.server.variables, start.server.variables)

  def test_init_makes_the_state_of_the_key(self, method):
    simulation = cases.simulation(method, "linear")
    hyper = cases.hyper(method)
    first, same, other = (simulation.init(hyper, jax.random.key(seed)) for seed in (0, 0, 1))
    cases.assert_same_bits(first, same)
    model = cases.algorithm(method, "linear").model
    assert not cases.same_bits(model(first.server), model(other.server))
    assert int(first.server.round) == 0
    assert all(len(leaf) == len(cases.SIZES) for leaf in jax.tree.leaves(first.memories))
    run(method, first, 1)
    simulation.init(hyper, jax.random.key(2))  # the values given are not donated with a state


# Of those that are not run by default: what is traced.
@pytest.mark.parametrize("method", [name for name in METHODS if name not in cases.QUICK])
def test_the_shapes_of_a_state_stay_and_rows_are_those_of_every_method(method):
  simulation, federation = cases.simulation(method, "linear"), cases.problem("linear").federation
  before = jax.eval_shape(simulation.init, cases.hyper(method), jax.random.key(0))
  after, rows = jax.eval_shape(simulation.run, before, federation, jax.random.key(3), jnp.int32(3))
  check_shapes(rows)
  assert {"train_loss", "client_lr", "downlink_bytes"} <= rows.keys()
  kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), one) for one in (before, after)]
  assert kinds[0] == kinds[1]


def own_numbers(method):
  return tuple(setting.name for setting in METHODS[method].settings() if setting.is_number)


@pytest.mark.parametrize(
  "name", own_numbers("sparsyfed") + METHODS["sparsyfed"].reads + COMMON_HYPER
)
def test_every_value_has_an_effect(name):
  # From a sparse model, so that activations are pruned, and within a ramp of the density.
  start = cases.trained("sparsyfed", "linear")._replace(round=jnp.int32(0))

  def final(**changes):
    values = {"ramp_rounds": 6.0, "density": 0.05} | changes
    state = State(start._replace(hyper=cases.hyper("sparsyfed", **values)), ())
    return run("sparsyfed", state, 2, schedule="cubic", proximal=True)[0].server.variables

  first = final()
  cases.assert_same_bits(final(), first)
  assert not cases.same_bits(final(**{name: CHANGED[name]}), first)


@pytest.mark.parametrize(
  ("method", "name"),
  [
    one
    for method in METHODS
    if method != "sparsyfed"
    for name in own_numbers(method)
    if name != "flash_update_every"
    for one in cases.over_methods([method], name, quick=(*cases.LAWFUL, "flash-jmwst"))
  ]
  + [("flash-jmwst", "flash_update_every")],
)
def test_every_value_of_a_method_has_an_effect(method, name):
  problem = cases.problem_of(method)

  def final(**changes):
    state = cases.start(method, problem, cases.hyper(method, **changes))
    for i in range(5):
      upload, _ = cases.run_cohort(method, problem, state, (3, 0, 5), key=jax.random.key(i))
      state, _ = cases.server(method, problem)(state, upload)
    return state.variables

  assert not cases.same_bits(final(**{name: CHANGED[name]}), final())


def test_values_that_no_method_reads_do_not_exist():
  read = {name for method in METHODS.values() for name in method.reads}
  assert read | set(COMMON_HYPER + OPTIMIZER_HYPER) == set(Hyper._fields) - {"own"}


def test_a_sweep_can_be_vmapped():
  states = [
    begin("sparsyfed", cases.hyper("sparsyfed", beta=beta, density=density))
    for beta, density in [(1.25, 0.4), (1.5, 0.6)]
  ]
  simulation = cases.simulation("sparsyfed", "linear")
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  arguments = cases.problem("linear").federation, jax.random.key(3), 3
  together, _ = jax.vmap(simulation.run, in_axes=(0, None, None, None))(stacked, *arguments)
  for i, state in enumerate(states):
    alone, _ = run("sparsyfed", state)
    cases.assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, 1e-5)


class TestEvaluate:
  def scores(self, method, name, state):
    problem, state = cases.problem(name), State(state, ())
    return cases.simulation(method, name).evaluate(state, problem.x_test, problem.y_test)

  def expected(self, method, name, logits):
    y = np.asarray(cases.problem(name).y_test)
    assert len(y) % cases.EVAL_BATCH_SIZE
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(y)), y]
    return {"test_loss": losses.mean(), "test_accuracy": (logits.argmax(1) == y).mean()}

  @every_method
  def test_against_numpy(self, method):
    state = run(method, begin(method), 2)[0].server
    model = cases.algorithm(method, "linear").model(state)
    layer = jax.tree.map(np.asarray, model["params"]["Dense_0"])
    logits = np.asarray(cases.problem("linear").x_test) @ layer["kernel"] + layer["bias"]
    expected = self.expected(method, "linear", logits.astype(np.float64))
    cases.assert_close(self.scores(method, "linear", state), expected, 1e-5)

  @every_method
  def test_the_model_computes_with_its_statistics_and_without_masks(self, method):
    state = cases.trained(method, "batchnorm")
    model = cases.algorithm(method, "batchnorm").model(state)
    x = cases.problem("batchnorm").x_test
    logits = np.asarray(cases.MODELS["batchnorm"][0].apply(model, x, train=False), np.float64)
    expected = self.expected(method, "batchnorm", logits)
    cases.assert_close(self.scores(method, "batchnorm", state), expected, 1e-5)


class Attendance(NamedTuple):
  """A state, and a download, that learns nothing but who took part."""

  round: jax.Array
  variables: dict[str, jax.Array]  # (num_rounds, num_clients) counts
  hyper: Hyper


def attendance(num_clients, clients_per_round, num_rounds, seed=0):
  """Counts how often each client takes part in each round."""

  def client(download, memory, data, key):
    zero = weighted(jnp.float32(0), jnp.float32(1))
    upload = jnp.zeros(num_clients, jnp.int32).at[data.indices[0]].add(data.size)
    return upload, memory, {"train_loss": zero, "uplink_bytes": zero}

  def server(state, upload):
    table = state.variables["params"].at[state.round].set(upload)
    return Attendance(state.round + 1, {"params": table}, state.hyper), {}

  def same(state):
    return state

  method = Algorithm(same, same, client, server, same)
  task = cases.problem("linear").task
  simulation = simulate(method, task, clients_per_round, 3, num_rounds, eval_batch_size=1)
  numbers = jnp.arange(num_clients, dtype=jnp.int32)
  federation = federation_of(numbers, numbers, np.arange(num_clients)[:, None])
  table = jnp.zeros((num_rounds, num_clients), jnp.int32)
  state = Attendance(jnp.int32(0), {"params": table}, cases.hyper())
  state, _ = simulation.run(State(state, ()), federation, jax.random.key(seed), num_rounds)
  return np.asarray(state.server.variables["params"])


class TestSampling:
  def test_is_uniform_without_replacement_and_new_each_round(self):
    table = attendance(num_clients=7, clients_per_round=4, num_rounds=300)
    assert (table.sum(1) == 4).all() and table.max() == 1
    # Of 300 rounds each client is in 4/7, give or take 4 standard deviations, 8.6 each.
    assert (np.abs(table.sum(0) - 300 * 4 / 7) < 35).all()
    assert len(np.unique(table, axis=0)) == 35  # every choice of 4 among 7 occurs

  def test_everybody_may_take_part(self):
    assert (attendance(num_clients=5, clients_per_round=5, num_rounds=3) == 1).all()


def test_streams_of_a_run_differ():
  keys = [key for seed in (0, 1) for key in make_keys(jax.random.key(seed))]
  bits = {tuple(jax.random.key_data(key).tolist()) for key in keys}
  assert len(bits) == 2 * len(make_keys(jax.random.key(0)))
  cases.assert_same_bits(make_keys(jax.random.key(0)), make_keys(jax.random.key(0)))


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32"])
def test_products_have_the_precision_asked_for(precision):
  simulation = simulate(
    cases.algorithm("sparsyfed", "linear"),
    cases.problem("linear").task,
    cases.CLIENTS_PER_ROUND,
    clients_per_chunk=2,
    rounds_per_call=1,
    eval_batch_size=cases.EVAL_BATCH_SIZE,
    matmul_precision=precision,
  )
  state = jax.eval_shape(simulation.init, cases.hyper("sparsyfed"), jax.random.key(0))
  problem = cases.problem("linear")
  texts = [
    str(simulation.run.trace(state, problem.federation, jax.random.key(0), jnp.int32(1)).jaxpr),
    str(simulation.evaluate.trace(state, problem.x_test, problem.y_test).jaxpr),
  ]
  asked, other = ("HIGHEST", "HIGH,") if precision == "float32" else ("HIGH,", "HIGHEST")
  for text in texts:
    assert f"Precision.{asked}" in text and f"Precision.{other}" not in text
    assert text.count("dot_general[") == text.count("precision=(")
