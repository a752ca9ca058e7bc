"""Where a branch on a value of the device pays."""

import jax

_LEAST_ENTRIES = 2**12


def is_worth_a_branch(num_entries: int, least: int = _LEAST_ENTRIES) -> bool:
  """Tells whether to choose between computations of as many entries while the program runs.

  A CPU branches at no cost but that of compiling both, which small arrays are not worth. An
  accelerator has to ask the host, and has time for either.
  """
  return jax.default_backend() == "cpu" and num_entries >= least
