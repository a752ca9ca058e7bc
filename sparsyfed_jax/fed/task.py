"""Learning problems as pure functions: initialisation, loss and evaluation of a model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.fed.metric import ACCURACY, Metric
from sparsyfed_jax.models.network import Network, network_of
from sparsyfed_jax.ops import PLAIN, LayerOps, Layers, Product, cast_layers
from sparsyfed_jax.ops.backend.choice import by_platform
from sparsyfed_jax.types import Batch, Key, Mean, Metrics, Variables

# Mean loss of a batch, the new state of the model ("batch_stats" and the like), and metrics.
LossFn = Callable[[Variables, Batch, Layers, Key], tuple[jax.Array, tuple[Variables, Metrics]]]
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
  layer_names: tuple[str, ...]  # of the layers whose operations can be replaced, in their order
  kernels: tuple[str, ...] | None = None  # of the layers of the prunable parameters, where known
  # What the model computes of the inputs of a batch, such as logits.
  predict: Callable[[Variables, Batch], Any] | None = None
  # What a user of the model's own library calls, of the variables that methods train.
  to_model: Callable[[Variables], Any] = lambda variables: variables
  problems: tuple[str, ...] = ()  # why layers that a method would prune cannot be followed
  products: tuple[Product, ...] = ()  # with parameters, in a training step, where they were found
  remarks: tuple[str, ...] = ()  # what a run should say of its model
  # The paths of variables in the trees of the model's own library, by their places among the
  # variables that methods train, where those differ: {("params", "w", "kernel"): "w"}.
  own_paths: Mapping[tuple[str, ...], str] | None = None
  is_given: bool = False  # whether it starts from weights that were given, not drawn
  # Adds to the variables that methods train what is frozen, which they do not see.
  complete: Callable[[Variables], Variables] = lambda variables: variables
  frozen: tuple[str, ...] = ()  # places of frozen parameters, such as Dense_0/kernel
  metrics: tuple[Metric, ...] = (ACCURACY,)  # the main one first
  sums: tuple[str, ...] = ("loss", "accuracy")  # names of the `Metrics` of `loss` and `evaluate`


def classification(
  model: Any,
  input_shape: tuple[int, ...],
  mean: float = 0.0,
  std: float = 1.0,
  dtype: Any = jnp.float32,
  num_classes: int | None = None,
  prunable: str = "",
) -> Task:
  """Makes a task of a classifier: softmax cross entropy, averaged over valid examples.

  Args:
    model: of flax.linen, flax.nnx, Equinox, Haiku or plain functions, as `models.functions_of`
      takes it, called on `(batch, *input_shape)` float32, giving logits; with `train=...` and
      `valid=...` where it takes those. Its layers are found and replaced by `ops.rewrite_layers`.
    input_shape: shape of one example.
    mean: the model sees (x - mean) / std, computed inside the compiled step.
    std: see `mean`.
    dtype: in which the model's layers compute, in training and evaluation; parameters, and all
      between the layers, are float32 all the same.
    num_classes: how many logits there must be; None for any number.
    prunable: a regular expression, found in the paths of the parameters that methods may prune;
      by default all of at least two axes that are multiplied with a layer's input.

  Raises:
    ValueError: the model is of another kind, or has no parameters, or another number of logits, or
      nothing in it is called `prunable`.

  Example:
    >>> from sparsyfed_jax.models import MLP
    >>> task = classification(MLP(10), input_shape=(8, 8, 1), mean=8.0, std=8.0)
    >>> task.kernels
    ('Dense_0', 'Dense_1', 'Dense_2')
  """

  def prepare(batch: Batch) -> jax.Array:
    return (batch.x.astype(jnp.float32) - mean) / std

  network = network_of(model, input_shape, prunable)
  shape = network.output_shape
  if len(shape) != 2 or num_classes not in (None, shape[-1]):
    found = f"has {shape[-1]} logits" if len(shape) == 2 else f"gives an array of rank {len(shape)}"
    right = "logits (batch, classes)" if num_classes is None else f"{num_classes} logits"
    raise ValueError(f"{network.title}: {found}, must have {right} for the classes of the data")
  return supervised(network, prepare, _score, _hits, dtype=dtype)


def of_flat(task: Task, input_shape: tuple[int, ...]) -> Task:
  """Lets a task take examples that are stored flat, (batch, entries), as well as in their shape.

  A TPU pads the last two axes of an array: of images it would make a copy several times as large.

  Args:
    task: any.
    input_shape: shape of one example.
  """
  if len(input_shape) < 2:
    return task

  def shaped(batch: Batch) -> Batch:
    return batch._replace(x=batch.x.reshape(batch.x.shape[0], *input_shape))

  def loss(
    variables: Variables, batch: Batch, layers: Layers, key: Key
  ) -> tuple[jax.Array, tuple[Variables, Metrics]]:
    return task.loss(variables, shaped(batch), layers, key)

  predict = task.predict
  return task._replace(
    loss=loss,
    evaluate=lambda variables, batch: task.evaluate(variables, shaped(batch)),
    score_each=lambda variables, batch: task.score_each(variables, shaped(batch)),
    predict=predict and (lambda variables, batch: predict(variables, shaped(batch))),
  )


def supervised(
  network: Network,
  prepare: Callable[[Batch], jax.Array],
  score: Callable[[Any, Batch], Metrics],
  score_each: Callable[[Any, Batch], Mean],
  *,
  dtype: Any = jnp.float32,
  metrics: tuple[Metric, ...] = (ACCURACY,),
  sums: tuple[str, ...] = ("loss", "accuracy"),
) -> Task:
  """Makes the task of learning what a loss says of a model's outputs.

  Args:
    network: of the model.
    prepare: makes the model's input of a batch.
    score: of (outputs, batch): sums over what is valid; "loss", a `Mean`, is minimised.
    score_each: of (outputs, batch): the metric that clients are compared by, of each row.
    dtype: in which layers compute.
    metrics: what the task is judged by, the main one first.
    sums: the names of what `score` makes.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax.models import MLP, network_of
    >>> from sparsyfed_jax.types import Mean
    >>> errors = lambda out, batch: jnp.where(batch.valid, jnp.abs(out[:, 0] - batch.y), 0)
    >>> def score(out, batch):
    ...   return {"loss": Mean(errors(out, batch).sum(), jnp.sum(batch.valid, dtype=float))}
    >>> each = lambda out, batch: Mean(errors(out, batch), jnp.ones(len(out)))
    >>> network = network_of(MLP(1), (2,))
    >>> task = supervised(network, lambda batch: batch.x, score, each, metrics=(), sums=("loss",))
    >>> task.kernels
    ('Dense_0', 'Dense_1', 'Dense_2')
  """
  kernels = set(network.kernels)

  def in_dtype(layers: Layers) -> Layers:
    def layer(name: str) -> LayerOps:
      ops = PLAIN if name not in kernels else layers(name)
      return ops if dtype == jnp.float32 else cast_layers(ops, dtype)

    return layer

  def inputs(batch: Batch) -> jax.Array:
    x = prepare(batch)
    return x if dtype == jnp.float32 else by_platform(x, cpu=_as_it_is, default=_kept_wide)

  def loss(
    variables: Variables, batch: Batch, layers: Layers, key: Key
  ) -> tuple[jax.Array, tuple[Variables, Metrics]]:
    x = inputs(batch if network.takes_valid else _filled(batch))
    outputs, state = network.apply(variables, x, batch.valid, key, in_dtype(layers), train=True)
    found = score(outputs, batch)
    # A batch without a valid example has loss 0, not 0 / 0.
    return found["loss"].total / jnp.maximum(found["loss"].weight, 1.0), (state, found)

  def predict(variables: Variables, batch: Batch) -> Any:
    layers, key = in_dtype(plain_layers), jax.random.key(0)  # of which an evaluation takes nothing
    return network.apply(variables, inputs(batch), batch.valid, key, layers, train=False)[0]

  def evaluate(variables: Variables, batch: Batch) -> Metrics:
    return score(predict(variables, batch), batch)

  def score_rows(variables: Variables, batch: Batch) -> Mean:
    return score_each(predict(variables, batch), batch)

  return Task(
    init=network.init,
    loss=loss,
    evaluate=evaluate,
    score_each=score_rows,
    layer_names=network.layer_names,
    kernels=network.kernels,
    predict=predict,
    to_model=network.to_model,
    problems=network.problems,
    products=network.products,
    own_paths=network.own_paths,
    remarks=() if network.takes_valid else (_remark(network),),
    metrics=metrics,
    sums=sums,
  )


def _as_it_is(x: jax.Array) -> jax.Array:
  return x


def _kept_wide(x: jax.Array) -> jax.Array:
  # Where layers compute in fewer bits, a TPU's compiler would cast all examples before the loop
  # over batches, and keep a copy of them. It does not know that this difference is one from 0.
  is_float = jnp.issubdtype(x.dtype, jnp.floating)
  return x - lax.optimization_barrier(jnp.zeros((), x.dtype)) if is_float else x


def _remark(network: Network) -> str:
  return (
    f"{network.title} does not take `valid`: where a batch is not full, its other rows are copies"
    " of the client's examples, which count for nothing in the loss, but do in batch norm, if it"
    " has any"
  )


def _filled(batch: Batch) -> Batch:
  """Puts copies of valid rows in the place of the others, of a batch that has any."""
  valid_first = jnp.argsort(~batch.valid, stable=True)
  positions = jnp.arange(batch.valid.shape[0])
  count = jnp.maximum(jnp.sum(batch.valid, dtype=jnp.int32), 1)
  # The n-th row that is not valid takes the n-th one that is, and so on in turns.
  turn = jnp.cumsum(~batch.valid) - 1
  rows = jnp.where(batch.valid, positions, valid_first[turn % count])
  return batch._replace(x=batch.x[rows], y=batch.y[rows])


def _score(logits: jax.Array, batch: Batch) -> Metrics:
  chex.assert_rank([logits, batch.y, batch.valid], [2, 1, 1])
  losses = _cross_entropy(logits, batch.y)
  hits = _is_correct(logits, batch).astype(jnp.float32)
  count = jnp.sum(batch.valid, dtype=jnp.float32)
  return {
    "loss": Mean(jnp.sum(jnp.where(batch.valid, losses, 0)), count),
    "accuracy": Mean(jnp.sum(jnp.where(batch.valid, hits, 0)), count),
  }


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Computes `optax.softmax_cross_entropy_with_integer_labels`, tuned to the platform."""
  return jax.nn.logsumexp(logits, -1) - _of_labels(logits, labels)


