"""Regression: numbers are predicted, by least squares."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax.data.dataset import Dataset, Signature
from sparsyfed_jax.fed.metric import STANDARD_ERRORS, Chance, Metric
from sparsyfed_jax.fed.task import Task, supervised
from sparsyfed_jax.models.network import network_of
from sparsyfed_jax.types import Batch, Mean, Metrics

_SPREAD = "spread"  # the squared errors of the training targets' mean


def _of_the_mean(targets: np.ndarray) -> Chance:
  """Computes the squared error of always answering with the mean of the test set."""
  targets = _as_columns(np.asarray(targets, np.float64))
  errors = np.mean((targets - targets.mean(0)) ** 2, -1)
  level = float(errors.mean())
  margin = STANDARD_ERRORS * float(errors.std()) / math.sqrt(len(errors))
  return Chance(level, max(level - margin, 0.0) if level > 0 else None)


MSE = Metric(
  "mse", "mean squared error", is_higher_better=False, high=math.inf, chance=_of_the_mean
)
MAE = Metric("mae", "mean absolute error", is_higher_better=False, high=math.inf)
R2 = Metric("r2", "R²", low=-math.inf, high=1.0, of=lambda means: 1 - means["mse"] / means[_SPREAD])


def regression(
  model: Any, data: Dataset | Signature, dtype: Any = jnp.float32, prunable: str = ""
) -> Task:
  """Makes the task of predicting numbers by least squares.

  The model predicts each of K targets in units of its standard deviation s[k] from its mean m[k],
  both of the training set. Of an example with outputs o[k] and targets y[k]::

    loss = 1/K * sum over k of (o[k] - (y[k] - m[k]) / s[k])^2.

  Metrics are in the units of the targets: `mse` and `mae`, the means of squared and absolute errors
  over examples and targets, and `r2` = 1 - mse / (mse of always answering m), which is 1 at best
  and 0 for that answer. Clients are compared by `mse`.

  Args:
    model: of flax.linen, flax.nnx, Equinox, Haiku or a pair of functions `(init, apply)`, as
      `models.functions_of` takes it: a function of `(batch, *shape)` examples that gives (batch, K)
      outputs.
    data: whose shape and scales count; `y` are (n,) or (n, K) floats.
    dtype: in which layers compute: `jnp.float32` or `jnp.bfloat16`. Parameters are float32.
    prunable: as `classification` takes it.

  Returns:
    The task, with the metrics `mse`, `mae` and `r2`.

  Raises:
    ValueError: the model is of another kind, its outputs are not as many as the targets, or the
      data has no numbers to predict.

  Example:
    >>> import numpy as np
    >>> import sparsyfed_jax as sf
    >>> x = np.random.default_rng(0).normal(size=(9, 4))
    >>> data = sf.data.from_arrays(x, x.sum(1), x, x.sum(1), task="regression")
    >>> task = sf.regression(sf.models.MLP(1), data)
    >>> [metric.name for metric in task.metrics]
    ['mse', 'mae', 'r2']
  """
  known = data.signature if isinstance(data, Dataset) else data
  if known.kind != "regression":
    raise ValueError(f"{known.name}: y must be (n,) or (n, targets) floats, is {known.told}")
  middle, width = (
    np.array([scale], np.float32) for scale in (known.target_means, known.target_stds)
  )  # (1, targets)
  network = network_of(model, known.input_shape, prunable)
  if network.output_shape[1:] != middle.shape[1:]:
    raise ValueError(
      f"{network.title}: makes outputs of shape {network.output_shape[1:]} of an example, must make"
      f" {middle.shape[1:]}, one for each target of the data"
    )

  def errors(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Computes the errors and the targets, both in standard deviations; (batch, targets)."""
    chex.assert_rank([outputs, batch.valid], [2, 1])
    targets = (_as_columns(batch.y) - middle) / width
    chex.assert_equal_shape([outputs, targets])
    return outputs - targets, targets

  def score(outputs: jax.Array, batch: Batch) -> Metrics:
    error, targets = errors(outputs, batch)
    count = jnp.sum(batch.valid, dtype=jnp.float32)

    def mean(values: jax.Array) -> Mean:
      return Mean(jnp.sum(jnp.where(batch.valid, jnp.mean(values, -1), 0)), count)

    return {
      "loss": mean(error**2),
      "mse": mean((error * width) ** 2),
      "mae": mean(jnp.abs(error) * width),
      _SPREAD: mean((targets * width) ** 2),
    }

  def score_each(outputs: jax.Array, batch: Batch) -> Mean:
    error, _ = errors(outputs, batch)
    squares = jnp.mean((error * width) ** 2, -1)
    return Mean(squares, jnp.ones_like(squares))

  return supervised(
    network,
    lambda batch: (batch.x.astype(jnp.float32) - known.mean) / known.std,
    score,
    score_each,
    dtype=dtype,
    metrics=(MSE, MAE, R2),
    sums=("loss", "mse", "mae", _SPREAD),
  )


def _as_columns(targets: Any) -> Any:
  return targets[:, None] if targets.ndim == 1 else targets
