"""The one choice between an operation as it is and one that is tuned to a platform."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax import lax

# Entries from which on a `short_cut` is worth the compilation of both ways.
LEAST_BRANCH = 2**12

# Part of what jax caches programs by, so that both kinds of program can live in one process.
_is_tuned = jax.make_user_context(True)


def untuned() -> AbstractContextManager[None]:
  """Turns all tuning off while functions are traced in this context.

  Plain XLA operations are traced instead, on every platform. A program that was traced before
  stays as it is; `jax.jit` traces a function again that was first called outside.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> with ops.untuned():
    ...   mask = jax.jit(ops.topk_mask)(jnp.array([3.0, -1.0, 2.0, 0.5]), 0.5)
    >>> mask.tolist()
    [True, False, True, False]
  """
  return _is_tuned(False)


def by_platform(*operands: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
  """Computes cpu(*operands) where the program is lowered for CPUs, else default(*operands).

  Both are traced, and one is compiled. Differentiating through the choice would keep the residuals
  of both: call it in the rules of a custom derivative, or where nothing is differentiated.

  Args:
    *operands: pytrees of arrays.
    cpu: the computation that is tuned to CPUs.
    default: plain XLA operations of the same shapes and dtypes; alone traced under `untuned`.
  """
  if not _is_tuned.value:
    return default(*operands)
  return lax.platform_dependent(*operands, cpu=cpu, default=default)


def short_cut(
  is_open: jax.Array, quick: Callable[..., Any], full: Callable[..., Any], *operands: Any
) -> Any:
  """Computes full(*operands), of which quick(*operands) is the same where `is_open`.

  On CPU a `lax.cond` costs only extra compilation; besides, its result is written to memory, where
  the compiler would else compute it again wherever it is read. On accelerators, which would ask the
  host, `full` alone runs.

  Args:
    is_open: () bool.
    quick: a function of the operands.
    full: a function of the operands, with results of the same shapes and dtypes.
    *operands: pytrees of arrays.
  """
  return by_platform(
    is_open,
    *operands,
    cpu=lambda is_open, *operands: lax.cond(is_open, quick, full, *operands),
    default=lambda _, *operands: full(*operands),
  )
