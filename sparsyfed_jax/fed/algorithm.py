"""The interface of a federated method.

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

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

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
from sparsyfed_jax.ops import Unknown
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Variables


class Setup(NamedTuple):
  """The static settings of a run, which determine the compiled program.

  Example:
    >>> import optax
    >>> import sparsyfed_jax as sf
    >>> from sparsyfed_jax import fed
    >>> data = sf.data.digits()
    >>> task = sf.classification(sf.models.MLP(10), data)
    >>> local = fed.LocalTraining(batch_size=16, epochs=1, optimizer=fed.sgd())
    >>> setup = Setup(task, local, optax.sgd, fed.SPARSITY_SCHEDULES["constant"])
    >>> sorted(sf.METHODS["fedavg"].algorithm(setup)._fields)[:2]
    ['broadcast', 'client']
  """

  task: Task
  local: LocalTraining
  server_optimizer: ServerOptimizer
  sparsity_schedule: SparsitySchedule
  rate_schedule: RateSchedule = exponential_rate
  client_weight: Callable[[jax.Array], jax.Array] = by_size  # of a client's size, () float32
  is_heterogeneous: bool = False  # whether clients differ in `density_scale`
  measures: Measures = MEASURES
  wire_dtype: Any = jnp.float32  # to which models are rounded before they are sent


class Init(Protocol):
  """Makes the server's state before round 1."""

  def __call__(self, variables: Variables, hyper: Hyper, key: Key, /) -> Any:
    """Makes the state.

    Args:
      variables: of the plain model, as it is initialised.
      hyper: the numbers of the run, which the state keeps.
      key: of what the server draws; a method that draws keeps it.

    Returns:
      A pytree with `round`, () int32 0, and `hyper`.
    """


class Broadcast(Protocol):
  """Makes the download that every client of the next round receives."""

  def __call__(self, state: Any, /) -> Any:
    """Makes the download.

    Args:
      state: of the server.

    Returns:
      A pytree with `variables`, the model as the server sends it.
    """


class Client(Protocol):
  """Runs one client's round; never vmaps and never sees another client."""

  def __call__(
    self, download: Any, memory: Memory, data: ClientData, key: Key, /
  ) -> tuple[Any, Memory, Metrics]:
    """Trains one client.

    Args:
      download: what `broadcast` makes.
      memory: what the client kept of the last round in which it took part.
      data: its examples.
      key: of all that chance decides in the client's round.

    Returns:
      The upload, a pytree of arrays times the client's weight, with the weight among them; the new
      memory, like the old one; and metrics, each a `Mean` or a `Tally`, `train_loss` among them.
    """


class Server(Protocol):
  """Takes the step of the server."""

  def __call__(self, state: Any, upload: Any, /) -> tuple[Any, dict[str, jax.Array]]:
    """Makes the next state.

    Args:
      state: before the round.
      upload: the clients' uploads, summed; all zeros where no client had an example.

    Returns:
      The state after the round, like the one before it, and columns of the round's row.
    """


class Model(Protocol):
  """Reads the model out."""

  def __call__(self, state: Any, /) -> Variables:
    """Makes the variables with which the plain model predicts.

    Args:
      state: of the server.
    """


class ClientModel(Protocol):
  """Reads out the model of one client."""

  def __call__(self, download: Any, memory: Memory, /) -> Variables:
    """Makes the variables with which the plain model predicts for a client.

    Args:
      download: what `broadcast` makes of the state now.
      memory: what the client keeps.
    """


class MakeMemory(Protocol):
  """Makes the initial memory of a client."""

  def __call__(self, variables: Variables, hyper: Hyper, /) -> Memory:
    """Makes the memory of one client.

    Args:
      variables: as `Init` takes them.
      hyper: the numbers of the run.

    Returns:
      A pytree of arrays; () costs nothing.
    """


