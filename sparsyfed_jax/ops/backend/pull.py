"""The gradient through a function of the parameters, at the price of memory or of work."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from sparsyfed_jax.ops.backend.choice import by_platform


def pull_back(
  fn: Callable[[Any], Any], pull: Callable[[Any], tuple[Any]], x: Any, cotangent: Any
) -> Any:
  """Computes `pull(cotangent)[0]`.

  On a GPU, where many clients are side by side, anew from x, leaf by leaf as cotangents are there.
  What `pull` keeps would wait in memory for the whole gradient step: for a power of every weight,
  as much as the weights.

  Args:
    fn: a function of a pytree, whose result has the same structure.
    pull: what `jax.vjp(fn, x)` returns besides the value.
    x: a pytree of arrays.
    cotangent: another, like the value.
  """
  return by_platform(pull, x, cotangent, gpu=_anew, default=_kept, settings=(fn,))


def _kept(pull: Callable[[Any], tuple[Any]], x: Any, cotangent: Any, fn: Any) -> Any:
  return pull(cotangent)[0]


def _anew(pull: Callable[[Any], tuple[Any]], x: Any, cotangent: Any, fn: Any) -> Any:
  pairs = jax.tree.map(lambda *pair: lax.optimization_barrier(pair), x, cotangent)
  x, cotangent = jax.tree.transpose(jax.tree.structure(x), jax.tree.structure((0, 0)), pairs)
  return jax.vjp(fn, x)[1](cotangent)[0]
