"""A cohort on four devices, in a process of its own because it has to start with them."""

import os
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from sparsyfed_jax.data.lists import Parts
from sparsyfed_jax.fed import devices
from sparsyfed_jax.fed.cohort import federation_of
from sparsyfed_jax.fed.streaming import stage
from tests import cases

PROGRAM = """
import sys
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from sparsyfed_jax.fed.clock import start_clock
from sparsyfed_jax.fed.cohort import sum_over_clients
from sparsyfed_jax.fed import devices
from sparsyfed_jax.fed.devices import AXIS, place, sum_over_devices
from sparsyfed_jax.fed.simulation import State, simulate
from sparsyfed_jax.fed.streaming import run_staged, stage
from sparsyfed_jax.fed.timing import Timing
from tests import cases
from tests.fed import test_clock

assert len(jax.devices()) == 4
host = jax.device_get(cases.problem("mlp").federation)
key = jax.random.key(3)
# Of five clients three count, if they are done in 25 seconds; some leave.
TIMING = Timing(3, 25.0, lambda densities, sparsity: jax.numpy.float32(test_clock.FLOPS))
HOURS = [[(0, 90)], [(0, 20), (30, 60)], [(5, 90)], [(0, 90)], [(0, 25)], [(0, 90)], [(10, 80)]]


def run(name, placement, num_devices):
  method, _, is_timed = name.partition("+")
  own = host
  if is_timed:
    own = own._replace(fleet=test_clock.fleet(test_clock.hours_of(HOURS, 100)))
  mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
  simulation = simulate(
    cases.algorithm(method, "mlp"),
    cases.problem("mlp").task,
    clients_per_round=5,
    clients_per_chunk=2,
    rounds_per_call=10,
    eval_batch_size=4,
    sum_cohort=partial(sum_over_devices, mesh, placement) if placement else sum_over_clients,
    timing=TIMING if is_timed else None,
  )
  server = cases.start(method, "mlp")._replace(hyper=cases.hyper(method, client_dropout=0.2))
  memories = devices.place_memories(cases.memories(method, "mlp"), mesh, placement or "replicated")
  state = State(server, memories, start_clock() if is_timed else ())
  if placement != "streamed":
    federation = place(own, mesh, placement) if placement else jax.tree.map(jax.numpy.asarray, own)
    if placement == "sharded":
      shares = [shard.data.shape[0] for shard in federation.x.addressable_shards]
      assert len(shares) == num_devices and (num_devices == 1 or max(shares) < len(host.x))
    state, columns = jax.device_get(simulation.run(state, federation, key, 10))
    if placement == "sharded":
      kept = devices.collect_memories(state.memories, mesh, len(host.sizes))
      state = state._replace(memories=kept)
    return state, columns

  def run_round(known, memories, staged):
    server, clock = known
    state, row = simulation.run_staged(State(server, memories, clock), staged, key)
    return (state.server, state.clock), state.memories, row

  rows = []
  ahead = 1 if is_timed else 10
  for _ in range(0, 10, ahead):
    cohorts = jax.device_get(simulation.draw(state, host.sizes, key, own.fleet))
    rounds = stage(host, mesh, jax.tree.map(lambda leaf: leaf[:ahead], cohorts))
    known = state.server, state.clock
    (server, clock), new = run_staged(run_round, known, memories, rounds, mesh)
    state = State(server, memories, clock)
    rows += new
  columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
  return jax.device_get((state, columns))


def learned(state):
  return state.server.variables, state.memories


for method, *placements in (argument.split(":") for argument in sys.argv[1:]):
  expected, expected_rows = run(method, "", 1)
  start = jax.device_get(cases.whole(method.partition("+")[0], "mlp"))
  assert not cases.same_bits(expected.server.variables, start.server.variables)
  assert not jax.tree.leaves(start.memories) or not cases.same_bits(learned(expected)[1], start[1])
  for placement, num_devices in (form.split("/") for form in placements):
    state, rows = run(method, placement, int(num_devices))
    if "late_clients" in rows:
      assert rows["late_clients"].sum() > 5 and rows["unavailable_clients"].sum() > 0
    if num_devices == "1":
      assert cases.same_bits(state, expected), placement
    cases.assert_close(learned(state), learned(expected), 1e-5)
    cases.assert_close(rows, expected_rows, 1e-5)
print("equal")
"""


# Method and placements, each on a number of devices.
QUICK = "topk:sharded/4:streamed/1", "scaffold+timed:replicated/4:sharded/4:streamed/4"
ALL = (
  "sparsyfed:sharded/4:streamed/4:streamed/1",
  "feddst:replicated/4",
  "scaffold:replicated/4:sharded/4:streamed/4:streamed/1",
  "scaffold+timed:replicated/4:sharded/4:streamed/4:sharded/1",
)


