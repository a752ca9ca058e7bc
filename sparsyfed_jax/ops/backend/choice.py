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


@partial(jax.jit, static_argnames=("cpu", "gpu", "tpu", "default", "settings"), inline=True)
def by_platform(
  *operands: Any,
  default: Callable[..., Any],
  cpu: Callable[..., Any] | None = None,
  gpu: Callable[..., Any] | None = None,
  tpu: Callable[..., Any] | None = None,
  settings: tuple[Any, ...] = (),
) -> Any:
  """Computes what is given for the platform that is lowered for, `default` for all others.

  All that are given are traced, and one is compiled. Differentiating through the choice would keep
  the residuals of all: call it in the rules of a custom derivative, or where nothing is
  differentiated.

  Args:
    *operands: pytrees of arrays, with which a computation is called before the settings.
    default: plain XLA operations; alone traced under `untuned`. A function of a module, not a
      closure: jax traces the same choice between arrays of the same shapes once.
    cpu: the computation that is tuned to CPUs, with results of the same shapes and dtypes.
    gpu: that for GPUs.
    tpu: that for TPUs.
    settings: hashable further arguments of all.
  """
  if not _is_tuned.value:
    return default(*operands, *settings)

  def of(run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *operands: run(*operands, *settings)

  tuned = {"cpu": cpu, "cuda": gpu, "rocm": gpu, "tpu": tpu}
  return lax.platform_dependent(
    *operands, default=of(default), **{name: of(run) for name, run in tuned.items() if run}
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
