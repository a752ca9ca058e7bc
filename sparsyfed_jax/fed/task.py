"""Learning problems as pure functions: initialisation, loss and evaluation of a model."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from sparsyfed_jax import trees
from sparsyfed_jax.fed.metric import ACCURACY, Metric
from sparsyfed_jax.ops import PLAIN, LayerOps, cast_layers
from sparsyfed_jax.ops.naming import layer_tracker
from sparsyfed_jax.types import Batch, Key, Mean, Metrics, Variables

# What the layer of a name ("BasicBlock_0/Conv_1") computes with.
Layers = Callable[[str], LayerOps]
# Mean loss of a batch, the new state of the model ("batch_stats" and the like), and metrics.
LossFn = Callable[[Variables, Batch, Layers, Key], tuple[jax.Array, tuple[Variables, Metrics]]]
# Sums of a batch, of the model's outputs; "loss" is the `Mean` that is minimised.
Scores = Callable[[Any, Batch], Metrics]
# The sum whose weight is the number of examples, where the loss is a mean over something else.
EXAMPLES = "examples"


def plain_layers(name: str) -> LayerOps:
  """Leaves all layers as they are."""
  return PLAIN


class Task(NamedTuple):
  """A learning problem as pure functions.

  Example:
    >>> import sparsyfed_jax as sf
    >>> task = sf.classification(sf.models.MLP(10), sf.data.digits())
    >>> task.layer_names
    ('Dense_0', 'Dense_1', 'Dense_2')
  """

  init: Callable[[Key], Variables]
  loss: LossFn
  evaluate: Callable[[Variables, Batch], Metrics]
  # How good each row of a batch is, by the metric that clients are compared by; a `Mean` of
  # (batch,) arrays.
  score_each: Callable[[Variables, Batch], Mean]
  layer_names: tuple[str, ...]  # of the layers with injected operations, in the order of computing
  kernels: tuple[str, ...] | None = None  # of the layers of the prunable parameters, where known
  metrics: tuple[Metric, ...] = (ACCURACY,)  # the main one first
  sums: tuple[str, ...] = ("loss", "accuracy")  # names of the `Metrics` of `loss` and `evaluate`


def classification(
  model: nn.Module,
  input_shape: tuple[int, ...],
  mean: float = 0.0,
  std: float = 1.0,
  dtype: Any = jnp.float32,
  num_classes: int | None = None,
) -> Task:
  """Makes a task of a classifier: softmax cross entropy, averaged over valid examples.

  Args:
    model: a flax module with an attribute `ops` (a `LayerOps`), called as
      `model(x, train=..., valid=...)` on `(batch, *input_shape)` float32, giving logits.
    input_shape: shape of one example.
    mean: the model sees (x - mean) / std, computed inside the compiled step.
    std: see `mean`.
    dtype: in which the model's layers compute, in training and evaluation; parameters, and all
      between the layers, are float32 all the same.
    num_classes: how many logits there must be; None for any number.

  Returns:
    The task, whose `init` raises a ValueError if the model has no parameters.

  Raises:
    ValueError: the model has no `ops`, or another number of logits.

  Example:
    >>> from sparsyfed_jax.models import MLP
    >>> task = classification(MLP(10), input_shape=(8, 8, 1), mean=8.0, std=8.0)
    >>> task.kernels
    ('Dense_0', 'Dense_1', 'Dense_2')
  """

  def prepare(batch: Batch) -> jax.Array:
    return (batch.x.astype(jnp.float32) - mean) / std

  def check(shape: tuple[int, ...]) -> None:
    if num_classes not in (None, shape[-1]):
      raise ValueError(
        f"{type(model).__name__}: has {shape[-1]} logits, must have {num_classes} for the classes"
        " of the data"
      )

  x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  return supervised(model, x, _score, _hits, prepare=prepare, check=check, dtype=dtype)


def supervised(
  model: nn.Module,
  example: jax.ShapeDtypeStruct,
  score: Scores,
  score_each: Callable[[Any, Batch], Mean],
  *,
  prepare: Callable[[Batch], jax.Array],
  check: Callable[[tuple[int, ...]], None],
  dtype: Any = jnp.float32,
  metrics: tuple[Metric, ...] = (ACCURACY,),
  sums: tuple[str, ...] = ("loss", "accuracy"),
) -> Task:
  """Makes a task of a model and of a loss of its outputs.

  Args:
    model: a flax module with an attribute `ops` (a `LayerOps`), called as
      `model(x, train=..., valid=...)`.
    example: shape and dtype of what the model takes, of one example with a batch axis.
    score: sums of a batch, "loss" among them, which is divided by its weight and minimised.
    score_each: the metric by which clients are compared, of each row.
    prepare: makes the model's input of a batch.
    check: raises a ValueError for a shape of the outputs that is not right.
    dtype: in which the model's layers compute.
    metrics: what the task is judged by, the main one first.
    sums: the names of what `score` makes.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsyfed_jax.models import MLP
    >>> from sparsyfed_jax.types import Mean
    >>> def error(outputs, batch):
    ...   return Mean(jnp.sum(jnp.abs(outputs[:, 0] - batch.y) * batch.valid), batch.valid.sum())
    >>> task = supervised(
    ...   MLP(1), jax.ShapeDtypeStruct((1, 4), jnp.float32),
    ...   score=lambda outputs, batch: {"loss": error(outputs, batch)},
    ...   score_each=lambda outputs, batch: Mean(outputs[:, 0], jnp.ones(len(outputs))),
    ...   prepare=lambda batch: batch.x, check=lambda shape: None, metrics=(), sums=("loss",),
    ... )
    >>> task.kernels
    ('Dense_0', 'Dense_1', 'Dense_2')
  """
  if not isinstance(model, nn.Module) or not hasattr(model, "ops"):
    raise ValueError(
      f"{type(model).__name__}: must be a flax.linen module with an attribute `ops`, a LayerOps"
      " that its layers compute with, as sparsyfed_jax.models.MLP has"
    )

  def in_dtype(layers: Layers) -> Layers:
    if dtype == jnp.float32:
      return layers
    return lambda name: cast_layers(layers(name), dtype)

  def init(key: Key) -> Variables:
    variables = model.init(key, jnp.zeros(example.shape, example.dtype), train=False)
    if not jax.tree.leaves(variables.get("params")):
      raise ValueError(f"{type(model).__name__}: the model has no parameters to train")
    return dict(variables)

  def loss(
    variables: Variables, batch: Batch, layers: Layers, key: Key
  ) -> tuple[jax.Array, tuple[Variables, Metrics]]:
    ops, interceptor = _named(in_dtype(layers))
    layered: Any = model.clone(ops=ops)
    state_names = [name for name in variables if name != "params"]
    with nn.intercept_methods(interceptor):
      outputs, state = layered.apply(
        variables,
        prepare(batch),
        train=True,
        valid=batch.valid,
        mutable=state_names,
        rngs={"dropout": key},
      )
    found = score(outputs, batch)
    # A batch without a valid example has loss 0, not 0 / 0.
    return found["loss"].total / jnp.maximum(found["loss"].weight, 1.0), (state, found)

  def predict(variables: Variables, batch: Batch) -> Any:
    plain: Any = model.clone(ops=in_dtype(plain_layers)(""))
    return plain.apply(variables, prepare(batch), train=False, valid=batch.valid)

  shape, layer_names, kernels = trace_layers(model, example)
  check(shape)
  return Task(
    init,
    loss,
    lambda variables, batch: score(predict(variables, batch), batch),
    lambda variables, batch: score_each(predict(variables, batch), batch),
    layer_names,
    kernels,
    metrics,
    sums,
  )


def _named(layers: Layers) -> tuple[LayerOps, Callable[..., Any]]:
  """Makes operations that know in which layer they are, with flax's word for the layer."""
  layer, interceptor = layer_tracker()

  def dot_general(*args: Any, **kwargs: Any) -> jax.Array:
    return layers(layer()).dot_general(*args, **kwargs)

  def conv_general_dilated(*args: Any, **kwargs: Any) -> jax.Array:
    return layers(layer()).conv_general_dilated(*args, **kwargs)

  return LayerOps(dot_general, conv_general_dilated), interceptor


