"""Data sets as NumPy arrays, and their training examples dealt to clients."""

from sparsyfed_jax.data import partition, sources
from sparsyfed_jax.data.clients import (
  Clients,
  digits,
  dirichlet,
  dirichlet_per_class,
  dirichlet_symmetric,
  from_arrays,
  iid,
  load,
  natural,
  power_law,
  shards,
  text,
)
from sparsyfed_jax.data.dataset import DataError, Dataset

__all__ = [
  "Clients",
  "DataError",
  "Dataset",
  "digits",
  "dirichlet",
  "dirichlet_per_class",
  "dirichlet_symmetric",
  "from_arrays",
  "iid",
  "load",
  "natural",
  "partition",
  "power_law",
  "shards",
  "sources",
  "text",
]
