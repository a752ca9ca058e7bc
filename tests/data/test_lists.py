"""Lists of clients as one array of indices."""

import numpy as np
import pytest

from sparsyfed_jax.data import lists
from sparsyfed_jax.data.lists import Parts, join_clients, rows_of_clients

PARTS = [np.array([4, 7]), np.array([], int), np.array([2])]


def test_lists_follow_each_other():
  joined = join_clients(PARTS)
  assert joined.indices.tolist() == [4, 7, 2]
  assert (joined.starts.tolist(), joined.sizes.tolist()) == ([0, 2, 2], [2, 0, 1])
  assert {array.dtype.name for array in (joined.indices, joined.starts, joined.sizes)} == {"int32"}
  assert join_clients(joined) is joined


def test_lists_are_a_sequence_of_arrays():
  joined = join_clients(PARTS)
  assert len(joined) == 3 and [part.tolist() for part in joined] == [[4, 7], [], [2]]
  assert joined[-1].tolist() == [2] and [part.tolist() for part in joined[::2]] == [[4, 7], [2]]
  with pytest.raises(IndexError):
    joined[3]


def test_all_may_be_empty():
  joined = join_clients([np.zeros(0, np.int32)] * 3)
  assert joined.indices.shape == (0,) and joined.sizes.tolist() == [0, 0, 0]


def test_two_splits_of_one_array():
  before, after = lists.join_phases(join_clients(PARTS), join_clients([[5], [6, 4], []]))
  assert before.indices is after.indices
  assert [part.tolist() for part in before] == [[4, 7], [], [2]]
  assert [part.tolist() for part in after] == [[5], [6, 4], []]


@pytest.mark.parametrize("numbers", [[], [1], [2, 0, 1], [0, 0]])
def test_rows_of_some(numbers):
  for parts in (join_clients(PARTS), Parts(np.array([9, 2, 9, 4, 7]), [2, 0, 1], [3, 0, 1])):
    expected = [row for number in numbers for row in PARTS[number].tolist()]
    found = rows_of_clients(parts, numbers)
    assert found.tolist() == expected and found.dtype == np.int32


def test_more_than_can_be_counted_is_refused():
  many = np.broadcast_to(np.int32(0), 2**31)
  with pytest.raises(
    ValueError, match="parts: hold 2147483648 indices, must be at most 2147483647"
  ):
    Parts(many, np.array([2**31]))


def test_one_large_client_costs_what_it_has():
  sizes = np.r_[np.full(3999, 5), 60_000]
  parts = Parts(np.arange(sizes.sum()), sizes)
  held = sum(array.nbytes for array in (parts.indices, parts.starts, parts.sizes))
  assert held < 4 * sizes.sum() + 8 * len(sizes) + 1
  assert 4 * len(sizes) * sizes.max() > 1000 * held  # as a rectangle
