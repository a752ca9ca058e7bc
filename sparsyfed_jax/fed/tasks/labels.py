"""Multi-label classification: each label of an example is there or not."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsyfed_jax.data.dataset import Dataset, Signature
from sparsyfed_jax.fed.metric import Chance, Metric
from sparsyfed_jax.fed.task import Task, supervised
from sparsyfed_jax.models.network import network_of
from sparsyfed_jax.types import Batch, Mean, Metrics


def _of_all_labels(targets: np.ndarray) -> Chance:
  """Computes the F1 of the best answer that is the same for all examples."""
  counts = np.sort(np.asarray(targets).sum(0, dtype=np.int64))[::-1]  # the frequent labels first
  named = np.arange(1, len(counts) + 1) * len(targets)
  level = float(np.max(2 * np.cumsum(counts) / np.maximum(named + counts.sum(), 1)))
  return Chance(level, level if level < 1 else None)


F1 = Metric("f1", "F1 (micro)", chance=_of_all_labels)
LABEL_ACCURACY = Metric("accuracy", "accuracy of a label")
EXACT_MATCH = Metric("exact_match", "share of examples with all labels right")


def multi_label(
  model: Any, data: Dataset | Signature, dtype: Any = jnp.float32, prunable: str = ""
) -> Task:
  """Makes the task of telling which of several labels an example has.

  Of an example with a logit z[l] and y[l] in {0, 1} for each of L labels::

    loss = 1/L * sum over l of (log(1 + exp(z[l])) - y[l] * z[l]).

  A label is named where its logit is above 0. Metrics are the micro-averaged `f1`, which is
  2 TP / (2 TP + FP + FN) counted over all examples and labels together, `accuracy`, the share of
  labels that are right, which is high where labels are rare, and `exact_match`, the share of
  examples of which all are. Clients are compared by `accuracy`.

  Args:
    model: of flax.linen, flax.nnx, Equinox, Haiku or a pair of functions `(init, apply)`, as
      `models.functions_of` takes it: a function of `(batch, *shape)` examples that gives a logit
      for each label.
    data: whose shape, scale and number of labels count; `y` are (n, L) booleans.
    dtype: in which layers compute: `jnp.float32` or `jnp.bfloat16`. Parameters are float32.
    prunable: as `classification` takes it.

  Returns:
    The task, with the metrics `f1`, `accuracy` and `exact_match`.

  Raises:
    ValueError: the model is of another kind, its logits are not as many as the labels, or the data
      have no such labels.

  Example:
    >>> import numpy as np
    >>> import sparsyfed_jax as sf
    >>> x, y = np.random.default_rng(0).normal(size=(9, 4)), np.eye(3, dtype=bool)[[0, 1, 2] * 3]
    >>> data = sf.data.from_arrays(x, y, x, y, task="multi_label")
    >>> task = sf.multi_label(sf.models.MLP(3), data)
    >>> [metric.name for metric in task.metrics]
    ['f1', 'accuracy', 'exact_match']
  """
  known = data.signature if isinstance(data, Dataset) else data
  if known.kind != "multi_label":
    raise ValueError(f"{known.name}: y must be (n, labels) booleans, is {known.told}")
  network = network_of(model, known.input_shape, prunable)
  if network.output_shape[1:] != (known.num_classes,):
    raise ValueError(
      f"{network.title}: makes outputs of shape {network.output_shape[1:]} of an example, must make"
      f" {(known.num_classes,)}, a logit for each label of the data"
    )
  return supervised(
    network,
    lambda batch: (batch.x.astype(jnp.float32) - known.mean) / known.std,
    _score,
    _hits_of_each,
    dtype=dtype,
    metrics=(F1, LABEL_ACCURACY, EXACT_MATCH),
    sums=("loss", "f1", "accuracy", "exact_match"),
  )


def _score(logits: jax.Array, batch: Batch) -> Metrics:
  chex.assert_rank([logits, batch.y, batch.valid], [2, 2, 1])
  chex.assert_equal_shape([logits, batch.y])
  targets, valid = batch.y.astype(jnp.float32), batch.valid[:, None]
  named, is_there = (logits > 0) & valid, batch.y & valid
  losses = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), -1)
  hits = named == is_there
  count = jnp.sum(batch.valid, dtype=jnp.float32)

  def number(is_so: jax.Array) -> jax.Array:
    return jnp.sum(is_so, dtype=jnp.float32)

  return {
    "loss": Mean(jnp.sum(jnp.where(batch.valid, losses, 0)), count),
    "f1": Mean(2 * number(named & is_there), number(named) + number(is_there)),
    "accuracy": Mean(number(hits & valid), count * batch.y.shape[1]),
    "exact_match": Mean(number(jnp.all(hits, -1) & batch.valid), count),
  }


def _hits_of_each(logits: jax.Array, batch: Batch) -> Mean:
  hits = jnp.sum((logits > 0) == batch.y, -1, dtype=jnp.float32)
  return Mean(hits, jnp.full(hits.shape, batch.y.shape[1], jnp.float32))
