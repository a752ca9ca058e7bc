"""In which layer of a flax model an operation is called."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn


def layer_tracker() -> tuple[Callable[[], str], Callable[..., Any]]:
  """Makes a pair that follows a model while it is traced.

  Returns:
    A function that names the layer being called, as flax does ("BasicBlock_0/Conv_1"), and the
    interceptor for `flax.linen.intercept_methods` that it needs to be told.
  """
  inside: list[str] = []

  def interceptor(
    method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
  ) -> Any:
    inside.append("/".join(context.module.path))
    try:
      return method(*args, **kwargs)
    finally:
      inside.pop()

  return lambda: inside[-1], interceptor
