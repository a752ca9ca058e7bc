"""FedPM: weights stay as they are drawn, and clients learn which of them to keep.

Every prunable weight is +c or -c, as it is drawn, c being the root of twice the mean square of its
layer's draws, and has a probability theta to be kept. A client trains scores s, at first
logit(theta): in each step a mask is drawn with the probabilities sigmoid(s), and its gradient is
passed on to them. At its end it draws a mask once more and sends that, a bit a weight. The server
has for each weight a Beta distribution, a <- a + masks that keep it, b <- b + those that do not,
both 1 at first and again every `reset_every` rounds, and sends its mode as the new theta:

    theta = (a - 1) / (a + b - 2),

the share of the masks since then; weighted as models are. Parameters that are not prunable, such as
biases, which the paper's models do not have, are trained and averaged. What predicts is a mask
drawn with theta; about half of the weights are in it, and no sparsity can be asked for. A server
optimizer moves theta towards its new value, within [0, 1]. Weights that a run is given stay as they
are, and all are kept at first.

Scores are hard to move by plain SGD, as their gradients have a factor abs(weight) / 4 at most; the
paper takes Adam at 0.1. The mask goes over the wire against the more likely mask of theta.

Isik et al., Sparse random networks for communication-efficient federated learning, ICLR 2023, arXiv
2209.15328, algorithms 1 and 2; there `reset_every` is the number of rounds in which a client takes
part once on average.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.fedpm(reset_every=5).hyper.reset_every
  5
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Knob, Method
from sparsyfed_jax.fed.rule import Carry, LocalRule, train_client
from sparsyfed_jax.fed.server import Upload, unless_nobody, weigh
from sparsyfed_jax.fed.task import Layers, plain_layers
from sparsyfed_jax.types import Batch, ClientData, Key, Memory, Metrics, Params, Variables
from sparsyfed_jax.wire.rounding import round_to_wire

# The least probability that clients start from, and 1 less the largest: scores can still move.
_LEAST = 0.01


class Hyper(NamedTuple):
  """The numbers of FedPM."""

  reset_every: Annotated[int, Knob("rounds whose masks are counted together", low=1)] = 10


class Server(NamedTuple):
  """What the server keeps besides probabilities; lists are by prunable leaf."""

  weights: list[jax.Array]  # as they are drawn; clients draw the same
  kept: list[jax.Array]  # a - 1, in shares of the weight of all clients
  total: jax.Array  # () float32, a + b - 2 likewise
  key: Key


class Sent(NamedTuple):
  """What a client has besides probabilities."""

  weights: list[jax.Array]


def fedpm(setup: Setup) -> Algorithm:
  """Makes FedPM, with any server optimizer."""
  require_prunable("fedpm", setup.task)

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> averaging.State:
    kernels, rebuild = trees.split_prunable(trees.widened(variables["params"]))
    is_given = setup.task.is_given
    weights = kernels if is_given else [_signed(w) for w in kernels]
    params = rebuild([jnp.full_like(w, 1.0 if is_given else 0.5) for w in kernels])
    start = trees.cast_like(params, variables["params"])
    state = averaging.init(
      setup, {**variables, "params": start}, hyper._replace(density=jnp.float32(1))
    )
    nothing = [jnp.zeros_like(w) for w in kernels]
    return state._replace(extra=Server(weights, nothing, jnp.float32(0), key))

  def broadcast(state: averaging.State) -> averaging.Download:
    return averaging.broadcast(setup, state)._replace(extra=Sent(state.extra.weights))

  def client(
    download: averaging.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[Upload, Memory, Metrics]:
    drawn = download.extra.weights

    def layers(batch: Batch, carry: Carry) -> Layers:
      carry["key"], _ = jax.random.split(carry["key"])  # of the next step
      return plain_layers

    def weights(scores: Params, carry: Carry) -> Params:
      _, now = jax.random.split(carry["key"])
      leaves, rebuild = trees.split_prunable(scores)
      chances = [jax.nn.sigmoid(s) for s in leaves]
      masks = _draw(chances, now)
      # The value is the mask's, the gradient that of the probabilities.
      through = [
        mask + (p - jax.lax.stop_gradient(p)) for mask, p in zip(masks, chances, strict=True)
      ]
      pairs = zip(through, drawn, leaves, strict=True)
      return rebuild([(mask * w).astype(leaf.dtype) for mask, w, leaf in pairs])

    _, rebuild = trees.split_prunable(trees.widened(download.variables["params"]))
    theta = _kernels(download.variables)
    scores = rebuild([jax.scipy.special.logit(jnp.clip(p, _LEAST, 1 - _LEAST)) for p in theta])
    received = {**download.variables, "params": scores}
    training, last = jax.random.split(jax.random.fold_in(key, 1))
    arguments = setup.task, setup.local, download.rates, received, {"key": training}, data, key
    trained, _, metrics = train_client(LocalRule(weights, layers), *arguments)
    masks = _draw([jax.nn.sigmoid(s) for s in _kernels(trained)], last)
    sent = round_to_wire(_with(trained, masks), setup.wire_dtype)
    likely = [p >= 0.5 for p in theta]
    before = _with(download.variables, likely)
    after = _with(sent, [mask > 0 for mask in masks])
    metrics |= setup.measures.exchange(before, after, data.size)
    return weigh(sent, setup.client_weight(data.size)), memory, metrics

  def server(
    state: averaging.State, upload: Upload
  ) -> tuple[averaging.State, dict[str, jax.Array]]:
    hyper, known, numbers = state.hyper, state.extra, (state.round + 1, state.updated)
    # Rounds without an update count nothing, and may be those that begin a period.
    now, then = ((n.astype(jnp.float32) - 1) // hyper.own.reset_every for n in numbers)
    is_new = now != then
    total = jnp.where(is_new, 0, known.total) + upload.weight / hyper.total_weight
    pairs = zip(known.kept, _kernels(upload.variables), strict=True)
    kept = [jnp.where(is_new, 0, old) + more / hyper.total_weight for old, more in pairs]
    theta = [part * upload.weight / jnp.where(total == 0, 1, total) for part in kept]
    target = upload._replace(variables=_with(upload.variables, theta))
    new, row = averaging.server(setup, state, target)
    chances = [jnp.clip(p, 0, 1) for p in trees.split_prunable(new.variables["params"])[0]]
    extra = known._replace(kept=kept, total=total)
    new = new._replace(variables=_with(new.variables, chances), extra=extra)
    new = unless_nobody(upload.weight, new, state)
    return new, row | setup.measures.model(model(new))

  def model(state: averaging.State) -> Variables:
    masks = _draw(_kernels(state.variables), jax.random.fold_in(state.extra.key, state.round))
    weights = [mask * w for mask, w in zip(masks, state.extra.weights, strict=True)]
    return trees.cast_like(_with(state.variables, weights), dict(state.variables))

  return Algorithm(init=init, broadcast=broadcast, client=client, server=server, model=model)


def _signed(w: jax.Array) -> jax.Array:
  """Makes constants of the signs; half are masked, so that the sum of squares is as drawn."""
  return jnp.where(w < 0, -1, 1) * jnp.sqrt(2 * jnp.mean(jnp.square(w)))


def _draw(chances: list[jax.Array], key: Key) -> list[jax.Array]:
  """Draws 1 with each probability, 0 otherwise; float32."""
  keys = jax.random.split(key, max(len(chances), 1))
  pairs = zip(chances, keys, strict=False)
  return [(jax.random.uniform(one, p.shape) < p).astype(jnp.float32) for p, one in pairs]


def _kernels(variables: Variables) -> list[jax.Array]:
  return trees.split_prunable(trees.widened(variables["params"]))[0]


def _with(variables: Variables, kernels: list[Any]) -> Variables:
  _, rebuild = trees.split_prunable(variables["params"])
  return {**variables, "params": rebuild(kernels)}


METHOD = Method("fedpm", "FedPM", fedpm, Hyper, reads=("total_weight",))
