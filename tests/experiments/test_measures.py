"""When a run was good enough, and how it recovered from a shift, by rows written by hand."""

import random

import pytest

from experiments.run.measures import Recovery, bytes_to_accuracy, recovery, rounds_to_accuracy


def make_rows(accuracies, first=1):
  return [
    {"round": first + i, "test_accuracy": accuracy, "cumulative_bytes": 1000 * (first + i)}
    for i, accuracy in enumerate(accuracies)
  ]


def test_the_first_evaluated_row_that_reaches_an_accuracy_counts():
  rows = make_rows([0.2, None, 0.7, 0.5, None, 0.9])
  assert rounds_to_accuracy(rows, 0.7) == 3 and bytes_to_accuracy(rows, 0.7) == 3000
  assert rounds_to_accuracy(rows, 0.71) == 6 and bytes_to_accuracy(rows, 0.71) == 6000
  assert rounds_to_accuracy(rows, 0.0) == 1


@pytest.mark.parametrize("rows", [[], make_rows([None, None]), make_rows([0.2, None, 0.89])])
def test_an_accuracy_never_reached_has_neither_bytes_nor_rounds(rows):
  assert rounds_to_accuracy(rows, 0.9) is None and bytes_to_accuracy(rows, 0.9) is None


def test_rows_without_bytes_still_have_rounds():
  rows = [{"round": 4, "test_accuracy": 0.9}]
  assert rounds_to_accuracy(rows, 0.5) == 4 and bytes_to_accuracy(rows, 0.5) is None


def test_recovery_is_measured_from_the_lowest_row_on():
  #           1     2    3    4    5    6 | 7    8    9    10   11   12
  accuracies = [0.1, 0.7, 0.8, None, 0.9, None, 0.85, None, 0.4, 0.6, 0.8, 0.9]
  before, lowest, rounds = recovery(make_rows(accuracies), 6)
  assert before == pytest.approx((0.7 + 0.8 + 0.9) / 3) and lowest == 0.4
  assert rounds == 11 - 6  # not round 7, which is ahead of the fall


@pytest.mark.parametrize(
  ("before", "after", "expected"),
  [
    ([0.5], [0.6, 0.5, 0.9], Recovery(0.5, 0.5, 1)),  # nothing falls
    ([0.5], [0.6, 0.4, 0.49], Recovery(0.5, 0.4, None)),  # regained never
    ([0.5], [0.6, 0.4], Recovery(0.5, 0.4, None)),  # fell at the end
    ([0.5], [None, 0.6], Recovery(0.5, 0.6, 2)),  # the first evaluated row is the second
    ([0.5], [0.4, 0.5], Recovery(0.5, 0.4, 2)),  # just regained
    ([0.5], [None], Recovery(0.5, None, None)),
    ([None], [0.6, 0.4], Recovery(None, 0.4, None)),
    ([], [], Recovery(None, None, None)),
  ],
)
def test_recovery_at_the_edges(before, after, expected):
  assert recovery(make_rows([*before, *after]), len(before)) == expected


def test_recovery_against_a_slow_search():
  choose = random.Random(0)
  for _ in range(300):
    levels = [None, 0.25, 0.5, 0.75, 1.0]
    rows = make_rows([choose.choice(levels) for _ in range(choose.randint(1, 12))])
    shift = choose.randint(0, 12)
    before, lowest, rounds = recovery(rows, shift)
    known = {row["round"]: row["test_accuracy"] for row in rows if row["test_accuracy"] is not None}
    last_three = [known[i] for i in sorted(known) if i <= shift][-3:]
    after = {i: value for i, value in known.items() if i > shift}
    assert before == (pytest.approx(sum(last_three) / len(last_three)) if last_three else None)
    assert lowest == (min(after.values()) if after else None)
    expected = None
    if last_three and after:
      has_fallen = lowest < before
      seen_lowest = False
      for i in sorted(after):
        seen_lowest |= after[i] == lowest
        if expected is None and after[i] >= before and (seen_lowest or not has_fallen):
          expected = i - shift
    assert rounds == expected
