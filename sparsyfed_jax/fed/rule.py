"""Hooks by which a method changes local training."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from sparsyfed_jax.fed.client import Hooks, LocalTraining, train
from sparsyfed_jax.fed.optimizers import proximal
from sparsyfed_jax.fed.task import Layers, Task, plain_layers
from sparsyfed_jax.ops.backend.pull import pull_back
from sparsyfed_jax.types import Batch, ClientData, Key, Metrics, Params, Variables

# What a client keeps from step to step besides the model and the optimizer; gone after the round.
Carry: TypeAlias = dict[str, Any]
_CARRY = "carry"  # the collection in which carry travels through local training


def _params(params: Params, carry: Carry) -> Params:
  return params


class LocalRule(NamedTuple):
  """Local training as a method wants it; the defaults are plain training.

  Example:
    >>> import jax
    >>> halved = LocalRule(weights=lambda params, carry: jax.tree.map(lambda w: w / 2, params))
    >>> halved.weights({"kernel": 3.0}, {})
    {'kernel': 1.5}
  """

  # The weights that layers compute with, of the trained parameters; differentiated.
  weights: Callable[[Params, Carry], Params] = _params
  # What layers compute with in a training step. Layers may replace entries of the carry given.
  layers: Callable[[Batch, Carry], Layers] = lambda batch, carry: plain_layers
  # Parameters before each step; what the step starts from.
  before_step: Callable[[Params], Params] = lambda params: params
  # (params, carry, number of the epoch from 0, key) -> params and carry after that epoch
  after_epoch: Callable[[Params, Carry, jax.Array, Key], tuple[Params, Carry]] = (
    lambda params, carry, epoch, key: (params, carry)
  )
  # Added to the gradient of every step, like the parameters; of SGD without momentum, after
  # clipping.
  correction: Params | None = None
  # The gradient of what is added to the loss of a step, of the parameters before it; for any
  # optimizer, and clipped with the rest.
  penalty: Callable[[Params], Params] | None = None
  # (parameters before a step, number of the step from 0) -> factor of the learning rate, () float32
  speed: Callable[[Params, jax.Array], jax.Array] | None = None


class Rates(NamedTuple):
  """Learning rate, weight decay and proximal coefficient of a round; () float32."""

  client_lr: jax.Array
  weight_decay: jax.Array
  proximal_mu: jax.Array


def train_client(
  rule: LocalRule,
  task: Task,
  local: LocalTraining,
  rates: Rates,
  variables: Variables,
  carry: Carry,
  data: ClientData,
  key: Key,
) -> tuple[Variables, Carry, Metrics]:
  """Trains a client.

  Args:
    rule: of the method.
    task: what is learned.
    local: batches, epochs and optimizer.
    rates: of the round.
    variables: what the client starts from.
    carry: what the rule keeps, before the first step.
    data: the client's examples.
    key: decides order, dropout, and what `rule.after_epoch` draws.

  Returns:
    Trained variables, the carry after the last step, and metrics of training.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import sparsyfed_jax as sf
    >>> from sparsyfed_jax import fed
    >>> from sparsyfed_jax.types import ClientData
    >>> data = sf.data.digits()
    >>> task = sf.classification(sf.models.MLP(10, hidden=(8,)), data)
    >>> one, key = jnp.float32(1), jax.random.key(0)
    >>> x, y = jax.device_put((data.x_train, data.y_train))
    >>> mine = ClientData(x, y, jnp.arange(64), jnp.int32(64), one, one)
    >>> local = fed.LocalTraining(batch_size=16, epochs=1, optimizer=fed.sgd())
    >>> start, rates = task.init(key), Rates(one / 2, 0 * one, 0 * one)
    >>> trained = train_client(fed.LocalRule(), task, local, rates, start, {}, mine, key)
    >>> variables, carry, metrics = trained
    >>> metrics["train_loss"].weight
    Array(64., dtype=float32)
  """

  def grad_fn(
    variables: Variables, batch: Batch, key: Key
  ) -> tuple[Params, tuple[Variables, Metrics]]:
    model = {name: leaf for name, leaf in variables.items() if name != _CARRY}

    def weights(params: Params) -> Params:
      return rule.weights(params, dict(variables[_CARRY]))

    def loss(weights: Params) -> tuple[jax.Array, tuple[Variables, Metrics]]:
      carry = dict(variables[_CARRY])
      computing = {**model, "params": weights}
      value, (state, metrics) = task.loss(computing, batch, rule.layers(batch, carry), key)
      return value, ({**state, _CARRY: carry}, metrics)

    params = variables["params"]
    if rule.weights is _params:
      return jax.grad(loss, has_aux=True)(params)
    computing, pull = jax.vjp(weights, params)
    grads, aux = jax.grad(loss, has_aux=True)(computing)
    return pull_back(weights, pull, params, grads), aux

  def before_step(variables: Variables) -> Variables:
    return {**variables, "params": rule.before_step(variables["params"])}

  def after_epoch(variables: Variables, epoch: jax.Array, key: Key) -> Variables:
    params, carry = rule.after_epoch(variables["params"], variables[_CARRY], epoch, key)
    return {**variables, "params": params, _CARRY: carry}

  optimizer = local.optimizer(rates.client_lr, rates.weight_decay)
  if local.is_proximal:
    optimizer = optax.chain(proximal(rates.proximal_mu, variables["params"]), optimizer)
  if rule.penalty is not None:
    optimizer = optax.chain(_penalise(rule.penalty), optimizer)
  if rule.speed is not None:
    optimizer = optax.chain(optimizer, _scale(rule.speed))
  if rule.correction is not None:
    optimizer = optax.chain(optimizer, _correct(rates.client_lr, rule.correction))
  trained, metrics = train(
    local,
    grad_fn,
    optimizer,
    Hooks(before_step, after_epoch),
    {**variables, _CARRY: carry},
    data,
    key,
    task.sums,
  )
  model = {name: leaf for name, leaf in trained.items() if name != _CARRY}
  return model, trained[_CARRY], metrics


def _correct(lr: jax.Array, correction: Params) -> optax.GradientTransformation:
  def add(updates: Params, params: Params | None) -> Params:
    return jax.tree.map(lambda update, c: update - lr * c, updates, correction)

  return optax.stateless(add)


def _penalise(penalty: Callable[[Params], Params]) -> optax.GradientTransformation:
  def add(updates: Params, params: Params | None) -> Params:
    return jax.tree.map(jnp.add, updates, penalty(params))

  return optax.stateless(add)


def _scale(speed: Callable[[Params, jax.Array], jax.Array]) -> optax.GradientTransformation:
  def init(params: Params) -> jax.Array:
    return jnp.int32(0)

  def update(
    updates: Params, step: jax.Array, params: Params | None = None
  ) -> tuple[Params, jax.Array]:
    factor = speed(params, step)
    return jax.tree.map(lambda update: factor * update, updates), step + 1

  return optax.GradientTransformation(init, update)
