"""What is said of a result that guessing would give too."""

import numpy as np
import pytest

from experiments import flags
from experiments.run import chance
from experiments.terminal import closing_table
from sparsyfed_jax.fed.metric import of_most_frequent

# 40 of 100 examples are of class 7.
LABELS = np.repeat([7, 1, 2, 3], [40, 20, 20, 20])


def note(accuracy, **changes):
  config = flags.resolve(flags.DEFAULTS._replace(**changes))
  summary = {"test_accuracy": accuracy} | chance.describe_chance(accuracy, LABELS)
  return chance.chance_note(config, summary)


def test_guessing_names_the_most_frequent_class():
  assert of_most_frequent(LABELS).level == 0.4


# Two standard errors of 0.4 in 100 examples are 2 * sqrt(0.24 / 100) = 0.098.
@pytest.mark.parametrize(("accuracy", "expected"), [(0.07, True), (0.497, True), (0.499, False)])
def test_chance_is_within_two_standard_errors_of_guessing(accuracy, expected):
  assert chance.describe_chance(accuracy, LABELS) == {
    "chance_accuracy": 0.4,
    "is_chance": expected,
  }
  assert bool(note(accuracy)) == expected


def test_a_test_set_of_one_class_is_nobodys_fault():
  assert not chance.describe_chance(1.0, np.zeros(5, int))["is_chance"]


@pytest.mark.parametrize(
  ("changes", "advice"),
  [
    (
      dict(server_optimizer="adam", server_lr=1.0),
      "try a smaller --server_lr (it is 1; the default of adam is 0.01)",
    ),
    (
      dict(client_optimizer="adamw", client_lr=0.5),
      "try a smaller --client_lr (it is 0.5; the default of adamw is 0.01)",
    ),
    (
      dict(client_momentum=0.9, client_lr=0.5),
      "try a smaller --client_lr (it is 0.5; the default of sgd is 0.05)",
    ),
    (
      dict(rounds=7, algorithm="fedavg"),
      "try another --client_lr (it is 0.5) or more --rounds (they are 7)",
    ),
    (dict(sparsity=0.999), "a lower --sparsity (it is 0.999)"),
    (dict(dataset="npz:a.npz"), "another --input_range (it is auto)"),
  ],
)
def test_the_note_says_what_to_try(changes, advice):
  line = note(0.1, **changes)
  assert line.startswith(
    "note: a test accuracy of 0.1000 is not better than guessing, which gives 0.4000; "
  )
  assert advice in line


def test_the_note_is_the_last_line_of_a_run(capsys):
  closing_table({"test_accuracy": 0.1, "output_dir": "runs/a"}, note(0.1))
  assert capsys.readouterr().out.splitlines()[-1] == note(0.1)
  closing_table({"test_accuracy": 0.9, "output_dir": "runs/a"}, note(0.9))
  assert capsys.readouterr().out.splitlines()[-1] == "files in runs/a"
