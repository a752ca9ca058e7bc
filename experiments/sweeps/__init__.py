"""Grids of runs: which there are, where they lie, and what becomes of them."""
