"""`partition.png`: what it counts, and that it shows clients x classes of any number."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import flags
from experiments.pictures.split import facts_of, plot_split
from experiments.run.build import build
from experiments.run.split import Split, count_split
from tests import cases


def draw(tmp_path, *phases, classes=range(10)):
  plot_split(phases, classes, tmp_path / "partition.png")
  return matplotlib.image.imread(tmp_path / "partition.png")[..., :3]


def full_cells(picture, size):
  """Where the map, of which corner cells are full, has the colour of 100 %; (size, size) bool."""
  picture = picture[:, : round(0.91 * picture.shape[1])]  # without the scale
  full = (np.abs(picture - np.array([0, 0x30, 0x4D]) / 255) < 0.01).all(-1)
  ys, xs = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
  box = full[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
  rows = np.array_split(box, size)
  shares = [[cell.mean() for cell in np.array_split(row, size, axis=1)] for row in rows]
  return np.array(shares).round(1)


def test_counts_by_hand():
  labels = np.array([0, 2, 2, 1, 0, 2])
  parts = [np.array([0, 1, 2]), np.array([], np.int32), np.array([3, 4, 5])]
  split = count_split("toy", parts, labels, 4)
  assert split.counts.tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
  assert split.every == 1


@pytest.mark.pictures
@pytest.mark.parametrize("num_clients, first", [(1, "1 client"), (3, "3 clients")])
def test_few_clients_have_a_number_each(tmp_path, monkeypatch, num_clients, first):
  found = []
  save = Figure.savefig

  def look(figure, *arguments, **options):
    save(figure, *arguments, **options)
    for part in figure.subfigs:
      found.append([tick.get_text() for tick in part.axes[2].get_xticklabels()])

  monkeypatch.setattr(Figure, "savefig", look)
  split = Split("few", np.ones((num_clients, 4), int), 1)
  draw(tmp_path, split, classes=range(4))
  assert found == [[str(i + 1) for i in range(num_clients)]]
  assert facts_of(split)[0] == first


def test_of_very_many_clients_and_classes_only_some_are_counted():
  parts = [np.array([i % 3]) for i in range(30_000)]
  split = count_split("large", parts, np.array([0, 999, 5]), 1000)
  assert split.every == 3 and split.counts.shape == (10_000, 1000)
  assert split.counts.sum() == 10_000


def test_clients_are_sorted_by_their_most_frequent_class(tmp_path):
  counts = np.zeros((4, 4), int)
  counts[[0, 1, 2, 3], [3, 1, 0, 2]] = 5
  picture = draw(tmp_path, Split("toy", counts, 1), classes="abcd")
  assert full_cells(picture, 4).tolist() == np.eye(4).tolist()


def test_a_run_counts_both_phases():
  config = flags.DEFAULTS._replace(
    num_clients=20, shift_round=3, rounds=5, shift_dirichlet_alpha=0.1, shift_seed=2
  )
  experiment = build(flags.resolve(config))
  assert [split.title for split in experiment.split] == [
    "digits  ·  dirichlet, alpha 1",
    "After round 3  ·  resplit  ·  dirichlet, alpha 0.1",
  ]
  for split, federation in zip(
    experiment.split, (experiment.federation, experiment.shifted), strict=True
  ):
    np.testing.assert_array_equal(split.counts.sum(1), federation.sizes)
    np.testing.assert_array_equal(split.counts.sum(0), np.bincount(federation.y))
    first = federation.y[cases.list_of(federation, 0)]
    np.testing.assert_array_equal(split.counts[0], np.bincount(first, minlength=10))


@pytest.mark.parametrize("num_clients, num_classes", [(1, 2), (10_000, 62), (700, 1000)])
def test_any_number_of_clients_and_classes_is_drawn(tmp_path, num_clients, num_classes):
  counts = np.random.default_rng(0).poisson(0.3, (num_clients, num_classes))
  counts[-1] = 0
  classes = [f"a rather long name {i}" for i in range(num_classes)]
  split = Split("toy", counts, 1)
  picture = draw(tmp_path, split, split._replace(title="after"), classes=classes)
  assert picture.shape == (2 * 594, 1320, 3)
  assert (picture < 0.9).any(-1).mean() > 0.01
