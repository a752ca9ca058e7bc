"""Who takes part, over many draws."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.fed import sampling
from sparsyfed_jax.fed.sampling import AVAILABILITIES, sample
from tests import cases

SIZES = jnp.int32([5, 0, 1, 20, 7, 7, 3, 9])
NUM_DRAWS = 400


def draw(clients_per_round=4, availability="uniform", **values):
  run = partial(
    sample,
    sizes=SIZES,
    clients_per_round=clients_per_round,
    availability=AVAILABILITIES[availability],
    hyper=cases.hyper(**values),
  )
  keys = [jax.random.split(jax.random.key(seed), NUM_DRAWS) for seed in range(2)]
  return jax.jit(jax.vmap(run))(*keys)


@pytest.mark.parametrize("availability", AVAILABILITIES)
def test_without_replacement_and_smallest_first(availability):
  numbers = np.asarray(draw(availability=availability).numbers)
  assert all(len(set(row)) == 4 for row in numbers.tolist())
  assert (np.diff(np.asarray(SIZES)[numbers], axis=1) >= 0).all()


def test_who_vanished_or_stops_early_comes_before_who_does_more():
  cohort = draw(8, client_dropout=0.25, straggler_fraction=0.5)
  examples = np.where(
    cohort.is_present, np.asarray(cohort.work) * np.asarray(SIZES)[cohort.numbers], 0
  )
  assert (np.diff(examples, axis=1) >= 0).all() and (examples > 0).any(axis=1).all()
  assert (np.diff(np.asarray(SIZES)[np.asarray(cohort.numbers)], axis=1) < 0).any()


def test_by_size_large_clients_come_more_often():
  counts = np.bincount(np.asarray(draw(1, "size").numbers).ravel(), minlength=8)
  shares = np.asarray(SIZES) / int(SIZES.sum())
  deviation = np.sqrt(NUM_DRAWS * shares * (1 - shares))
  assert counts[1] == 0
  assert (np.abs(counts - NUM_DRAWS * shares) <= 4 * deviation).all()


def test_plain_cohorts_are_whole():
  cohort = draw()
  assert np.all(cohort.is_present) and np.all(cohort.work == 1)


def test_clients_vanish_and_straggle_with_the_probabilities_asked_for():
  cohort = draw(client_dropout=0.25, straggler_fraction=0.5)
  present, work = np.asarray(cohort.is_present), np.asarray(cohort.work)
  assert present.mean() == pytest.approx(0.75, abs=0.05)
  assert (work < 1).mean() == pytest.approx(0.5, abs=0.05)
  assert work[work < 1].mean() == pytest.approx(0.5, abs=0.05)
  assert (work >= 0).all()
  # Both are drawn apart from each other.
  assert np.corrcoef(present.ravel(), (work < 1).ravel())[0, 1] == pytest.approx(0, abs=0.1)


def test_what_happens_to_a_client_belongs_to_its_number():
  some, more = (draw(n, client_dropout=0.5) for n in (2, 8))
  for i in range(20):
    fates = dict(zip(more.numbers[i].tolist(), more.is_present[i].tolist(), strict=True))
    for number, is_present in zip(
      some.numbers[i].tolist(), some.is_present[i].tolist(), strict=True
    ):
      assert fates[number] == is_present


@pytest.mark.parametrize("num_clients", [1, 2, 1000, 2**14, 2**14 + 1])
def test_all_clients_are_drawn_once_if_all_are_asked_for(num_clients):
  numbers = sampling.distinct(jax.random.key(1), num_clients, num_clients)
  assert numbers.dtype == jnp.int32
  np.testing.assert_array_equal(numbers, np.arange(num_clients))


@partial(jax.jit, static_argnums=(1, 2, 3))
def many(key, num_clients, count, num_draws):
  draw = partial(sampling.distinct, num_clients=num_clients, count=count)
  return jax.vmap(draw)(jax.random.split(key, num_draws))


@pytest.mark.parametrize("num_clients", [1, 2, 7, 1000, 2**14 + 1, 2**20 + 1])
def test_nobody_is_drawn_twice(num_clients):
  for count in {1, 2, 3, num_clients // 2, num_clients // 2 + 1, num_clients - 1, 1000}:
    if 0 < count <= min(num_clients, 10**4):
      numbers = np.asarray(many(jax.random.key(count), num_clients, count, 3))
      assert numbers.dtype == np.int32 and numbers.shape == (3, count)
      assert (np.diff(numbers, axis=1) > 0).all()
      assert numbers.min() >= 0 and numbers.max() < num_clients


def chi_square(counts, expected):
  """Standard deviations of a chi-square statistic from its mean; normal, nearly."""
  freedom = len(counts) - 1
  return (np.sum((counts - expected) ** 2 / expected) - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(("num_clients", "count"), [(5, 2), (5, 3), (6, 3), (7, 1), (4, 3)])
def test_all_sets_of_clients_are_equally_likely(num_clients, count):
  sets = list(itertools.combinations(range(num_clients), count))
  drawn = np.asarray(many(jax.random.key(2), num_clients, count, 60_000))
  found, counts = np.unique(drawn, axis=0, return_counts=True)
  assert found.tolist() == [list(one) for one in sets]
  assert abs(chi_square(counts, 60_000 / len(sets))) < 4


@pytest.mark.parametrize(("num_clients", "count"), [(1000, 10), (1000, 900), (2**20 + 1, 10)])
def test_a_million_draws_are_uniform(num_clients, count):
  drawn = np.asarray(many(jax.random.key(3), num_clients, count, 10**6 // count)).ravel()
  cells = 1000 if num_clients > 1000 else num_clients
  counts = np.bincount(drawn.astype(np.int64) * cells // num_clients, minlength=cells)
  # Without replacement counts vary less, by the share of those that are left out.
  left = 1 - count / num_clients
  wanted = len(drawn) * np.diff(np.ceil(np.arange(cells + 1) * num_clients / cells)) / num_clients
  freedom = cells - 1
  statistic = np.sum((counts - wanted) ** 2 / wanted) / left
  assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


def test_clients_of_equal_size_come_in_any_order():
  # Four of four: all 24 orders of the cohort, 250 each.
  run = partial(
    sample,
    sizes=jnp.full(4, 3),
    clients_per_round=4,
    availability=AVAILABILITIES["uniform"],
    hyper=cases.hyper(),
  )
  keys = [jax.random.split(jax.random.key(seed), 6000) for seed in range(2)]
  orders = np.asarray(jax.jit(jax.vmap(run))(*keys).numbers)
  _, counts = np.unique(orders, axis=0, return_counts=True)
  assert len(counts) == 24 and abs(chi_square(counts, 250)) < 4


def test_ten_of_a_million_take_memory_of_ten():
  run = partial(
    sample, clients_per_round=10, availability=AVAILABILITIES["uniform"], hyper=cases.hyper()
  )
  keys = jax.random.key(0), jax.random.key(1)
  sizes = jax.ShapeDtypeStruct((10**6,), jnp.int32)
  compiled = jax.jit(lambda *operands: run(*operands)).lower(*keys, sizes).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 10**5


def successive(sizes, count):
  """How likely each set of clients is that are drawn one by one in proportion to their sizes."""
  found = {}
  for order in itertools.permutations(range(len(sizes)), count):
    chance, left = 1.0, sum(sizes)
    for client in order:
      chance, left = chance * sizes[client] / left, left - sizes[client]
    found[tuple(sorted(order))] = found.get(tuple(sorted(order)), 0) + chance
  return found


def by_size(sizes, count, num_draws, waits=None, seed=5):
  keys = jax.random.split(jax.random.key(seed), num_draws)
  drawn = draw_by_size(keys, jnp.int32(sizes), count, waits, sampling._TRIES)
  return np.sort(np.asarray(drawn), axis=1)


@partial(jax.jit, static_argnums=(2, 3, 4))
def draw_by_size(keys, sizes, count, waits, tries):
  assert tries == sampling._TRIES  # by which it is compiled
  run = partial(
    sample,
    sizes=sizes,
    clients_per_round=count,
    availability=sampling.by_size,
    hyper=cases.hyper(),
    waits=waits,
  )
  return jax.vmap(lambda key: run(key, key).numbers)(keys)


@pytest.mark.parametrize("tries", [0, 1, pytest.param(2, marks=pytest.mark.slow), 32])
@pytest.mark.parametrize("sizes", [[3, 1, 0, 5, 2, 2], [99, 0, 1, 0, 1, 2], [1, 2, 3, 4]])
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_by_size_sets_are_as_likely_as_drawn_one_by_one(monkeypatch, sizes, count, tries):
  # Also where the clients that are missing after some draws are found among all.
  monkeypatch.setattr(sampling, "_TRIES", tries)
  wanted = {own: chance for own, chance in successive(sizes, count).items() if chance > 0}
  found, counts = np.unique(by_size(sizes, count, 20_000), axis=0, return_counts=True)
  sets = dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))
  assert sets.keys() <= wanted.keys()
  expected = 20_000 * np.array(list(wanted.values()))
  counts = np.array([sets.get(own, 0) for own in wanted])
  assert abs(chi_square(counts, expected)) < 4.5 or len(wanted) == 1


@pytest.mark.parametrize("tries", [1, 32])
def test_by_size_those_who_are_not_available_are_passed_over(monkeypatch, tries):
  monkeypatch.setattr(sampling, "_TRIES", tries)
  sizes, away = [4, 9, 1, 2, 3, 5], {1: 10.0, 4: 20.0}
  table = jnp.array([away.get(client, 0.0) for client in range(6)])
  drawn = by_size(sizes, 2, 20_000, lambda numbers: table[numbers])
  wanted = successive([0 if client in away else size for client, size in enumerate(sizes)], 2)
  wanted = {own: chance for own, chance in wanted.items() if chance > 0}
  found, counts = np.unique(drawn, axis=0, return_counts=True)
  assert found.tolist() == [list(own) for own in sorted(wanted)]
  expected = 20_000 * np.array([wanted[own] for own in sorted(wanted)])
  assert abs(chi_square(counts, expected)) < 4.5
  # Where too few are there, the next to be available fill up.
  assert (by_size(sizes, 5, 100, lambda numbers: table[numbers]) == [0, 1, 2, 3, 5]).all()


def test_by_size_everybody_comes_though_nearly_nobody_has_examples():
  for sizes in ([0, 0, 0, 0], [0, 7, 0, 0], [2**31 - 4, 1, 1, 1]):
    assert (by_size(sizes, 4, 5) == np.arange(4)).all()
  assert (np.diff(by_size([10**9] + [1] * 999, 50, 20), axis=1) > 0).all()


def test_by_size_a_million_take_the_time_of_those_drawn():
  # Of the compiled program: what grows with all of them stands in a branch.
  run = partial(sample, clients_per_round=10, availability=sampling.by_size, hyper=cases.hyper())
  shapes = [jax.ShapeDtypeStruct((10**6,), jnp.int32)] * 2
  keys = jax.random.key(0), jax.random.key(1)
  program = jax.make_jaxpr(lambda sizes, ends: run(*keys, sizes, ends=ends))(*shapes)
  outside = [str(each) for each in program.eqns if each.primitive.name != "cond"]
  inside = [str(each) for each in program.eqns if each.primitive.name == "cond"]
  assert any("top_k" in text for text in inside) and len(inside) == 1
  assert not any("top_k" in text or "cumsum" in text or "f32[1000000]" in text for text in outside)


def test_by_size_sizes_may_be_added_up_before():
  run = partial(sample, clients_per_round=3, availability=sampling.by_size, hyper=cases.hyper())
  keys = jax.random.key(3), jax.random.key(4)
  ends = sampling.ends_of(sampling.by_size, SIZES)
  assert ends.tolist() == np.cumsum(SIZES).tolist()
  assert sampling.ends_of(sampling.uniformly, SIZES) is None
  assert run(*keys, SIZES).numbers.tolist() == run(*keys, SIZES, ends=ends).numbers.tolist()
