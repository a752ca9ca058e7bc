"""What a federated method is.

Four pure functions make a round, others read the model out, or say what a client keeps between its
rounds. The laws, tested over all methods:

1. Uploads are summable: their leaves arrive multiplied by the client's weight, and the weight
   travels too.
2. A client without examples uploads zeros and keeps its memory; padding changes nothing, to the
   bit. A round of such clients alone leaves the state as it is, but for its number.
3. `client` never vmaps and never sees another client.
4. The result does not depend on how the cohort is cut, beyond float rounding.
5. Same key, same result; a run stopped at any round and continued equals the uninterrupted run,
   memories included.
6. A mask travels as exact zeros: the client uploads pruned weights and the server forms the
   pseudo-gradient, because the difference of two rounded weights is almost never 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.measures import MEASURES, Measures
from sparsyfed_jax.fed.optimizers import ServerOptimizer
from sparsyfed_jax.fed.pruning import Masks
from sparsyfed_jax.fed.schedules import RateSchedule, SparsitySchedule, exponential_rate
from sparsyfed_jax.fed.server import by_size
from sparsyfed_jax.fed.task import Task
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Variables


class Setup(NamedTuple):
  """What fixes the compiled program of a method."""

  task: Task
  local: LocalTraining
  server_optimizer: ServerOptimizer
  sparsity_schedule: SparsitySchedule
  rate_schedule: RateSchedule = exponential_rate
  client_weight: Callable[[jax.Array], jax.Array] = by_size  # of a client's size, () float32
  is_heterogeneous: bool = False  # whether clients differ in `density_scale`
  measures: Measures = MEASURES
  wire_dtype: Any = jnp.float32  # to which models are rounded before they are sent


def no_memory(variables: Variables, hyper: Hyper) -> Memory:
  """Keeps nothing between a client's rounds, at no cost."""
  return ()


def masks_of_zeros(sent: Any) -> Masks:
  """Reads the masks of what is sent as zeros among the prunable parameters."""
  return [leaf != 0 for leaf in trees.split_prunable(sent.variables["params"])[0]]


class Algorithm(NamedTuple):
  """A federated method.

  States, downloads and uploads are pytrees of the method's own making, with two conventions: a
  state has `round`, () int32, the number of rounds done, and `hyper`; a download has `variables`,
  the model as the server sends it. A memory is what one client keeps until it takes part again. It
  stays as it was where the client vanishes, has no examples, or sends what is not finite.
  """

  init: Callable[[Variables, Hyper, Key], Any]  # server state before round 1
  broadcast: Callable[[Any], Any]  # state -> what every client receives
  # One client's round: (download, memory, data, key) -> (upload, memory, metrics)
  client: Callable[[Any, Memory, ClientData, Key], tuple[Any, Memory, Metrics]]
  server: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]  # upload: summed over the cohort
  model: Callable[[Any], Variables]  # state -> variables with which the plain model predicts
  # Memory of a client before its first round, of the initial model
  memory: Callable[[Variables, Hyper], Memory] = no_memory
  # A download, or one client's upload -> masks of the prunable parameters
  masks: Callable[[Any], Masks] = masks_of_zeros


def require_prunable(method: str, task: Task) -> None:
  """Checks that a model has parameters that a method can prune.

  Raises:
    ValueError: it has none.
  """
  if task.kernels is not None and not task.kernels:
    raise ValueError(
      f"{method}: the model has no prunable parameters, which are those called 'kernel' of at least"
      " two axes; a method that prunes nothing can train it"
    )


def require_injected(method: str, task: Task, is_plain: Callable[[str], bool]) -> None:
  """Checks that a method that changes how layers compute reaches all that have prunable parameters.

  Args:
    method: its name.
    task: whose model is checked.
    is_plain: tells of a layer's name whether the method leaves it alone.

  Raises:
    ValueError: naming the layers that do not compute with the model's `ops`.
  """
  missed = [
    name for name in task.kernels or () if name not in task.layer_names and not is_plain(name)
  ]
  if missed:
    raise ValueError(
      f"{method}: the model's layers {', '.join(missed)} do not compute with its `ops`, so their"
      " activations cannot be pruned; pass dot_general=self.ops.dot_general to dense layers and"
      " conv_general_dilated=self.ops.conv_general_dilated to convolutions, or exclude them by name"
    )
