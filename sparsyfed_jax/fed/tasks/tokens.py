"""Prediction of the next token of a sequence: characters of a text, say."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsyfed_jax.data.dataset import Dataset, Signature
from sparsyfed_jax.fed.metric import STANDARD_ERRORS, Chance, Metric, of_most_frequent
from sparsyfed_jax.fed.task import EXAMPLES, Task, supervised
from sparsyfed_jax.models.network import network_of
from sparsyfed_jax.types import Batch, Mean, Metrics

PADDING = -1  # the target of a place behind the end of a sequence


def _of_frequencies(targets: np.ndarray) -> Chance:
  """Computes the perplexity of answering with the frequencies of the tokens of the test set."""
  tokens = np.asarray(targets)[np.asarray(targets) >= 0]
  _, numbers, counts = np.unique(tokens, return_inverse=True, return_counts=True)
  losses = -np.log(counts / counts.sum())[numbers.reshape(-1)]
  level = math.exp(losses.mean())
  margin = STANDARD_ERRORS * losses.std() / math.sqrt(losses.size)
  return Chance(level, math.exp(losses.mean() - margin) if len(counts) > 1 else None)


PERPLEXITY = Metric(
  "perplexity",
  "perplexity",
  is_higher_better=False,
  low=1.0,
  high=math.inf,
  of=lambda means: jnp.exp(means["loss"]),
  chance=_of_frequencies,
)
TOKEN_ACCURACY = Metric(
  "accuracy",
  "accuracy",
  chance=lambda targets: of_most_frequent(targets[targets >= 0]),
)


def next_token(
  model: Any, data: Dataset | Signature, dtype: Any = jnp.float32, prunable: str = ""
) -> Task:
  """Makes the task of predicting each token of a sequence from those before it.

  Over the T tokens t that are no padding, each with the logits z_t of the model and the token y_t
  that comes next::

    loss = 1/T * sum over t of (log(sum over v of exp(z_t[v])) - z_t[y_t]),
    perplexity = exp(loss).

  A step minimises the loss of its batch. What is reported counts the tokens of all batches alike:
  perplexity is of the mean loss of the round or of the test set, and no mean of perplexities.
  `accuracy` is the share of tokens whose logit is the largest. A client's weight is the number of
  its sequences, as ever.

  Sequences are of one length and ragged ones are padded at their end with the target -1: such
  places are no part of any loss, gradient or metric, and what their input holds changes no bit,
  for the model sees token 0 there. Methods that rank activations rank those places too.

  Args:
    model: of flax.linen, flax.nnx, Equinox, Haiku or a pair of functions `(init, apply)`, as
      `models.functions_of` takes it: a function of (batch,
      length) int32 tokens that gives logits (batch, length, tokens), as `models.Transformer` and
      `models.LSTM` are. A place must not see those behind it.
    data: whose length of a sequence and number of tokens count: `x` are tokens, `y` those that
      follow, both (n, length) int32.
    dtype: in which layers compute: `jnp.float32` or `jnp.bfloat16`. Parameters are float32.
    prunable: as `classification` takes it.

  Returns:
    The task, with the metrics `perplexity` and `accuracy`.

  Raises:
    ValueError: the model is of another kind, its logits are not as many as the tokens, or the data
      are no sequences of tokens.

  Example:
    >>> import sparsyfed_jax as sf
    >>> line = "To be, or not to be, that is the question: " * 20
    >>> data = sf.data.text(line, num_clients=1, sequence_length=16)
    >>> model = sf.models.Transformer(data.num_classes, dim=16, depth=1, heads=2)
    >>> task = sf.next_token(model, data)
    >>> [metric.name for metric in task.metrics]
    ['perplexity', 'accuracy']
  """
  known = data.signature if isinstance(data, Dataset) else data
  if known.kind != "next_token":
    raise ValueError(f"{known.name}: y must be (n, length) int32 tokens, is {known.told}")
  network = network_of(model, known.input_shape, prunable, jnp.int32)
  found, right = network.output_shape[1:], (*known.input_shape, known.num_classes)
  if found != right:
    raise ValueError(
      f"{network.title}: makes outputs of shape {found} of a sequence, must make {right}, logits of"
      " each token at each place"
    )
  return supervised(
    network,
    lambda batch: jnp.where(batch.y >= 0, batch.x, 0).astype(jnp.int32),
    _score,
    _hits_of_each,
    dtype=dtype,
    metrics=(PERPLEXITY, TOKEN_ACCURACY),
    sums=("loss", "accuracy", EXAMPLES),
  )


def _counted(batch: Batch) -> jax.Array:
  """Tells which places count; (batch, length) bool."""
  chex.assert_rank([batch.y, batch.valid], [2, 1])
  return (batch.y >= 0) & batch.valid[:, None]


def _score(logits: jax.Array, batch: Batch) -> Metrics:
  chex.assert_rank(logits, 3)
  is_counted, targets = _counted(batch), jnp.maximum(batch.y, 0)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  count = jnp.sum(is_counted, dtype=jnp.float32)
  num_examples = jnp.sum(batch.valid, dtype=jnp.float32)
  return {
    "loss": Mean(jnp.sum(jnp.where(is_counted, losses, 0)), count),
    "accuracy": Mean(jnp.sum(_hits(logits, batch)), count),
    EXAMPLES: Mean(num_examples, num_examples),
  }


def _hits(logits: jax.Array, batch: Batch) -> jax.Array:
  return (_counted(batch) & (jnp.argmax(logits, -1) == batch.y)).astype(jnp.float32)


def _hits_of_each(logits: jax.Array, batch: Batch) -> Mean:
  return Mean(jnp.sum(_hits(logits, batch), 1), jnp.sum(_counted(batch), 1, dtype=jnp.float32))
