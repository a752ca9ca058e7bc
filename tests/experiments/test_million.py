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
  started = million.start(sizes, 2, clients_per_round=5)
  facts = started.facts
  assert facts["clients"] == 10**4 and facts["examples"] == sizes.sum()
  assert facts["relative_bytes"] < 1.2
  assert facts["rectangle_bytes"] > 1000 * facts["list_bytes"]
  state, rows = started.run.rounds(started.state, 2)
  assert int(state.server.round) == 2 and np.isfinite(rows["train_loss"]).all()
  assert (rows["clients"] == 5).all()
