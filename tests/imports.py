"""What a program of this project imports, for the process whose forks `tests.programs` runs."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import optax  # noqa: E402, F401
import orbax.checkpoint  # noqa: E402, F401
import sklearn  # noqa: E402, F401

import experiments.run.loop  # noqa: E402
import experiments.sweeps.members  # noqa: E402
import experiments.terminal  # noqa: E402, F401
