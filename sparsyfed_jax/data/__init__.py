"""Data sets as NumPy arrays (sources) and their split over clients as index arrays (partition)."""

from sparsyfed_jax.data import partition, sources

__all__ = ["partition", "sources"]