@jax.custom_vjp
def _of_labels(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Picks the logit of each row's label; NaN for one beyond the last class, as optax."""
  return by_platform(logits, labels, cpu=_picked, default=_summed)


def _of_labels_backward(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, None]:
  return by_platform(*residuals, cotangent, cpu=_scattered, default=_spread), None


_of_labels.defvjp(
  lambda logits, labels: (_of_labels(logits, labels), (logits, labels)), _of_labels_backward
)


def _picked(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, labels[:, None], axis=-1).take(0, axis=-1)


def _scattered(logits: jax.Array, labels: jax.Array, cotangent: jax.Array) -> jax.Array:
  return jax.vjp(lambda logits: _picked(logits, labels), logits)[1](cotangent)[0]


# Without a gather, which is several operations on a TPU.
def _summed(logits: jax.Array, labels: jax.Array) -> jax.Array:
  is_known = (labels >= 0) & (labels < logits.shape[-1])
  found = jnp.sum(jnp.where(_is_label(logits, labels), logits, 0), -1)
  return jnp.where(is_known, found, jnp.nan)


def _spread(logits: jax.Array, labels: jax.Array, cotangent: jax.Array) -> jax.Array:
  return jnp.where(_is_label(logits, labels), cotangent[:, None], 0)


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return labels[:, None] == jnp.arange(logits.shape[-1])[None]


def _is_correct(logits: jax.Array, batch: Batch) -> jax.Array:
  return jnp.argmax(logits, -1) == batch.y


def _hits(logits: jax.Array, batch: Batch) -> Mean:
  return Mean(_is_correct(logits, batch).astype(jnp.float32), jnp.ones(batch.y.shape, jnp.float32))