@pytest.mark.parametrize(
  "cohorts", [QUICK, pytest.param(ALL, marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_several_devices_give_what_one_gives_wherever_the_data_is(request, cohorts):
  flags = "--xla_force_host_platform_device_count=4 " + os.environ["XLA_FLAGS"]
  environment = os.environ | {
    "XLA_FLAGS": flags,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(request.config.rootpath),
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  command = [sys.executable, "-c", PROGRAM, *cohorts]
  result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
  assert result.stdout.strip() == "equal", result.stderr


def test_there_may_be_room_for_more_examples():
  host = jax.device_get(cases.problem("mlp").federation)
  mesh = Mesh(np.array(jax.devices()[:1]), (devices.AXIS,))
  least = devices.rows_of_shares(host.sizes, 1) + 3
  placed = devices.place(host, mesh, "sharded", least)
  assert len(placed.x) == len(placed.y) == least
  assert not np.any(placed.x[-3:])


def test_a_device_holds_its_clients_and_no_others():
  host = jax.device_get(cases.problem("mlp").federation)
  mesh = Mesh(np.array(jax.devices()[:1]), (devices.AXIS,))
  shares = [np.array([3, 1, 4])]
  laid = jax.device_get(
    devices.shard_examples(devices.put_common(host, mesh, 20), host, mesh, shares, num_rows=20)
  )
  assert laid.x.shape[0] == laid.y.shape[0] == 20
  taken = []
  for row, number in enumerate(shares[0]):
    rows = laid.indices[laid.starts[row] :][: host.sizes[number]]
    np.testing.assert_array_equal(laid.x[rows], host.x[cases.list_of(host, number)])
    np.testing.assert_array_equal(laid.y[rows], host.y[cases.list_of(host, number)])
    taken += rows.tolist()
  assert taken == list(range(len(taken)))
  assert not laid.x[len(taken) :].any()


def test_rounds_are_prepared_one_ahead_with_equal_shapes():
  host = jax.device_get(cases.problem("mlp").federation)
  mesh = Mesh(np.array(jax.devices()[:1]), (devices.AXIS,))
  numbers = np.array([[1, 0], [3, 5], [6, 2]])
  cohorts = cases.members(numbers)._replace(rows=numbers)
  rounds = list(stage(host, mesh, jax.device_get(cohorts)))
  shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(staged)) for staged in rounds}
  assert len(shapes) == 1 and rounds[0].federation.x.shape[0] == 13  # the two largest, 7 and 6
  for staged, row in zip(rounds, numbers, strict=True):
    assert staged.cohort.numbers.tolist() == row.tolist()


def test_the_host_holds_the_examples_of_two_rounds(tmp_path):
  num_clients, size, width = 20, 40, 8192
  np.save(tmp_path / "x.npy", np.ones((num_clients * size, width), np.float32))
  x = np.load(tmp_path / "x.npy", mmap_mode="r")
  parts = Parts(np.arange(len(x)), np.full(num_clients, size))
  host = federation_of(x, np.zeros(len(x), np.int32), parts)
  mesh = Mesh(np.array(jax.devices()[:1]), (devices.AXIS,))
  rng = np.random.default_rng(0)
  numbers = np.stack([rng.permutation(num_clients)[:5] for _ in range(6)])
  cohorts = jax.device_get(cases.members(numbers))
  tracemalloc.start()
  try:
    for staged in stage(host, mesh, cohorts):  # which is there while the next is made
      assert jnp.all(staged.federation.x == 1)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  of_a_round = 5 * size * width * 4
  assert of_a_round < peak < 2.2 * of_a_round


@pytest.mark.parametrize("num_devices", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("placement", devices.PLACEMENTS)
def test_every_client_is_trained_once(placement, num_devices):
  numbers = np.array([6, 2, 5, 0, 3])
  cohort = cases.members(numbers)
  seen = []
  for rank in range(num_devices):
    mine, count = devices._SHARES[placement](cohort, rank, num_devices)
    first = np.asarray(mine.numbers)[np.asarray(mine.is_present)].tolist()
    assert len(first) <= int(count)
    assert not any(mine.is_present[int(count) :])
    seen += first
  assert sorted(seen) == sorted(numbers)


def test_leaves_are_added_up_together_or_apart_with_their_dtypes(monkeypatch):
  monkeypatch.setattr(devices, "_LARGEST_SMALL_LEAF", 6)
  random = np.random.default_rng(0)
  tree = {
    "small": random.standard_normal((4, 2, 3), np.float32),
    "number": random.standard_normal(4).astype(np.float32),
    "large": random.standard_normal((4, 7), np.float32),
    "counts": random.integers(-(2**28), 2**28, (4, 2), np.int32),  # more than a float32 can hold
    "tally": random.integers(0, 2**30, (4, 3), np.uint32),
    "many counts": random.integers(-(2**28), 2**28, (4, 7), np.int32),
    "long tally": random.integers(0, 2**30, (4, 7), np.uint32),
    "empty": np.zeros((4, 0), np.float32),
    "none": None,
  }
  sums = jax.vmap(devices._add_up, axis_name=devices.AXIS)(tree)
  for rank in range(4):  # every device has them
    one = jax.tree.map(lambda leaf, rank=rank: np.asarray(leaf[rank]), sums)
    cases.assert_close(one, jax.tree.map(lambda leaf: leaf.sum(axis=0), tree), 1e-6)
    for name in ("counts", "tally", "many counts", "long tally"):
      expected = tree[name].sum(axis=0, dtype=tree[name].dtype)
      np.testing.assert_array_equal(one[name], expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, one) == jax.tree.map(lambda x: x.dtype, tree)


def test_small_leaves_of_all_kinds_wait_for_each_other_once():
  tree = jnp.ones(3), jnp.arange(2), jnp.ones((2, 2), jnp.uint32), jnp.float32(1)
  text = str(jax.make_jaxpr(devices._add_up, axis_env=[(devices.AXIS, 4)])(tree))
  assert text.count("psum") == 1
