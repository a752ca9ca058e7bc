"""What the layers of a model cost where some of its parameters are frozen."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparsyfed_jax.data.dataset import Dataset
from sparsyfed_jax.fed.task import Task
from sparsyfed_jax.metrics.flops import LayerCost
from sparsyfed_jax.ops import NATIVE, LayerOps
from sparsyfed_jax.types import Batch

_ROWS = 2  # of the batch that is traced


def frozen_costs(
  costs: Sequence[LayerCost], whole: Task, task: Task, dataset: Dataset
) -> tuple[LayerCost, ...]:
  """Leaves out the gradients that training without the frozen parameters does not need.

  Args:
    costs: of the layers where all is trained.
    whole: the task of that, in which all parameters that can be are prunable.
    task: `whole` with frozen parameters.
    dataset: of which an example is taken.
  """
  called, reached = _reached(whole, task, dataset)

  def left(cost: LayerCost) -> LayerCost:
    name = cost.name.removesuffix("/kernel")
    places = {name, f"{name}/kernel", f"{name}/kernel/plain"}
    is_frozen = not places.isdisjoint(task.frozen)
    is_before = name in called - reached  # nothing that is trained comes before it
    return cost._replace(
      weight_gradient=0 if is_frozen else cost.weight_gradient,
      input_gradient=0 if is_before else cost.input_gradient,
    )

  return tuple(map(left, costs))


def _reached(whole: Task, task: Task, dataset: Dataset) -> tuple[set[str], set[str]]:
  """Names the layers whose operations can be replaced, and those whose input has a gradient."""
  called: set[str] = set()
  reached: set[str] = set()

  def layers(name: str) -> LayerOps:
    return LayerOps(*(_noting(op, name, called, reached) for op in NATIVE))

  key = jax.random.key(0)
  batch = jax.eval_shape(
    lambda: Batch(
      jnp.zeros((_ROWS, *dataset.x_train.shape[1:]), dataset.x_train.dtype),
      jnp.zeros((_ROWS, *dataset.y_train.shape[1:]), dataset.y_train.dtype),
      jnp.ones(_ROWS, bool),
    )
  )

  def differentiate(batch: Batch) -> Any:
    variables = task.init(key)

    def run(params: Any) -> Any:
      return whole.loss(task.complete({**variables, "params": params}), batch, layers, key)[0]

    return jax.vjp(run, variables["params"])[0]

  jax.eval_shape(differentiate, batch)
  return called, reached


def _noting(
  op: Callable[..., jax.Array], name: str, called: set[str], reached: set[str]
) -> Callable[..., jax.Array]:
  def layer_op(x: jax.Array, w: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    called.add(name)

    @jax.custom_vjp
    def run(x: jax.Array, w: jax.Array) -> jax.Array:
      return op(x, w, *args, **kwargs)

    def forward(x: Any, w: Any) -> tuple[jax.Array, None]:
      if x.perturbed:
        reached.add(name)
      return op(x.value, w.value, *args, **kwargs), None

    run.defvjp(forward, lambda residuals, cotangent: (None, None), symbolic_zeros=True)
    return run(x, w)

  return layer_op
