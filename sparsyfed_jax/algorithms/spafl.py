"""SpaFL: clients keep their weights to themselves, and learn together which units to prune.

Each output unit of a layer with prunable weights, a filter or a neuron, has a threshold tau, 0 at
first. A layer computes with those units whose mean magnitude is above it; the others are 0:

    w * mask,    mask = mean(abs(w)) > tau    over the weights of the unit,

and the mask passes its gradient straight through, to `mean(abs(w)) - tau`. A client trains weights
and thresholds together, with `penalty * sum(exp(-tau))` in the loss, which raises thresholds. Only
thresholds travel: a client begins with the server's and sends what became of them, and the server
averages them, weighted as models are. Weights, biases and statistics stay with their client. As it
takes part again, its weights follow what others have found: where a threshold has grown by `change`
since the last time, the weights of the unit come nearer to 0,

    w <- w - sign(sum(w)) * change / n,

n being the size of the window of a filter, or the number of inputs of a neuron. Where no more than
a hundredth of the units of a layer is left, its thresholds begin again at 0.

What predicts: there is no common model. Each client has its own, with the thresholds that it
trained last (0 before its first round), and weights that have followed the server's until now. What
is reported of SpaFL is the mean accuracy of these models, each on test data like its client's: with
`--client_eval` that is `client_accuracy_mean`, over all clients there are. The server knows no
weights but those that all clients began with. `test_accuracy`, and the model that a run saves, are
of a client before its first round: the initial weights, moved and pruned by the server's
thresholds. They have seen no example and predict no better than guessing. No sparsity can be asked
for; that of clients' models after their training is `client_prunable_sparsity`, while
`prunable_sparsity` is that of the server's.

Kim et al., SpaFL: Communication-efficient federated learning with sparse models and low
computational overhead, NeurIPS 2024, arXiv 2406.00431. Details are those of the released code,
news-vt/SpaFL_NeruIPS_2024, whose copies for three data sets differ from each other. That for
CIFAR-10 drops the gradient of a mask wherever `abs(mean(abs(w)) - tau)` is at most 1, which is
almost everywhere and leaves thresholds to the penalty; here it is that for Fashion-MNIST, which
drops nothing. Those for Fashion-MNIST and CIFAR-100 let the penalty grow over the rounds; here it
is constant, as for CIFAR-10. For CIFAR-10 and CIFAR-100 all clients move their weights after each
round, and so hear of all thresholds; for Fashion-MNIST only those that take part, by the last
change alone. Here a client moves as it takes part, by all changes since it did: the same as the
former, but where the sign of a sum turns in between, with nothing sent to clients that are not
sampled. A layer begins again before a step that it would be dead in, not after it. There the server
weighs all clients alike, clients train by SGD with momentum 0.9 and for CIFAR with clipped
gradients, and models have no biases, which pruned units keep here.

Example:
  >>> import sparsyfed_jax as sf
  >>> data = sf.data.digits()
  >>> task = sf.classification(sf.models.MLP(10), data)
  >>> run = sf.simulate(sf.spafl(penalty=0.01), task, sf.data.iid(data))
  >>> state = run.init()
  >>> state.server.variables["params"]["Dense_0"].shape  # all that is sent of the layer
  (128,)
  >>> run.client_model(state, 3)["params"]["Dense_0"]["kernel"].shape
  (64, 128)
"""

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Knob, Method
from sparsyfed_jax.fed.rule import Carry, LocalRule, train_client
from sparsyfed_jax.fed.server import Upload, weigh
from sparsyfed_jax.metrics.masks import regrowth
from sparsyfed_jax.types import ClientData, Key, Metrics, Params, Variables, weighted
from sparsyfed_jax.wire.rounding import round_to_wire

Thresholds = dict[str, jax.Array]  # (units,) float32 by the name of a layer

# The share of a layer's units that has to be left.
_LEAST = 0.01


class Hyper(NamedTuple):
  """The numbers of SpaFL."""

  penalty: Annotated[float, Knob("coefficient of exp(-threshold) in the loss", low=0)] = 0.002


class Kept(NamedTuple):
  """What a client keeps."""

  variables: Variables  # its own model, before it is pruned
  received: Thresholds  # those with which it began the last time
  thresholds: Thresholds  # what became of them


