"""The methods, one file each, and a table from name to factory.

A factory takes a `Setup` and returns an `Algorithm`.
"""

from collections.abc import Callable

from sparsyfed_jax.algorithms.fedavg import fedavg
from sparsyfed_jax.algorithms.sparsyfed import sparsyfed
from sparsyfed_jax.algorithms.topk import topk
from sparsyfed_jax.fed.algorithm import Algorithm, Setup

ALGORITHMS: dict[str, Callable[[Setup], Algorithm]] = {
  "fedavg": fedavg,
  "sparsyfed": sparsyfed,
  "topk": topk,
}

__all__ = ["ALGORITHMS", "fedavg", "sparsyfed", "topk"]
