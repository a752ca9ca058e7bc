"""How hard the compiler of the CPU tries."""

import os

import jax

_LEVEL = "xla_backend_optimization_level"


def compile_program(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles with `compiler_options`, which `jax.jit` would only take where it is outermost."""
  return lowered.compile(compiler_options())


def compiler_options() -> dict[str, str | bool] | None:
  """Chooses the options that programs are compiled with.

  On a CPU it is LLVM's level 2 instead of 3: the programs run as fast, and that which draws a
  model's parameters compiles in half the time. A level in the environment's XLA_FLAGS is kept, and
  other backends have no options.
  """
  if jax.default_backend() != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", ""):
    return None
  return {_LEVEL: "2"}
