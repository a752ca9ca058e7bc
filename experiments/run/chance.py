"""Whether a result is better than guessing, and what to try where it is not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.flags import ignored
from experiments.run.config import Config
from experiments.run.defaults import default_client_lr, default_server_lr
from experiments.run.learning import judgement_of
from sparsyfed_jax.fed.metric import ACCURACY, Metric

_FAR = 3.0  # times the default: a rate to suspect first


def describe_chance(
  value: float | None, targets: ArrayLike, metric: Metric = ACCURACY
) -> dict[str, Any]:
  """Makes the entries of summary.json: `chance_accuracy`, or of another metric, and `is_chance`.

  Args:
    value: of the metric on the test set; None where it is not finite.
    targets: of the test set, such as its classes.
    metric: which knows what guessing gives; {} is made of one that does not.

  Returns:
    What guessing gives, and whether the value is no better within two standard errors: never where
    nothing is better than guessing, as for a test set of one class.
  """
  if metric.chance is None:
    return {}
  level, limit = metric.chance(np.asarray(targets))
  is_chance = limit is not None and not (value is not None and metric.is_better(value, limit))
  return {f"chance_{metric.name}": level, "is_chance": is_chance}


def chance_note(config: Config, summary: Mapping[str, Any]) -> str:
  """Writes the closing line of a run that ends at chance; "" for any other.

  Args:
    config: resolved flags.
    summary: the contents of summary.json.
  """
  if not summary.get("is_chance"):
    return ""
  metric = judgement_of(config).main
  value, level = summary[f"test_{metric.name}"], summary[f"chance_{metric.name}"]
  return (
    f"note: a test {metric.title} of {value:.4f} is not better than guessing, which gives"
    f" {level:.4f}; try {' or '.join(_to_try(config))}"
  )


def _to_try(config: Config) -> list[str]:
  rates = (
    ("client_lr", config.client_optimizer, default_client_lr(config)),
    ("server_lr", config.server_optimizer, default_server_lr(config)),
  )
  smaller = [
    f"a smaller --{name} (it is {getattr(config, name):g}; the default of {optimizer} is {usual:g})"
    for name, optimizer, usual in rates
    if getattr(config, name) > _FAR * usual
  ]
  if smaller:
    return smaller
  others = [f"another --client_lr (it is {config.client_lr:g})"]
  others.append(f"more --rounds (they are {config.rounds})")
  if config.dataset.startswith("npz:"):
    others.append(f"another --input_range (it is {','.join(config.input_range)})")
  if config.sparsity > 0 and "sparsity" not in ignored(config):
    others.append(f"a lower --sparsity (it is {config.sparsity:g})")
  return others
