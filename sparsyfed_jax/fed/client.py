"""Local training of one client, and what it reports."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsyfed_jax.data.batches import num_batches, take_batch
from sparsyfed_jax.data.shuffle import shuffle
from sparsyfed_jax.fed.optimizers import ClientOptimizer, apply_updates, in_float32
from sparsyfed_jax.fed.ragged import ragged_loop
from sparsyfed_jax.types import Batch, ClientData, Key, Mean, Metrics, Params, Variables

# Gradients with respect to "params", then the new state of the model and metrics.
GradFn = Callable[[Variables, Batch, Key], tuple[Params, tuple[Variables, Metrics]]]

_AFTER_EPOCH = 2**31 - 1  # no epoch has as many steps


class LocalTraining(NamedTuple):
  """Settings of local training, the same for all clients.

  Example:
    >>> from sparsyfed_jax.fed import sgd
    >>> LocalTraining(batch_size=16, epochs=5, optimizer=sgd(momentum=0.9)).is_proximal
    False
  """

  batch_size: int
  epochs: int | jax.Array
  optimizer: ClientOptimizer
  is_proximal: bool = False  # whether FedProx's term is computed
  is_ragged: bool = False  # whether clients side by side differ much in their number of steps


class Hooks(NamedTuple):
  """Functions applied to a client's variables between gradient steps; they default to none."""

  before_step: Callable[[Variables], Variables] = lambda variables: variables
  # (variables, number of the epoch from 0, key) -> variables
  after_epoch: Callable[[Variables, jax.Array, Key], Variables] = lambda variables, *_: variables


def train(
  local: LocalTraining,
  grad_fn: GradFn,
  optimizer: optax.GradientTransformation,
  hooks: Hooks,
  variables: Variables,
  data: ClientData,
  key: Key,
  sums: tuple[str, ...] = ("loss", "accuracy"),
) -> tuple[Variables, Metrics]:
  """Runs a client's epochs over its own examples.

  Each epoch takes every example once, in a new order; the last batch may be partial. The number of
  steps follows the client's size, so under vmap a chunk runs as long as its largest client, and a
  client that is done, or has no examples, is left as it is.

  Args:
    local: batch size and epochs.
    grad_fn: gradients of a batch.
    optimizer: makes updates of the gradients.
    hooks: what else happens to the variables.
    variables: what the client starts from; collections other than "params" are what `grad_fn`
      makes of them.
    data: the client's examples.
    key: decides order and dropout.
    sums: names of the metrics of `grad_fn`.

  Returns:
    The trained variables, and the means `train_loss`, `train_accuracy` and so on over all that was
    seen.
  """

  def run_epoch(epoch: jax.Array, carry: Any) -> Any:
    epoch_key = jax.random.fold_in(key, epoch)
    with jax.named_scope("shuffling"):
      shuffled = shuffle(epoch_key, data, local.is_ragged)

    def run_step(step: jax.Array, carry: Any) -> Any:
      variables, opt_state, metrics = carry
      variables = hooks.before_step(variables)
      batch = take_batch(shuffled, step, local.batch_size)
      grads, (state, scores) = grad_fn(variables, batch, jax.random.fold_in(epoch_key, step))
      updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
      params = apply_updates(variables["params"], updates)
      metrics = jax.tree.map(jnp.add, metrics, train_metrics(scores))
      return {**state, "params": params}, opt_state, metrics

    count = _steps_of_epoch(local, data)
    with jax.named_scope("local_steps"):  # by which plans know the loop
      if local.is_ragged:
        carry = ragged_loop(run_step, count, carry)
      else:
        carry = lax.fori_loop(0, count, run_step, carry)
    variables, *rest = carry
    return hooks.after_epoch(variables, epoch, jax.random.fold_in(epoch_key, _AFTER_EPOCH)), *rest

  optimizer = in_float32(optimizer)
  zero = Mean(jnp.float32(0), jnp.float32(0))
  carry = (
    dict(variables),
    optimizer.init(variables["params"]),
    train_metrics(dict.fromkeys(sums, zero)),
  )
  with jax.named_scope("local_training"):
    trained, _, metrics = lax.fori_loop(0, local.epochs, run_epoch, carry)
  return trained, metrics


def last_batch(local: LocalTraining, data: ClientData, key: Key) -> Batch:
  """Takes the last batch of the last epoch of `train` with the same data and key."""
  shuffled = shuffle(jax.random.fold_in(key, local.epochs - 1), data, local.is_ragged)
  last = jnp.maximum(_steps_of_epoch(local, data) - 1, 0)
  return take_batch(shuffled, last, local.batch_size)


def train_metrics(scores: Metrics) -> Metrics:
  """Renames the metrics of a task to `train_loss`, `train_accuracy` and so on."""
  return {f"train_{name}": score for name, score in scores.items()}


def num_steps(local: LocalTraining, data: ClientData) -> jax.Array:
  """Counts the steps that `train` takes in all epochs; () float32."""
  return jnp.float32(local.epochs) * _steps_of_epoch(local, data).astype(jnp.float32)


def _steps_of_epoch(local: LocalTraining, data: ClientData) -> jax.Array:
  """Counts the steps of an epoch; a straggler does a part of them, at least one."""
  whole = num_batches(data, local.batch_size)
  return jnp.minimum(whole, jnp.ceil(data.work * whole.astype(jnp.float32)).astype(jnp.int32))
