"""Splits: every example once, sizes, determinism, hand-worked cases, errors naming the culprit."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsyfed_jax.data import draws, lists, partition

LABELS = np.random.default_rng(0).integers(0, 10, 2000)
NUM_CLIENTS = 20

Y3 = np.arange(900) % 3

# Each split of LABELS over NUM_CLIENTS as a function of the key.
SPLITS = {
  "dirichlet": lambda key: partition.dirichlet(key, LABELS, NUM_CLIENTS, 0.5),
  "dirichlet_symmetric": lambda key: partition.dirichlet_symmetric(key, LABELS, NUM_CLIENTS, 0.5),
  "dirichlet_per_class": lambda key: partition.dirichlet_per_class(key, LABELS, NUM_CLIENTS, 0.5),
  "iid": lambda key: partition.iid(key, len(LABELS), NUM_CLIENTS),
  "shards": lambda key: partition.shards(key, LABELS, NUM_CLIENTS, 2),
  "power_law": lambda key: partition.power_law(key, len(LABELS), NUM_CLIENTS, 1.0),
}

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
alphas = st.sampled_from([1e-310, 1e-3, 0.1, 1.0, 100.0, 1e6, 1e307])


@st.composite
def labels_and_clients(draw):
  num_clients = draw(st.integers(1, 12))
  num_classes = draw(st.integers(1, 8))
  labels = draw(st.lists(st.integers(0, num_classes - 1), min_size=num_clients, max_size=60))
  return np.array(labels, draw(st.sampled_from([np.uint8, np.int32, np.int64]))), num_clients


def assert_splits(parts, num_examples, num_clients):
  """Every example exactly once, in one sorted int32 array per client."""
  assert len(parts) == num_clients
  assert all(part.dtype == np.int32 and part.ndim == 1 for part in parts)
  assert all((np.diff(part) > 0).all() for part in parts)
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))


def spread(parts):
  sizes = [len(part) for part in parts]
  return max(sizes) - min(sizes)


def class_counts(parts, labels):
  num_classes = labels.max() + 1
  return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts])


def as_lists(parts):
  return [part.tolist() for part in parts]


class TestEverySplit:
  @pytest.mark.parametrize("name", SPLITS)
  def test_uses_every_example_once(self, name):
    assert_splits(SPLITS[name](jax.random.key(0)), len(LABELS), NUM_CLIENTS)

  @pytest.mark.parametrize("name", SPLITS)
  def test_depends_on_the_key_and_on_nothing_else(self, name):
    first = as_lists(SPLITS[name](jax.random.key(0)))
    assert as_lists(SPLITS[name](jax.random.key(0))) == first
    assert as_lists(SPLITS[name](jax.random.key(1))) != first
    assert as_lists(SPLITS[name](jax.random.fold_in(jax.random.key(0), 1))) != first


class TestGenerator:
  def test_equal_keys_give_equal_streams(self):
    a, b, c = (draws.generator(jax.random.key(seed)).random(4) for seed in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert not np.intersect1d(a, c).size

  def test_takes_keys_of_the_old_style(self):
    old, new = jax.random.PRNGKey(5), jax.random.key(5, impl="threefry2x32")
    assert draws.generator(old).random() == draws.generator(new).random()


class TestDirichlet:
  @quick
  @given(labels_and_clients(), alphas, seeds)
  def test_sizes_are_equal_for_any_labels_and_alpha(self, case, alpha, seed):
    labels, num_clients = case
    parts = partition.dirichlet(jax.random.key(seed), labels, num_clients, alpha)
    assert_splits(parts, len(labels), num_clients)
    assert spread(parts) <= 1

  def test_small_alpha_leaves_few_classes_per_client(self):
    parts = partition.dirichlet(jax.random.key(0), LABELS, NUM_CLIENTS, 1e-3)
    counts = class_counts(parts, LABELS)
    assert np.median((counts > 0).sum(1)) <= 2
    assert np.median(counts.max(1) / counts.sum(1)) > 0.5

  def test_large_alpha_is_near_uniform(self):
    labels = np.arange(20000) % 10
    parts = partition.dirichlet(jax.random.key(0), labels, 10, 1e6)
    # The last client gets what is left over, and the noise of all the others with it.
    frequencies = class_counts(parts, labels)[:-1] / 2000
    np.testing.assert_allclose(frequencies, 0.1, atol=0.03)

  @pytest.mark.parametrize("is_symmetric", [False, True])
  def test_is_its_two_halves(self, is_symmetric):
    key, labels = jax.random.key(7), LABELS
    key_distributions, key_draws = jax.random.split(key)
    alpha = 0.5 if is_symmetric else draws.concentrations(labels, 0.5)
    distributions = draws.class_distributions(key_distributions, NUM_CLIENTS, 10, alpha)
    halves = partition.by_distribution(key_draws, labels, distributions)
    split = partition.dirichlet_symmetric if is_symmetric else partition.dirichlet
    assert as_lists(halves) == as_lists(split(key, labels, NUM_CLIENTS, 0.5))

  def test_a_large_alpha_gives_every_client_the_mix_of_an_unbalanced_set(self):
    # The sizes of speech_commands: ten words, silence, and all other words as one class.
    labels = np.repeat(np.arange(12), [3080] * 10 + [700, 54011])
    key = jax.random.key(0)

    def judge(split):
      """Counts clients with the frequent class alone; mean distance to the mix of all clients."""
      shares = class_counts(split(key, labels, 100, 1000.0), labels) / 855
      distances = np.abs(shares - np.bincount(labels) / len(labels)).sum(1) / 2
      return int(np.sum(shares[:, 11] > 0.999)), distances.mean()

    assert judge(partition.dirichlet_symmetric) == (59, pytest.approx(0.44, abs=0.01))
    assert judge(partition.dirichlet) == (0, pytest.approx(0.04, abs=0.01))

  @pytest.mark.parametrize("alpha", [1e-3, 0.1, 0.3, 1.0, 1000.0])
  @pytest.mark.parametrize("num_classes, each", [(3, 77), (7, 30), (10, 50)])
  def test_on_balanced_classes_both_forms_are_the_same(self, alpha, num_classes, each):
    labels = np.random.default_rng(0).permutation(np.arange(num_classes * each) % num_classes)
    args = jax.random.key(3), labels, 20, alpha
    symmetric = as_lists(partition.dirichlet_symmetric(*args))
    assert as_lists(partition.dirichlet(*args)) == symmetric

  def test_a_number_that_no_example_has_changes_nothing(self):
    key = jax.random.key(0)
    counts = [class_counts(partition.dirichlet(key, y, 10, 1.0), y) for y in (Y3, 2 * Y3)]
    assert counts[0].shape == (10, 3) and counts[1].shape == (10, 5)
    assert not counts[1][:, [1, 3]].any()
    np.testing.assert_allclose(counts[1].mean(0)[::2], counts[0].mean(0))

  def test_takes_random_examples_of_a_class(self):
    first = partition.dirichlet(jax.random.key(0), np.zeros(100, np.int32), 2, 1.0)[0]
    assert first.tolist() != list(range(50))


class TestClassDistributions:
  @quick
  @given(alphas, st.integers(1, 30), seeds)
  def test_rows_are_distributions(self, alpha, num_classes, seed):
    rows = draws.class_distributions(jax.random.key(seed), 7, num_classes, alpha)
    assert rows.shape == (7, num_classes) and rows.dtype == np.float64
    assert (rows >= 0).all()
    np.testing.assert_allclose(rows.sum(1), 1.0, rtol=1e-12)

  @pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 5.0])
  def test_moments_are_those_of_the_dirichlet(self, alpha):
    rows = draws.class_distributions(jax.random.key(0), 40000, 4, alpha)
    variance = (1 / 4) * (3 / 4) / (4 * alpha + 1)
    np.testing.assert_allclose(rows.mean(0), 1 / 4, atol=0.01)
    np.testing.assert_allclose(rows.var(0), variance, rtol=0.03)

  def test_one_alpha_for_each_class(self):
    # Dirichlet(a): means a / sum(a), variances m (1 - m) / (sum(a) + 1).
    alphas = np.array([0.2, 0.0, 3.0, 0.8])
    rows = draws.class_distributions(jax.random.key(0), 40000, 4, alphas)
    means = alphas / 4
    np.testing.assert_allclose(rows.mean(0), means, atol=0.01)
    np.testing.assert_allclose(rows.var(0), means * (1 - means) / 5, rtol=0.05)
    assert not rows[:, 1].any()

  @pytest.mark.parametrize("alpha", [5e-324, 1e-310, 1e307, 1.7e308])
  def test_extreme_alphas_of_unbalanced_classes(self, alpha):
    labels = np.repeat(np.arange(3), [1, 10, 10000])
    alphas = draws.concentrations(labels, alpha)
    rows = draws.class_distributions(jax.random.key(0), 50, 3, alphas)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-12)

  def test_a_vanishing_alpha_picks_one_class(self):
    rows = draws.class_distributions(jax.random.key(0), 400, 4, 1e-310)
    np.testing.assert_array_equal(np.sort(rows, 1), [[0, 0, 0, 1]] * 400)
    assert (rows.sum(0) > 50).all()

  def test_a_huge_alpha_is_uniform(self):
    rows = draws.class_distributions(jax.random.key(0), 5, 4, 1e307)
    np.testing.assert_allclose(rows, 1 / 4, rtol=1e-12)


class TestByDistribution:
  def test_one_hot_rows_give_each_client_its_class(self):
    labels = np.array([2, 0, 1, 1, 0, 2])
    parts = partition.by_distribution(jax.random.key(0), labels, np.eye(3))
    assert as_lists(parts) == [[1, 4], [2, 3], [0, 5]]

  @pytest.mark.parametrize("seed", range(5))
  def test_a_class_that_runs_out_hands_over_to_the_others(self, seed):
    # Client 0 wants class 0 alone, which has one example: the other three come from the rest.
    labels = np.array([1, 0, 2, 1, 2, 1, 2, 1])
    weights = np.array([[1.0, 0, 0], [0, 1, 0]])
    first, second = partition.by_distribution(jax.random.key(seed), labels, weights)
    assert 1 in first and len(first) == 4
    assert_splits([first, second], 8, 2)

  @pytest.mark.parametrize("seed", range(5))
  def test_a_class_used_up_by_an_earlier_client_is_left_out(self, seed):
    # Both want class 0, client 0 takes all of it; client 1 gets classes 1 and 2.
    labels = np.array([0, 1, 0, 2])
    first, second = partition.by_distribution(jax.random.key(seed), labels, np.eye(3)[[0, 0]])
    assert (first.tolist(), second.tolist()) == ([0, 2], [1, 3])

  def test_the_wish_still_counts_after_a_class_ran_out(self):
    # Class 0 is gone at once; of the others class 2 has all the weight, class 1 the 1e-5.
    labels = np.array([0] + [1] * 500 + [2] * 500)
    weights = np.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    first, _ = partition.by_distribution(jax.random.key(0), labels, weights)
    counts = np.bincount(labels[first], minlength=3)
    assert counts.tolist() == [1, 0, 500]

  def test_a_class_without_any_example_is_never_drawn(self):
    parts = partition.by_distribution(jax.random.key(0), np.array([0, 2, 0, 2]), np.eye(4)[[1, 3]])
    assert_splits(parts, 4, 2)

  @pytest.mark.parametrize("num_examples", [20000, 4000])
  def test_train_and_test_follow_the_same_distributions(self, num_examples):
    labels = np.arange(num_examples) % 4  # no class runs out: each is wanted as often as it occurs
    wanted = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25] * 4, [0.25] * 4])
    parts = partition.by_distribution(jax.random.key(num_examples), labels, wanted)
    frequencies = class_counts(parts, labels) / (num_examples // 4)
    np.testing.assert_allclose(frequencies[:3], wanted[:3], atol=0.05)

  def test_probabilities_worked_by_hand(self):
    # Of one example of class 0 and two of class 1, client 0 takes two at even odds: it misses class
    # 0 only if it draws class 1 twice, 1/4. (After class 0 it can only draw class 1.)
    labels, weights = np.array([0, 1, 1]), np.full((2, 2), 0.5)
    missed = [
      0 not in partition.by_distribution(jax.random.key(seed), labels, weights)[0]
      for seed in range(200)
    ]
    assert abs(np.mean(missed) - 0.25) < 0.1

  def test_larger_sizes_come_first(self):
    parts = partition.by_distribution(jax.random.key(0), LABELS[:11], np.ones((4, 10)))
    assert [len(part) for part in parts] == [3, 3, 3, 2]


class TestDirichletPerClass:
  @quick
  @given(labels_and_clients(), alphas, seeds)
  def test_any_labels_and_alpha(self, case, alpha, seed):
    labels, num_clients = case
    parts = partition.dirichlet_per_class(jax.random.key(seed), labels, num_clients, alpha)
    assert_splits(parts, len(labels), num_clients)

  def test_small_alpha_gives_a_class_to_one_client(self):
    parts = partition.dirichlet_per_class(jax.random.key(0), LABELS, NUM_CLIENTS, 1e-4)
    counts = class_counts(parts, LABELS)
    assert (counts.max(0) == counts.sum(0)).mean() >= 0.8
    assert min(map(len, parts)) == 0

  def test_large_alpha_is_near_uniform(self):
    parts = partition.dirichlet_per_class(jax.random.key(0), np.arange(2000) % 10, 20, 1e6)
    assert np.abs(class_counts(parts, np.arange(2000) % 10) - 10).max() <= 1

  def test_more_clients_than_examples_leaves_some_empty(self):
    parts = partition.dirichlet_per_class(jax.random.key(0), np.array([0, 1]), 5, 1.0)
    assert_splits(parts, 2, 5)


class TestIid:
  @quick
  @given(st.integers(1, 12), st.integers(0, 50), seeds)
  def test_sizes_are_equal(self, num_clients, more, seed):
    parts = partition.iid(jax.random.key(seed), num_clients + more, num_clients)
    assert_splits(parts, num_clients + more, num_clients)
    assert spread(parts) <= 1

  def test_mixes_the_order(self):
    assert partition.iid(jax.random.key(0), 100, 2)[0].tolist() != list(range(50))


class TestShards:
  def test_hand_worked(self):
    # Sorted by label: 1 3 | 0 4 | 2 5; one shard of two examples each.
    labels = np.array([1, 0, 2, 0, 1, 2])
    parts = partition.shards(jax.random.key(0), labels, 3, 1)
    assert sorted(as_lists(parts)) == [[0, 4], [1, 3], [2, 5]]

  def test_two_shards_hold_at_most_two_classes(self):
    labels = np.repeat(np.arange(10), 60)
    parts = partition.shards(jax.random.key(0), labels, 10, 2)
    assert {len(part) for part in parts} == {60}
    assert (class_counts(parts, labels) > 0).sum(1).max() <= 2

  @quick
  @given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 20), seeds)
  def test_sizes_differ_by_at_most_one_per_shard(self, num_clients, per_client, more, seed):
    labels = np.arange(num_clients * per_client + more) % 3
    parts = partition.shards(jax.random.key(seed), labels, num_clients, per_client)
    assert_splits(parts, len(labels), num_clients)
    assert spread(parts) <= per_client


class TestPowerLaw:
  @quick
  @given(st.integers(1, 80), st.integers(1, 20), st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e3]), seeds)
  def test_nobody_is_empty_where_examples_suffice(self, num_examples, num_clients, exponent, seed):
    parts = partition.power_law(jax.random.key(seed), num_examples, num_clients, exponent)
    assert_splits(parts, num_examples, num_clients)
    assert num_examples < num_clients or min(map(len, parts)) >= 1

  def test_follows_the_law(self):
    # 1 + 1/2 + 1/3 = 11/6: of the 66 examples beyond one each 36, 18 and 12.
    sizes = [len(part) for part in partition.power_law(jax.random.key(0), 69, 3, 1.0)]
    assert sorted(sizes) == [13, 19, 37]

  def test_exponent_zero_is_equal(self):
    assert spread(partition.power_law(jax.random.key(0), 100, 7, 0.0)) <= 1

  def test_ranks_are_shuffled_over_clients(self):
    first = {
      int(np.argmax([len(part) for part in partition.power_law(jax.random.key(seed), 200, 5, 2.0)]))
      for seed in range(20)
    }
    assert len(first) > 2


class TestNatural:
  def test_hand_worked_with_empty_clients(self):
    parts = partition.natural(np.array([3, 1, 3, 0, 1], np.int16), 5)
    assert as_lists(parts) == [[3], [1, 4], [], [0, 2], []]
    assert {part.dtype for part in parts} == {np.dtype(np.int32)}


Y = np.array([0, 1, 1, 0])
ERRORS = {
  "dirichlet alpha zero": (lambda k: partition.dirichlet(k, Y, 2, 0.0), "alpha=0.0.*greater"),
  "dirichlet alpha nan": (lambda k: partition.dirichlet(k, Y, 2, np.nan), "alpha=nan.*finite"),
  "dirichlet alpha inf": (lambda k: partition.dirichlet(k, Y, 2, np.inf), "alpha=inf.*finite"),
  "dirichlet no clients": (lambda k: partition.dirichlet(k, Y, 0, 1.0), "num_clients=0.*least 1"),
  "dirichlet clients": (lambda k: partition.dirichlet(k, Y, 5, 1.0), "num_clients=5.*examples, 4"),
  "dirichlet floats": (lambda k: partition.dirichlet(k, Y * 1.0, 2, 1.0), "labels: is float64"),
  "dirichlet no labels": (lambda k: partition.dirichlet(k, Y[:0], 2, 1.0), r"labels:.*\(0,\)"),
  "dirichlet one-hot": (lambda k: partition.dirichlet(k, Y[:, None], 2, 1.0), r"labels:.*\(4, 1\)"),
  "dirichlet negative": (lambda k: partition.dirichlet(k, Y - 1, 2, 1.0), "labels: holds -1"),
  "distributions clients": (lambda k: draws.class_distributions(k, 0, 2, 1.0), "num_clients=0"),
  "distributions classes": (lambda k: draws.class_distributions(k, 2, 0, 1.0), "num_classes=0"),
  "distributions alpha": (lambda k: draws.class_distributions(k, 2, 2, -1.0), "alpha=-1.0"),
  "distributions zeros": (
    lambda k: draws.class_distributions(k, 2, 2, np.zeros(2)),
    "alpha=.*greater than 0",
  ),
  "by rank": (lambda k: partition.by_distribution(k, Y, np.ones(2)), r"distributions:.*\(2,\)"),
  "by columns": (lambda k: partition.by_distribution(k, Y, np.ones((2, 1))), "1 columns.*up to 1"),
  "by zeros": (lambda k: partition.by_distribution(k, Y, np.zeros((2, 2))), "distributions: .*sum"),
  "by nan": (lambda k: partition.by_distribution(k, Y, np.full((2, 2), np.nan)), "distributions: "),
  "by negative": (lambda k: partition.by_distribution(k, Y, np.array([[2, -1]])), "non-negative"),
  "by clients": (lambda k: partition.by_distribution(k, Y, np.ones((5, 2))), "num_clients=5"),
  "per class alpha": (lambda k: partition.dirichlet_per_class(k, Y, 2, 0.0), "alpha=0.0"),
  "per class clients": (lambda k: partition.dirichlet_per_class(k, Y, 0, 1.0), "num_clients=0"),
  "iid no clients": (lambda k: partition.iid(k, 4, 0), "num_clients=0.*at least 1"),
  "iid clients": (lambda k: partition.iid(k, 4, 5), "num_clients=5.*examples, 4"),
  "shards clients": (lambda k: partition.shards(k, Y, 5, 1), "num_clients=5.*examples, 4"),
  "shards none": (lambda k: partition.shards(k, Y, 2, 0), "shards_per_client=0.*at least 1"),
  "shards many": (lambda k: partition.shards(k, Y, 2, 3), r"num_clients \* shards_per_client=6"),
  "power exponent": (lambda k: partition.power_law(k, 4, 2, -1.0), "exponent=-1.0.*at least 0"),
  "power nan": (lambda k: partition.power_law(k, 4, 2, np.nan), "exponent=nan.*finite"),
  "power clients": (lambda k: partition.power_law(k, 4, 0, 1.0), "num_clients=0"),
  "power examples": (lambda k: partition.power_law(k, 0, 2, 1.0), "num_examples=0"),
  "natural id": (lambda k: partition.natural(Y, 1), "clients: holds id 1.*num_clients=1"),
  "natural negative": (lambda k: partition.natural(Y - 1, 2), "clients: holds -1"),
  "natural clients": (lambda k: partition.natural(Y, 0), "num_clients=0"),
  "natural floats": (lambda k: partition.natural(Y * 1.0, 2), "clients: is float64"),
  "join none": (lambda k: lists.join_clients([]), r"len\(parts\)=0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_argument(name):
  call, message = ERRORS[name]
  with pytest.raises(ValueError, match=message) as caught:
    call(jax.random.key(0))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [np.arange(5) < 2, np.array([0.0, 1.7]), np.array([[0, 1]]), "01"])
def test_what_is_no_vector_of_indices_is_refused(part):
  with pytest.raises(ValueError, match=r"^parts\[1\]: must be a vector of indices, is "):
    lists.join_clients([np.arange(3), part])
  parts = lists.join_clients([[], [2, 1], np.flatnonzero(np.arange(5) < 2), range(1)])
  assert parts.sizes.tolist() == [0, 2, 2, 1] and parts[1].tolist() == [2, 1]
