"""The virtual clock: seconds worked out by hand, who is available, who reports first."""

from functools import cache, partial
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.fed import sampling
from sparsyfed_jax.fed.clock import (
  Clock,
  Costs,
  Fleet,
  Hours,
  Kinds,
  advance,
  hours_of,
  look_up,
  start_clock,
)
from sparsyfed_jax.fed.cohort import sum_over_clients
from sparsyfed_jax.fed.race import Race
from sparsyfed_jax.fed.simulation import State, simulate
from sparsyfed_jax.fed.timing import Timing
from sparsyfed_jax.types import tally, total, weighted
from sparsyfed_jax.wire import codec
from tests import cases
from tests.fed.test_sampling import chi_square

# Of the linear model, 5 inputs and 3 outputs, forward and backward.
FLOPS = 2 * 2 * 5 * 3
SLOW, FAST = range(2)
# Of the clients with 6, 0, 1, 7, 4, 3 and 1 examples, of which each takes every one twice.
KIND = [FAST, SLOW, SLOW, FAST, SLOW, FAST, FAST]
#          download, training, upload: the seconds of each client with examples
SECONDS = {0: 1 + 3 + 0.5, 2: 2 + 2 + 4, 3: 1 + 3.5 + 0.5, 4: 2 + 8 + 4, 5: 3, 6: 2}
ENERGY = (2 * 2 + 3 * 6) + (8 * 2 + 6 * 3) + (3 + 3.5 + 1.5 + 0.5)
EVERYBODY = len(cases.SIZES)
MODEL = cases.variables("linear")
DOWN, UP = len(codec.encode(MODEL)), len(codec.encode(MODEL, MODEL))


def fleet(hours=()):
  """Makes devices on which a download takes 2 s or 1 s, an example 1 s or 1/4 s, an upload 4 s or
  1/2 s; the slow ones need 2 W to train and 3 W to receive and send, the fast ones 1 W and none.
  """
  kinds = [FLOPS, 4 * FLOPS], [DOWN / 2, DOWN], [UP / 4, 2 * UP], [2, 1], [3, 0]
  kinds = Kinds(*(jnp.array(each, jnp.float32) for each in kinds))
  return Fleet(jnp.array(KIND, jnp.int32), kinds, jax.tree.map(jnp.asarray, hours))


@cache
def timed(num_rounds, selected, reports, deadline):
  timing = Timing(reports, deadline, lambda densities, sparsity: jnp.float32(FLOPS))
  return simulate(
    cases.algorithm("fedavg", "linear"),
    cases.problem("linear").task,
    clients_per_round=selected,
    clients_per_chunk=2,
    rounds_per_call=num_rounds,
    eval_batch_size=4,
    timing=timing,
  )


def run(num_rounds=3, selected=EVERYBODY, reports=EVERYBODY, deadline=inf, hours=(), **changes):
  simulation = timed(num_rounds, selected, reports, deadline)
  server = cases.start("fedavg", "linear", cases.hyper("fedavg", **changes))
  federation = cases.problem("linear").federation._replace(fleet=fleet(hours))
  state = State(server, (), start_clock())
  state, rows = simulation.run(state, federation, jax.random.key(3), num_rounds)
  rows = jax.device_get(rows)
  whole, part = (rows.pop(f"virtual_{name}_seconds") for name in ("whole", "part"))
  return state, rows | {"virtual_seconds": whole + part.astype(np.float64)}


def assert_rows(rows, **expected):
  for name, values in expected.items():
    np.testing.assert_allclose(rows[name], values, rtol=1e-5, err_msg=name)


def test_a_round_takes_as_long_as_its_slowest_client():
  state, rows = run()
  assert_rows(rows, round_virtual_seconds=[14] * 3, virtual_seconds=[14, 28, 42])
  assert_rows(rows, energy=[ENERGY] * 3, clients=[6] * 3, late_clients=[0] * 3)
  assert_rows(rows, unavailable_clients=[0] * 3, dropped_clients=[0] * 3)
  assert (int(state.clock.whole), float(state.clock.part)) == (42, 0)


