"""Building blocks for methods that train within a mask.

A weight that has just grown is 0 and active, so a mask is not where the parameters are not 0, and
is sent beside them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import server as server_step
from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.fed.averaging import rates_at, server_optimizer
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.pruning import Masks, apply_masks
from sparsyfed_jax.fed.rule import Carry, LocalRule, Rates
from sparsyfed_jax.types import ClientData, Key, Metrics, Params, Tally, Variables
from sparsyfed_jax.wire.rounding import round_to_wire

UPLINK, DOWNLINK = "round_uplink_bytes", "downlink_bytes"  # as `measures` counts them


class State(NamedTuple):
  """The server between two rounds."""

  round: jax.Array  # () int32, rounds done
  updates: jax.Array  # () int32, those of them that had an update
  variables: Variables  # the global model, 0 outside the masks
  masks: Masks
  opt_state: optax.OptState
  hyper: Hyper
  key: Key  # of what the server draws
  extra: Any = ()  # what a method keeps besides


class Download(NamedTuple):
  """The download of a round, the same for all clients."""

  round: jax.Array  # () int32, the number of the coming round
  update: jax.Array  # () int32, the same, counting only rounds that had an update
  variables: Variables
  masks: Masks
  rates: Rates
  hyper: Hyper
  extra: Any = ()  # what a method sends besides


class Upload(NamedTuple):
  """The upload of a client, multiplied by its weight."""

  variables: Variables  # 0 outside the client's masks
  kept: Masks  # the weight where a mask is True, 0 elsewhere; float32
  weight: jax.Array  # () float32
  extra: Any = ()  # what a method sends besides

  @property
  def masks(self) -> Masks:
    """The masks of one client."""
    return [kept > 0 for kept in self.kept]


class Beside(NamedTuple):
  """What a client sends beside its model in some rounds."""

  is_sent: jax.Array  # () bool
  tree: Any
  reference: Any  # what the server knows of it


def masks_beside(sent: Download | Upload) -> Masks:
  """Returns the masks of a download or an upload."""
  return sent.masks


def init(setup: Setup, variables: Variables, masks: Masks, hyper: Hyper, key: Key) -> State:
  """Makes the state before round 1, with everything outside the masks set to 0."""
  params = apply_masks(variables["params"], masks)
  opt_state = server_optimizer(setup, hyper).init(params)
  variables = {**variables, "params": params}
  return State(jnp.int32(0), jnp.int32(0), variables, masks, opt_state, hyper, key)


def broadcast(setup: Setup, state: State) -> Download:
  """Makes the download of the next round."""
  number = state.round + 1
  rates = rates_at(setup, state.hyper, number)
  variables = round_to_wire(state.variables, setup.wire_dtype)
  return Download(number, state.updates + 1, variables, state.masks, rates, state.hyper)


def training(masks: Masks) -> LocalRule:
  """Makes the rule of training within masks, outside of which gradients and updates are 0."""

  def weights(params: Params, carry: Carry) -> Params:
    return apply_masks(params, masks)

  return LocalRule(weights=weights)


def send(
  setup: Setup,
  download: Download,
  variables: Variables,
  masks: Masks,
  data: ClientData,
  beside: Beside | None = None,
) -> tuple[Upload, Metrics]:
  """Makes the upload of a client from its model within its masks, and measures it.

  Args:
    setup: of the method.
    download: what the client received.
    variables: its model.
    masks: its own.
    data: its examples.
    beside: what its bytes count besides; the upload does not have it.
  """
  weight = setup.client_weight(data.size)
  pruned = {**variables, "params": apply_masks(variables["params"], masks)}
  inside = round_to_wire(pruned, setup.wire_dtype)
  kept = [weight * mask.astype(jnp.float32) for mask in masks]
  upload = Upload(server_step.weighed(inside, weight), kept, weight)
  mark = with_values if setup.measures.needs_values else marked
  before = mark(download.variables, download.masks)
  after = mark(inside, masks)
  metrics = setup.measures.exchange(before, after, data.size)
  if beside is not None and UPLINK in metrics:
    both = {**before, "beside": beside.reference}, {**after, "beside": beside.tree}
    more = setup.measures.exchange(*both, data.size)[UPLINK]
    metrics = sending_instead(metrics, beside.is_sent, more)
  return upload, metrics


def sending_instead(metrics: Metrics, is_so: jax.Array, num_bytes: Tally) -> Metrics:
  """Replaces the bytes of an upload in the rounds in which something else is sent.

  Args:
    metrics: with those of the upload.
    is_so: () bool.
    num_bytes: of what is sent instead.
  """
  chosen = jax.tree.map(lambda a, b: jnp.where(is_so, a, b), num_bytes, metrics[UPLINK])
  return {**metrics, UPLINK: chosen}


def marked(variables: Variables, masks: Masks) -> Variables:
  """Replaces the prunable parameters by their masks, as 1 and 0, to be counted."""
  _, rebuild = trees.split_prunable(variables["params"])
  return {**variables, "params": rebuild([mask.astype(jnp.float32) for mask in masks])}


def with_values(variables: Variables, masks: Masks) -> Variables:
  """Makes the prunable parameters 0 outside their masks, and not inside: 0 is 1 there."""
  kernels, rebuild = trees.split_prunable(variables["params"])
  pairs = zip(kernels, masks, strict=True)
  values = [jnp.where(mask, jnp.where(w == 0, 1, w), 0) for w, mask in pairs]
  return {**variables, "params": rebuild(values)}


def mean(upload: Upload, state: State, of_masks: bool) -> Variables:
  """Averages the uploads; returns the state's model if no client had examples.

  Args:
    upload: summed over the cohort.
    state: before the round.
    of_masks: whether a weight is the mean over those clients alone that have it in their mask; it
      counts as 0 for the others otherwise.
  """
  plain = server_step.mean(server_step.Upload(upload.variables, upload.weight), state.variables)
  if not of_masks:
    return plain
  totals, _ = trees.split_prunable(upload.variables["params"])
  _, rebuild = trees.split_prunable(plain["params"])
  old, _ = trees.split_prunable(trees.widened(state.variables["params"]))
  kernels = [
    jnp.where(upload.weight == 0, before, total / jnp.where(kept > 0, kept, 1.0))
    for total, kept, before in zip(totals, upload.kept, old, strict=True)
  ]
  return {**plain, "params": rebuild(kernels)}


def advance(setup: Setup, state: State, target: Variables) -> State:
  """Takes the server step towards a model; keeps the masks."""
  optimizer = server_optimizer(setup, state.hyper)
  params, opt_state = server_step.step(
    optimizer, state.opt_state, state.variables["params"], target["params"]
  )
  variables = trees.cast_like({**target, "params": params}, dict(state.variables))
  return count_round(state)._replace(variables=variables, opt_state=opt_state)


def count_round(state: State) -> State:
  """Increments the numbers of rounds and of updates."""
  return state._replace(round=state.round + 1, updates=state.updates + 1)


def with_masks(state: State, masks: Masks) -> State:
  """Replaces the masks, and sets parameters outside them to 0."""
  params = apply_masks(state.variables["params"], masks)
  return state._replace(variables={**state.variables, "params": params}, masks=masks)


def unless_nobody(upload: Upload, masks: Masks, old: Masks) -> Masks:
  """Returns the new masks, or the old ones if no client had examples."""
  pairs = zip(masks, old, strict=True)
  return [jnp.where(upload.weight == 0, before, mask) for mask, before in pairs]


def finish(
  setup: Setup, old: State, new: State, weight: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
  """Discards the server step if no client had examples, and reports the round.

  Bytes and regrowth are counted from the masks, not from zeros.

  Args:
    setup: of the method.
    old: state before the round.
    new: state after the server's step.
    weight: () float32, of the summed upload.
  """
  new = server_step.unless_nobody(weight, new, old)
  sent = broadcast(setup, old)
  before, after = marked(old.variables, old.masks), marked(new.variables, new.masks)
  return new, {
    "client_lr": sent.rates.client_lr,
    "target_sparsity": 1 - old.hyper.density,
    **setup.measures.step(before, after),
  }
