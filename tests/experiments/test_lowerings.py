"""The comparison of lowerings on a tiny layer."""

import jax.numpy as jnp

from experiments import lowerings
from sparsyfed_jax.ops import LOWERINGS


def test_every_lowering_is_measured_both_ways(monkeypatch):
  monkeypatch.setattr(lowerings, "LAYERS", {"tiny": (2, 4, 1, 3, 1, 2)})
  rows = lowerings.measure("tiny", num_clients=2, repeats=2, dtype=jnp.float32)
  kinds = {(row["clients"], row["lowering"]) for row in rows}
  assert kinds == {(way, name) for way in ("scan", "vmap") for name in LOWERINGS}
  assert all(row["seconds"] > 0 and row["layer"] == "tiny" for row in rows)
