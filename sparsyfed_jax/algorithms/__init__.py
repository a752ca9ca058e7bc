"""The methods, one file each, and a table from name to factory.

A factory takes a `Setup` and, where the method has several forms, its module's `Options`; it
returns an `Algorithm`.
"""

from collections.abc import Callable

from sparsyfed_jax.algorithms.fedavg import fedavg
from sparsyfed_jax.algorithms.feddst import feddst
from sparsyfed_jax.algorithms.flash import Options as FlashOptions
from sparsyfed_jax.algorithms.flash import flash
from sparsyfed_jax.algorithms.sparsyfed import Options as SparsyFedOptions
from sparsyfed_jax.algorithms.sparsyfed import sparsyfed
from sparsyfed_jax.algorithms.static import Options as StaticOptions
from sparsyfed_jax.algorithms.static import static
from sparsyfed_jax.algorithms.topk import topk
from sparsyfed_jax.algorithms.zerofl import Options as ZeroFLOptions
from sparsyfed_jax.algorithms.zerofl import zerofl
from sparsyfed_jax.fed.algorithm import Algorithm

# The factories, by name.
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
  "fedavg": fedavg,
  "feddst": feddst,
  "flash": flash,
  "sparsyfed": sparsyfed,
  "static": static,
  "topk": topk,
  "zerofl": zerofl,
}

# What a factory takes besides the setup, where its method has several forms.
OPTIONS: dict[str, type] = {
  "flash": FlashOptions,
  "sparsyfed": SparsyFedOptions,
  "static": StaticOptions,
  "zerofl": ZeroFLOptions,
}

# Fields of `Hyper` that not every method reads, so that a program can say where one is set in vain.
READS_HYPER: dict[str, tuple[str, ...]] = {
  "fedavg": (),
  "feddst": ("density", "feddst_update_every", "feddst_update_until", "feddst_drop_rate"),
  "flash": (
    "density",
    "flash_warmup_rounds",
    "flash_warmup_epochs",
    "flash_update_every",
    "flash_drop_rate",
  ),
  "sparsyfed": ("density", "ramp_rounds", "beta", "activation_floor"),
  "static": ("density",),
  "topk": ("density", "ramp_rounds"),
  "zerofl": ("density", "ramp_rounds", "zerofl_mask_ratio"),
}

# Methods whose clients may differ in density (`ClientData.density_scale`).
HETEROGENEOUS = ("flash", "sparsyfed", "topk", "zerofl")

__all__ = [
  "ALGORITHMS",
  "HETEROGENEOUS",
  "OPTIONS",
  "READS_HYPER",
  "fedavg",
  "feddst",
  "flash",
  "sparsyfed",
  "static",
  "topk",
  "zerofl",
]
