"""Learning problems besides classification, each a `Task` made of a model and a data set."""

from typing import NamedTuple

from sparsyfed_jax.fed.metric import ACCURACY, Metric
from sparsyfed_jax.fed.tasks.labels import EXACT_MATCH, F1, LABEL_ACCURACY, multi_label
from sparsyfed_jax.fed.tasks.numbers import MAE, MSE, R2, regression
from sparsyfed_jax.fed.tasks.tokens import PERPLEXITY, TOKEN_ACCURACY, next_token


class Judgement(NamedTuple):
  """What a task is judged by.

  Example:
    >>> from sparsyfed_jax.fed.tasks import TASKS
    >>> TASKS["next_token"].main.name, TASKS["next_token"].compared.name
    ('perplexity', 'accuracy')
  """

  metrics: tuple[Metric, ...]
  compared: Metric  # of clients, one with the other

  @property
  def main(self) -> Metric:
    """The metric that pictures and tables show first, and of which a target is."""
    return self.metrics[0]


# How each kind of task is judged.
TASKS = {
  "classification": Judgement((ACCURACY,), ACCURACY),
  "next_token": Judgement((PERPLEXITY, TOKEN_ACCURACY), TOKEN_ACCURACY),
  "multi_label": Judgement((F1, LABEL_ACCURACY, EXACT_MATCH), LABEL_ACCURACY),
  "regression": Judgement((MSE, MAE, R2), MSE),
}

__all__ = ["TASKS", "Judgement", "multi_label", "next_token", "regression"]
