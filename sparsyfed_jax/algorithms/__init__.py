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

# Fields of `Hyper` that a method does not read, so that a program can say where one is set in vain.
IGNORED_HYPER: dict[str, tuple[str, ...]] = {
  "fedavg": ("density", "ramp_rounds", "beta", "activation_floor"),
  "sparsyfed": (),
  "topk": ("beta", "activation_floor"),
}

__all__ = ["ALGORITHMS", "IGNORED_HYPER", "fedavg", "sparsyfed", "topk"]
