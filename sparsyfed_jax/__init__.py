"""Sparse federated learning in JAX: SparsyFed (arXiv 2504.05153) and its relatives.

The rooms, from the bottom up: `ops` (jittable primitives), `fed` (the interface of a method, local
training, the cohort, the simulation), `algorithms` (one file a method). Beside them `models`,
`data`, `metrics` and `io`, which the primitives do not need.
"""

__version__ = "0.1.0"