class ReadMasks(Protocol):
  """Finds the masks of what is sent."""

  def __call__(self, sent: Any, /) -> Masks:
    """Finds masks.

    Args:
      sent: a download, or the upload of one client.

    Returns:
      A bool array for each prunable leaf, in the order of `trees.split_prunable`.
    """


def no_memory(variables: Variables, hyper: Hyper) -> Memory:
  """Keeps nothing between a client's rounds, at no cost."""
  return ()


def masks_of_zeros(sent: Any) -> Masks:
  """Reads the masks of what is sent as zeros among the prunable parameters."""
  return masks_of_model(sent.variables)


def masks_of_model(variables: Variables) -> Masks:
  """Reads masks as zeros among the prunable parameters of a model."""
  return [leaf != 0 for leaf in trees.split_prunable(variables["params"])[0]]


class Algorithm(NamedTuple):
  """A federated method, as pure functions.

  States, downloads and uploads are pytrees of the method's own making. A memory is what one client
  keeps until it takes part again; it stays as it was where the client vanishes, has no examples, or
  sends what is not finite.

  Example:
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> task = sf.classification(sf.models.MLP(10), data)
    >>> run = sf.simulate(sf.fedavg(), task, sf.data.iid(data))
    >>> download = run.algorithm.broadcast(run.init().server)
    >>> sorted(download.variables["params"])
    ['Dense_0', 'Dense_1', 'Dense_2']
  """

  init: Init
  broadcast: Broadcast
  client: Client
  server: Server
  model: Model
  memory: MakeMemory = no_memory
  masks: ReadMasks = masks_of_zeros
  # Where clients predict with models of their own; None where all do with that of `model`. What is
  # sent need not be a model then: masks are read from `model` and from this.
  client_model: ClientModel | None = None


def require_prunable(method: str, task: Task) -> None:
  """Checks that a model has parameters that a method can prune, and that all can be followed.

  Raises:
    ValueError: it has none, or the layers of some cannot be followed; the message names them.

  Example:
    >>> import sparsyfed_jax as sf
    >>> task = sf.classification(sf.models.MLP(10), sf.data.digits())
    >>> require_prunable("mine", task._replace(kernels=()))
    Traceback (most recent call last):
    ValueError: mine: the model has no prunable parameters, ...
  """
  if task.problems:
    raise ValueError(
      f"{method}: cannot follow all layers of the model: {'; '.join(task.problems)}; prunable (a"
      " regular expression) chooses the parameters to prune, which may leave these out"
    )
  if task.kernels is not None and not task.kernels:
    raise ValueError(
      f"{method}: the model has no prunable parameters, which are those of at least two axes that"
      " layers multiply with their input; a method that prunes nothing can train it"
    )


def require_rows(
  method: str, task: Task, is_plain: Callable[[str], bool], kept: Collection[str] = ()
) -> None:
  """Checks that a method that finds thresholds of layers' inputs knows where the batch is in them.

  Args:
    method: its name.
    task: whose model is checked.
    is_plain: tells of a layer's name whether the method leaves it alone.
    kept: the kinds of products whose thresholds stay from one batch to the next.

  Raises:
    ValueError: naming the layer, and what the batch cannot be followed through.

  Example:
    >>> import sparsyfed_jax as sf
    >>> task = sf.classification(sf.models.MLP(10), sf.data.digits())
    >>> require_rows("mine", task, lambda name: False)
  """
  for product in task.products:
    if product.problem or product.path not in (task.kernels or ()) or is_plain(product.path):
      continue
    reason = ""
    if isinstance(product.rows, Unknown):
      reason = f"which entries belong to which example is not known after {product.rows.primitive}"
    elif product.inside and product.kind in kept:
      reason = f"inside a {product.inside} no threshold can be kept from one batch to the next"
    if reason:
      raise ValueError(
        f"{method}: the input of the model's layer {product.path}: {reason}; exclude the layer by"
        " name, or from the prunable parameters"
      )