def test_timing_changes_nothing_else():
  state, rows = run()
  everybody = simulate(
    cases.algorithm("fedavg", "linear"), cases.problem("linear").task, EVERYBODY, 2, 3, 4
  )
  plain = State(cases.start("fedavg", "linear"), ())
  federation = cases.problem("linear").federation
  expected, columns = everybody.run(plain, federation, jax.random.key(3), 3)
  cases.assert_close(state.server.variables, expected.server.variables, 1e-6)
  for name, column in columns.items():
    np.testing.assert_allclose(rows[name], column, rtol=1e-5, err_msg=name)


def test_who_is_later_than_the_deadline_does_not_count():
  _, rows = run(deadline=10)
  assert_rows(rows, round_virtual_seconds=[10] * 3, virtual_seconds=[10, 20, 30])
  # It has worked and sent what it would have.
  assert_rows(rows, clients=[5] * 3, late_clients=[1] * 3, energy=[ENERGY] * 3)
  assert total(rows["round_uplink_bytes"]).tolist() == [5 * UP] * 3
  assert total(rows["late_uplink_bytes"]).tolist() == [UP] * 3
  assert total(rows["examples"]).tolist() == [2 * (6 + 1 + 7 + 3 + 1)] * 3


def test_of_more_clients_than_are_needed_the_first_count():
  _, rows = run(reports=4)
  # The fourth is done after 5 s; two are not.
  assert_rows(rows, round_virtual_seconds=[5] * 3, clients=[4] * 3, late_clients=[2] * 3)
  assert total(rows["examples"]).tolist() == [2 * (6 + 7 + 3 + 1)] * 3


def test_a_round_ends_before_its_deadline_if_all_have_reported():
  _, rows = run(reports=4, deadline=10)
  assert_rows(rows, round_virtual_seconds=[5] * 3, late_clients=[2] * 3)
  _, rows = run(reports=4, deadline=4)  # two of the four that are wanted
  assert_rows(rows, round_virtual_seconds=[4] * 3, clients=[2] * 3, late_clients=[4] * 3)


def test_who_leaves_before_it_reports_is_lost_and_later_not_sampled():
  always = [(0, 100)]
  hours = hours_of([always, always, always, always, [(0, 20)], always, always], 100)
  _, rows = run(hours=hours)
  # Client 4 needs 14 s: done at first; it has 6 s left in the second round; away in the third.
  assert_rows(rows, round_virtual_seconds=[14, 8, 8], virtual_seconds=[14, 22, 30])
  assert_rows(rows, clients=[6, 5, 5], late_clients=[0, 1, 0], unavailable_clients=[0, 0, 1])
  assert_rows(rows, dropped_clients=[0] * 3)


def test_a_round_without_clients_waits_for_the_first_and_changes_nothing():
  hours = hours_of([[(30.5, 50)]] + [[(40, 50)]] * 6, 100)
  state, rows = run(hours=hours)
  # At 31 s the first client is there, alone.
  assert_rows(rows, round_virtual_seconds=[31, 4.5, 4.5], virtual_seconds=[31, 35.5, 40])
  assert_rows(rows, clients=[0, 1, 1], unavailable_clients=[7, 6, 6], energy=[0, 3, 3])
  assert np.isnan(rows["train_loss"][0]) and np.isfinite(rows["train_loss"][1:]).all()
  before = cases.start("fedavg", "linear").variables
  alone, _ = run(1, hours=hours)
  cases.assert_same_bits(alone.server.variables, before)
  assert not cases.same_bits(state.server.variables, before)


def test_nobody_ever():
  state, rows = run(hours=hours_of([[]] * 7, 100))
  assert_rows(rows, virtual_seconds=[0] * 3, clients=[0] * 3, unavailable_clients=[7] * 3)
  cases.assert_same_bits(state.server.variables, cases.start("fedavg", "linear").variables)


def test_who_vanishes_is_awaited_until_the_deadline():
  _, rows = run(5, deadline=20, client_dropout=0.3)
  some_vanished = rows["dropped_clients"] > 0
  assert some_vanished.any()
  for seconds, vanished, count in zip(
    rows["round_virtual_seconds"], some_vanished, rows["clients"], strict=True
  ):
    assert seconds == 20 if count < 6 else seconds == max(SECONDS.values())
    assert vanished or count == 6


# The race, with clients made up.

SIZE = 23