def trace_layers(
  model: nn.Module, example: jax.ShapeDtypeStruct
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
  """Finds the shape of outputs, the layers with injected operations, and those with kernels."""
  names: dict[str, None] = {}

  def note(name: str) -> LayerOps:
    names[name] = None
    return PLAIN

  ops, interceptor = _named(note)
  layered: Any = model.clone(ops=ops)
  with nn.intercept_methods(interceptor):
    init = partial(layered.init_with_output, train=False)
    outputs, shapes = jax.eval_shape(init, jax.random.key(0), example)
  return outputs.shape, tuple(names), tuple(trees.layer_names(shapes.get("params", {})))


def _score(logits: jax.Array, batch: Batch) -> Metrics:
  chex.assert_rank([logits, batch.y, batch.valid], [2, 1, 1])
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
  hits = _is_correct(logits, batch).astype(jnp.float32)
  count = jnp.sum(batch.valid, dtype=jnp.float32)
  return {
    "loss": Mean(jnp.sum(jnp.where(batch.valid, losses, 0)), count),
    "accuracy": Mean(jnp.sum(jnp.where(batch.valid, hits, 0)), count),
  }


def _is_correct(logits: jax.Array, batch: Batch) -> jax.Array:
  return jnp.argmax(logits, -1) == batch.y


def _hits(logits: jax.Array, batch: Batch) -> Mean:
  return Mean(_is_correct(logits, batch).astype(jnp.float32), jnp.ones(batch.y.shape, jnp.float32))
