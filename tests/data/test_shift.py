"""What there is before and after the data of a run changes."""

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import partition, shift

KEY = jax.random.key(3)
LABELS = np.repeat(np.arange(5, dtype=np.int32), [40, 20, 30, 1, 60])


@pytest.mark.parametrize("kind", shift.SHIFTS)
def test_same_key_same_examples(kind):
  once, again = (shift.SHIFTS[kind](KEY, LABELS) for _ in range(2))
  for a, b in zip(once, again, strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.all(np.diff(a) > 0) and a[0] >= 0 and a[-1] < len(LABELS)


def test_resplit_leaves_everything():
  before, after = shift.everything(KEY, LABELS)
  assert len(before) == len(after) == len(LABELS)


def test_new_clients_have_new_examples():
  before, after = shift.halves(KEY, LABELS)
  assert len(before) == 76 and len(after) == 75
  assert sorted([*before, *after]) == list(range(len(LABELS)))
  other, _ = shift.halves(jax.random.key(4), LABELS)
  assert not np.array_equal(before, other)


def test_frequencies_are_turned_around():
  before, after = shift.opposite_frequencies(KEY, LABELS)
  sizes = np.bincount(LABELS)
  shares = [np.bincount(LABELS[part], minlength=5) / sizes for part in (before, after)]
  # Each class is kept at 1 - 0.225 i of its examples, up to rounding; one with a single example
  # stays.
  expected = np.array([1, 0.775, 0.55, 0.325, 0.1])
  several = sizes > 1
  for part in shares:
    nearest = expected[np.abs(part[:, None] - expected).argmin(1)]
    assert np.all(np.abs(part - nearest)[several] <= 0.5 / sizes[several] + 1e-9)
  np.testing.assert_allclose((shares[0] + shares[1])[several], 1.1, atol=1 / 20)
  assert not np.allclose(shares[0][several], shares[1][several])


class TestLikeTraining:
  def test_clients_get_test_examples_of_their_classes(self):
    labels = np.repeat(np.arange(3), 40)
    owners = partition.like_training(KEY, labels, [np.array([0, 0, 0]), np.array([1, 2, 2, 1])])
    counts = np.array([np.bincount(labels[owners == i], minlength=3) for i in range(2)])
    assert counts.sum() == len(labels) and list(counts.sum(1)) == [60, 60]
    # The first takes all of its class, and has to fill up with others.
    assert counts[0, 0] == 40

  def test_the_mixture_is_that_of_training(self):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    training = [np.repeat([0, 1], [90, 10]), np.repeat([0, 1], [10, 90])]
    owners = partition.like_training(KEY, labels, training)
    assert labels[owners == 0].mean() == pytest.approx(0.1, abs=0.03)
    assert labels[owners == 1].mean() == pytest.approx(0.9, abs=0.03)

  def test_a_client_without_examples_gets_all_classes(self):
    labels = np.repeat(np.arange(4), 50)
    nothing = np.zeros(0, np.int64)
    owners = partition.like_training(KEY, labels, [nothing, nothing])
    assert set(labels[owners == 0]) == set(range(4))
