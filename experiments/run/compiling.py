"""How programs are compiled."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax

_LEVEL = "xla_backend_optimization_level"


def compile_program(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
  """Compiles with `compiler_options`, which `jax.jit` would only take where it is outermost."""
  return lowered.compile(compiler_options(platform))


def compile_in_turn(
  *lower: Callable[[], jax.stages.Lowered], platform: str
) -> list[jax.stages.Compiled]:
  """Lowers programs one after the other, and compiles each while the next ones are lowered.

  Args:
    *lower: makes a program; the one that takes longest had better be the last.
    platform: of the devices that the programs' arguments are on, as a `jax.Device` has it.
  """
  # Several processes have to compile in one order.
  with ThreadPoolExecutor(1 if jax.process_count() > 1 else None) as pool:
    compiled = [pool.submit(compile_program, make(), platform) for make in lower]
  return [each.result() for each in compiled]


def compiler_options(platform: str) -> dict[str, str | bool] | None:
  """Chooses the options that programs are compiled with.

  On a CPU it is LLVM's level 2 instead of 3: the programs run as fast, and that which draws a
  model's parameters compiles in half the time. A level in the environment's XLA_FLAGS is kept, and
  other backends have no options.
  """
  if platform != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", ""):
    return None
  return {_LEVEL: "2"}
