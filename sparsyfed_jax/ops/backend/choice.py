"""The one choice between an operation as it is and one that is tuned to a platform."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
from jax import lax

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


@partial(jax.jit, static_argnames=("cpu", "default", "settings"), inline=True)
def by_platform(
  *operands: Any,
  cpu: Callable[..., Any],
  default: Callable[..., Any],
  settings: tuple[Any, ...] = (),
) -> Any:
  """Computes `cpu(*operands, *settings)` if lowered for CPUs, else `default(*operands, *settings)`.

  Both are traced, and one is compiled. Differentiating through the choice would keep the residuals
  of both: call it in the rules of a custom derivative, or where nothing is differentiated.

  Args:
    *operands: pytrees of arrays.
    cpu: the computation that is tuned to CPUs. A function of a module, not a closure: jax traces
      the same choice between arrays of the same shapes once.
    default: plain XLA operations, with results of the same shapes and dtypes; alone traced under
      `untuned`.
    settings: hashable further arguments of both.
  """
  if not _is_tuned.value:
    return default(*operands, *settings)
  return lax.platform_dependent(
    *operands,
    cpu=lambda *operands: cpu(*operands, *settings),
    default=lambda *operands: default(*operands, *settings),
  )


def short_cut(
  is_open: jax.Array, quick: Callable[..., Any], full: Callable[..., Any], *operands: Any
) -> Any:
  """Computes `full(*operands)`, of which `quick(*operands)` is the same where `is_open`.

  On CPU a `lax.cond` costs only extra compilation; besides, its result is written to memory, where
  the compiler would else compute it again wherever it is read. On accelerators, which would ask the
  host, `full` alone runs.

  Args:
    is_open: () bool.
    quick: a function of the operands, of a module, as in `by_platform`.
    full: another, with results of the same shapes and dtypes.
    *operands: pytrees of arrays.
  """
  return by_platform(is_open, operands, cpu=_branch, default=_full, settings=(quick, full))


def _branch(is_open: jax.Array, operands: Any, quick: Any, full: Any) -> Any:
  return lax.cond(is_open, quick, full, *operands)


def _full(is_open: jax.Array, operands: Any, quick: Any, full: Any) -> Any:
  return full(*operands)
