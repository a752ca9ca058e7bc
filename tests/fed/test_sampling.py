"""Who takes part, over many draws."""

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
def test_an_order_holds_every_client_once(num_clients):
  order = jax.jit(sampling._permutation, static_argnums=1)(jax.random.key(1), num_clients)
  assert order.dtype == jnp.int32
  np.testing.assert_array_equal(np.sort(order), np.arange(num_clients))
  assert num_clients < 3 or not np.array_equal(order, np.arange(num_clients))


def test_all_orders_are_equally_likely():
  orders = jax.vmap(lambda seed: sampling._permutation(jax.random.key(seed), 3))(jnp.arange(6000))
  _, counts = np.unique(orders, axis=0, return_counts=True)
  assert len(counts) == 6 and np.all(np.abs(counts - 1000) < 150)
