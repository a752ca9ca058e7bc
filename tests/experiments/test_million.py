"""`experiments.million`, with fewer clients."""

import numpy as np

from experiments import million


def test_sizes_follow_a_power_law():
  sizes = million.power_law_sizes(10**6, 30 * 10**6)
  assert abs(sizes.sum() - 30 * 10**6) < 3 * 10**5
  assert (sizes[0], sizes[-1]) == (million.LARGEST, 1) and (np.diff(sizes) <= 0).all()
  assert np.median(sizes) < sizes.mean() / 3


def test_lists_take_the_memory_of_their_indices():
  sizes = million.power_law_sizes(10**4, 3 * 10**5)
  facts = million.start(sizes, 2, clients_per_round=5).facts
  assert facts["clients"] == 10**4 and facts["examples"] == sizes.sum()
  assert facts["relative_bytes"] < 1.2
  assert facts["rectangle_bytes"] > 1000 * facts["list_bytes"]


def test_a_tenth_of_a_million_clients():
  sizes = million.power_law_sizes(10**5, 3 * 10**6, largest=10**4)
  assert sizes[0] == 10**4 and abs(sizes.sum() - 3 * 10**6) < 3 * 10**4
  started = million.start(sizes, 3, clients_per_round=20)
  facts, federation = started.facts, started.run.federation
  assert facts["federation_bytes"] < 1.2 * facts["examples"] * (64 + 4 + 4)
  x, y, owners = million.generate(sizes)
  lists = [np.asarray(leaf) for leaf in (federation.indices, federation.starts, federation.sizes)]
  # The largest, one of the smallest, and others.
  for client in (owners[0], owners[-1], *range(100)):
    indices = lists[0][lists[1][client] :][: lists[2][client]]
    np.testing.assert_array_equal(indices, np.flatnonzero(owners == client))
    np.testing.assert_array_equal(federation.x[indices[:50]], x[indices[:50]])
  np.testing.assert_array_equal(federation.y, y)
  del x  # a fifth of a GB
  state, rows = started.run.rounds(started.state, 3)
  assert int(state.server.round) == 3 and np.isfinite(rows["train_loss"]).all()
  assert (rows["clients"] == 20).all()
