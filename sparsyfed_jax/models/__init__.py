"""Plain flax modules that take their layers' operations as an attribute, `ops`."""

from sparsyfed_jax.models.cnn import CNN
from sparsyfed_jax.models.mlp import MLP

__all__ = ["CNN", "MLP"]
