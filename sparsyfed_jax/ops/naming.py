"""The name of the flax layer that is being traced."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn


def layer_tracker() -> tuple[Callable[[], str], Callable[..., Any]]:
  """Makes a tracker of the layer that is being called while a model is traced.

  Returns:
    A function that names the current layer as flax does ("BasicBlock_0/Conv_1"), and the
    interceptor that `flax.linen.intercept_methods` has to be given for that.
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