def racing_client(download, memory, data, key):
  number = data.size  # client i has i examples
  is_there = data.size > 0
  metrics = {
    "examples": tally(number, is_there),
    "round_uplink_bytes": tally(jnp.uint32(1000) * number.astype(jnp.uint32), is_there),
    "m": weighted(number.astype(jnp.float32), is_there),
  }
  return jnp.zeros(SIZE + 1).at[number].set(1.0), memory + 1, metrics


RACES = [(5, inf), (SIZE, 0.7), (8, 0.7), (1, inf)]


@pytest.mark.parametrize(
  ("clients_per_chunk", "reports", "limit"),
  [(4, *race) for race in RACES]
  + [
    pytest.param(size, *race, marks=() if race == (8, 0.7) else pytest.mark.slow)
    for size in (1, 30)
    for race in RACES
  ],
)
def test_the_first_count_however_the_cohort_is_cut(clients_per_chunk, reports, limit):
  sizes = np.arange(SIZE + 1)
  x, y = np.zeros((sizes.sum(), 1), np.float32), np.zeros(sizes.sum(), np.int32)
  federation = cases.make_federation(x, y, np.split(np.arange(len(y)), np.cumsum(sizes)[:-1]))
  rng = np.random.default_rng(reports)
  seconds = np.float32(rng.integers(0, 12, SIZE + 1) / 12)  # of which many are the same
  cohort = cases.members(rng.permutation(SIZE + 1))
  cohort = cohort._replace(is_present=cohort.numbers % 7 != 3)
  zeros = jnp.zeros(SIZE + 1)
  place = jnp.arange(SIZE + 1, dtype=jnp.int32)
  own = jnp.asarray(seconds)[cohort.numbers]
  costs = Costs(own, zeros, zeros, own, zeros, zeros, jnp.full(SIZE + 1, limit), place)
  cohort = cohort._replace(device=costs)
  run_race = partial(sum_over_clients, racing_client)
  upload, memories, metrics = run_race(
    None,
    jnp.zeros(SIZE + 1),
    federation,
    cohort,
    jax.random.key(0),
    clients_per_chunk,
    Race(reports, SIZE + 1 - reports),
  )

  numbers = cohort.numbers.tolist()
  taking_part = [n for n in numbers if n % 7 != 3 and n > 0]
  in_time = sorted((seconds[n], numbers.index(n), n) for n in taking_part if seconds[n] <= limit)
  first = [n for *_, n in in_time[:reports]]
  late = set(taking_part) - set(first)
  assert np.flatnonzero(upload).tolist() == sorted(first) == np.flatnonzero(memories).tolist()
  assert float(metrics["clients"].total) == len(first)
  assert float(metrics["m"].value) == pytest.approx(np.mean(first))
  assert float(metrics["late_clients"].total) == len(late)
  assert total(metrics["late_uplink_bytes"].value) == 1000 * sum(late)
  assert float(metrics["last_report"].total) == in_time[: len(first)][-1][0]
  assert float(metrics["energy"].total) == pytest.approx(seconds[taking_part].sum(), rel=1e-5)


# Who is available.


def test_hours_are_those_of_the_trace():
  rng = np.random.default_rng(0)
  period, intervals = 1000, []
  for _ in range(40):
    bounds = np.sort(rng.choice(period + 1, 2 * rng.integers(0, 5), replace=False))
    intervals.append([tuple(map(int, pair)) for pair in bounds.reshape(-1, 2)])
  hours = jax.tree.map(jnp.asarray, hours_of(intervals, period))
  look = jax.jit(lambda clock: look_up(hours, clock, jnp.arange(40, dtype=jnp.int32)))
  for now in [0, 1, 500, 999, *rng.integers(0, 10**9, 30).tolist()]:
    wait, stays = look(Clock(jnp.int32(now), jnp.float32(0.5)))
    for number, own in enumerate(intervals):
      is_there = [any(a <= (now + 0.5 + s) % period < b for a, b in own) for s in range(2 * period)]
      first = is_there.index(True) if True in is_there else inf
      assert (wait[number] == 0) == is_there[0]
      assert wait[number] == first or first - 1 < wait[number] < first + 1
      if is_there[0]:
        left = is_there.index(False) if False in is_there else inf
        assert stays[number] == left or left - 1 < stays[number] < left + 1
      else:
        assert stays[number] == 0