def spafl(setup: Setup) -> Algorithm:
  """Makes SpaFL, with any server optimizer, which moves the thresholds."""
  require_prunable("spafl", setup.task)

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> averaging.State:
    start = {"params": _no_thresholds(variables["params"])}
    state = averaging.init(setup, start, hyper._replace(density=jnp.float32(1)))
    return state._replace(extra=dict(variables))

  def broadcast(state: averaging.State) -> averaging.Download:
    return averaging.broadcast(setup, state)

  def client(
    download: averaging.Download, memory: Kept, data: ClientData, key: Key
  ) -> tuple[Upload, Kept, Metrics]:
    received, coefficient = download.variables["params"], download.hyper.own.penalty

    def penalty(params: Params) -> Params:
      slopes = jax.tree.map(lambda tau: -coefficient * jnp.exp(-tau), params["thresholds"])
      return {"weights": jax.tree.map(jnp.zeros_like, params["weights"]), "thresholds": slopes}

    def loss(variables: Variables, *others: Any) -> Any:
      return setup.task.loss({**variables, "params": variables["params"]["weights"]}, *others)

    rule = LocalRule(_pruned, before_step=_revived, penalty=penalty)
    own = _moved(memory, received)
    both = {**own, "params": {"weights": own["params"], "thresholds": received}}
    task = setup.task._replace(loss=loss)
    trained, _, metrics = train_client(rule, task, setup.local, download.rates, both, {}, data, key)
    params = trained["params"]
    kept = Kept({**trained, "params": params["weights"]}, received, params["thresholds"])
    sent = round_to_wire({"params": params["thresholds"]}, setup.wire_dtype)
    before, after = _masked(own, received), _masked(kept.variables, kept.thresholds)
    metrics |= setup.measures.exchange(download.variables, sent, data.size)
    shares = setup.measures.model(after)
    if "client_regrowth" in metrics:  # of masks as the client has them, which it does not send
      shares = shares | {"regrowth": regrowth(before["params"], after["params"])}
    metrics |= {f"client_{name}": weighted(share, data.size) for name, share in shares.items()}
    return weigh(sent, setup.client_weight(data.size)), kept, metrics

  def server(
    state: averaging.State, upload: Upload
  ) -> tuple[averaging.State, dict[str, jax.Array]]:
    new, row = averaging.server(setup, state, upload)
    after = model(new)
    row |= setup.measures.model(after) | setup.measures.step(model(state), after)
    sent = broadcast(state).variables
    # Of the model, but of the bytes that are sent.
    measured = setup.measures.step(sent, sent)
    return new, row | {name: measured[name] for name in ("downlink_bytes",) if name in measured}

  def model(state: averaging.State) -> Variables:
    received = broadcast(state).variables["params"]
    return _masked(_moved(_first(state.extra), received), received)

  def client_model(download: averaging.Download, memory: Kept) -> Variables:
    return _masked(_moved(memory, download.variables["params"]), memory.thresholds)

  return Algorithm(
    init=init,
    broadcast=broadcast,
    client=client,
    server=server,
    model=model,
    memory=lambda variables, hyper: _first(variables),
    client_model=client_model,
  )


def _no_thresholds(params: Params) -> Thresholds:
  kernels, _ = trees.split_prunable(trees.widened(params))
  named = zip(trees.layer_names(params), kernels, strict=True)
  return {name: jnp.zeros(w.shape[-1], w.dtype) for name, w in named}


def _first(variables: Variables) -> Kept:
  """Makes what a client keeps before its first round."""
  nothing = _no_thresholds(variables["params"])
  return Kept(dict(variables), nothing, nothing)


def _moved(memory: Kept, received: Thresholds) -> Variables:
  """Moves what a client kept along with the thresholds."""
  params = memory.variables["params"]
  kernels, rebuild = trees.split_prunable(trees.widened(params))

  def move(w: jax.Array, name: str) -> jax.Array:
    window = math.prod(w.shape[:-2]) if w.ndim > 2 else w.shape[0]
    sign = jnp.sign(jnp.sum(w, axis=_inputs(w)))
    way = sign * (received[name] - memory.received[name]) / window
    return w - jnp.expand_dims(way, _inputs(w))

  named = zip(kernels, trees.layer_names(params), strict=True)
  moved = trees.cast_like(rebuild([move(*one) for one in named]), params)
  return {**memory.variables, "params": moved}


def _inputs(w: jax.Array) -> tuple[int, ...]:
  """The axes of what comes into a unit."""
  return tuple(range(w.ndim - 1))


def _excess(w: jax.Array, threshold: jax.Array) -> jax.Array:
  """By how much units weigh more than they must."""
  return jnp.mean(jnp.abs(w), axis=_inputs(w)) - threshold


def _pruned(params: Params, carry: Carry) -> Params:
  """Prunes weights as layers compute with them, differentiable through the masks."""
  weights, thresholds = params["weights"], params["thresholds"]
  kernels, rebuild = trees.split_prunable(trees.widened(weights))

  def prune(w: jax.Array, name: str) -> jax.Array:
    excess = _excess(w, thresholds[name])
    # The value is the mask's, the gradient that of the excess.
    mask = (excess > 0).astype(w.dtype) + (excess - jax.lax.stop_gradient(excess))
    return w * jnp.expand_dims(mask, _inputs(w))

  named = zip(kernels, trees.layer_names(weights), strict=True)
  return {**params, "weights": trees.cast_like(rebuild([prune(*one) for one in named]), weights)}


def _revived(params: Params) -> Params:
  """Lets layers that have almost no unit left begin again."""
  weights, thresholds = params["weights"], params["thresholds"]
  kernels, _ = trees.split_prunable(trees.widened(weights))

  def revive(w: jax.Array, threshold: jax.Array) -> jax.Array:
    left = jnp.mean(_excess(w, threshold) > 0, dtype=jnp.float32)
    return jnp.where(left > _LEAST, threshold, 0)

  named = zip(kernels, trees.layer_names(weights), strict=True)
  return {**params, "thresholds": {name: revive(w, thresholds[name]) for w, name in named}}


def _masked(variables: Variables, thresholds: Thresholds) -> Variables:
  """Makes the variables of the plain model, with exact zeros."""
  params = _revived({"weights": variables["params"], "thresholds": thresholds})

  def prune(w: jax.Array, name: str) -> jax.Array:
    is_left = _excess(trees.widened(w), params["thresholds"][name]) > 0
    return jnp.where(jnp.expand_dims(is_left, _inputs(w)), w, 0)

  kernels, rebuild = trees.split_prunable(params["weights"])
  named = zip(kernels, trees.layer_names(params["weights"]), strict=True)
  return {**variables, "params": rebuild([prune(*one) for one in named])}


METHOD = Method("spafl", "SpaFL", spafl, Hyper)