def test_the_clock_tells_seconds_apart_after_years():
  clock = Clock(jnp.int32(10**9), jnp.float32(0.75))
  for _ in range(10):
    clock = advance(clock, jnp.float32(0.1))
  assert int(clock.whole) == 10**9 + 1 and float(clock.part) == pytest.approx(0.75, abs=1e-5)
  assert (
    int(advance(Clock(jnp.int32(2**31 - 5), jnp.float32(0)), jnp.float32(10)).whole) == 2**31 - 1
  )


@pytest.mark.parametrize("availability", ["uniform", "size"])
def test_all_that_are_available_are_equally_likely(availability):
  num_clients, count, num_draws = 60, 5, 6000
  is_here = np.arange(num_clients) % 3 != 1
  sizes = jnp.full(num_clients, 4)
  waits = lambda numbers: jnp.where(jnp.asarray(is_here)[numbers], 0.0, 7.0)  # noqa: E731
  draw = partial(
    sampling.sample,
    sizes=sizes,
    clients_per_round=count,
    availability=sampling.AVAILABILITIES[availability],
    hyper=cases.hyper(),
    waits=waits,
  )
  keys = [jax.random.split(jax.random.key(seed), num_draws) for seed in range(2)]
  cohort = jax.jit(jax.vmap(draw))(*keys)
  numbers = np.asarray(cohort.numbers)
  assert all(len(set(row)) == count for row in numbers.tolist()) and np.all(cohort.is_present)
  counts = np.bincount(numbers.ravel(), minlength=num_clients)
  assert not counts[~is_here].any()
  left = 1 - count / is_here.sum()  # without replacement counts vary less
  expected = num_draws * count / is_here.sum()
  statistic = np.sum((counts[is_here] - expected) ** 2 / expected) / left
  freedom = is_here.sum() - 1
  assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)
  assert abs(chi_square(counts[is_here], expected)) < 4 * np.sqrt(2)


@pytest.mark.parametrize("num_clients", [1, 3, 5000])
def test_where_too_few_are_available_the_next_fill_up_and_are_not_present(num_clients):
  count = min(3, num_clients)
  waits = lambda numbers: (num_clients - numbers).astype(jnp.float32) - 1  # noqa: E731
  cohort = sampling.sample(
    jax.random.key(0),
    jax.random.key(1),
    jnp.full(num_clients, 2),
    count,
    sampling.uniformly,
    cases.hyper(),
    waits,
  )
  numbers = np.asarray(cohort.numbers)
  assert len(set(numbers.tolist())) == count
  assert (np.asarray(waits(cohort.numbers)) == 0).tolist() == cohort.is_present.tolist()
  if num_clients < 1000:  # all were asked
    assert sorted(numbers.tolist()) == list(range(num_clients - count, num_clients))


def test_ten_of_a_million_ask_few():
  starts = jax.ShapeDtypeStruct((10**6 + 1,), jnp.int32)
  seconds = jax.ShapeDtypeStruct((10**6,), jnp.float32)

  def draw(key, starts, opens, closes, sizes):
    hours = Hours(starts, opens, closes, jnp.int32(9))
    waits = lambda numbers: look_up(hours, start_clock(), numbers)[0]  # noqa: E731
    return sampling.sample(key, key, sizes, 10, sampling.uniformly, cases.hyper(), waits)

  sizes = jax.ShapeDtypeStruct((10**6,), jnp.int32)
  compiled = jax.jit(draw).lower(jax.random.key(0), starts, seconds, seconds, sizes).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 10**6


def test_by_size_too_the_first_to_be_there_are_taken_to_the_second():
  seconds = jnp.array([40031.0, 40000.0, 40030.0, jnp.inf, 40001.0])
  draw = partial(
    sampling.sample,
    sizes=jnp.array([9, 1, 9, 9, 1]),
    clients_per_round=2,
    availability=sampling.by_size,
    hyper=cases.hyper(),
    waits=lambda numbers: seconds[numbers],
  )
  keys = [jax.random.split(jax.random.key(seed), 20) for seed in range(2)]
  numbers = np.asarray(jax.vmap(draw)(*keys).numbers)
  assert np.sort(numbers).tolist() == [[1, 4]] * 20
