"""Building blocks for methods whose masks are readjusted every few rounds.

Layers have Erdős–Rényi–kernel densities. Every `update_every` rounds t, until `update_until`, of
each layer the share

    drop_rate / 2 * (1 + cos(pi * t / update_until))

of smallest weights is dropped, and as many grow, from 0, where a score is largest. It is the
annealing of RigL (Evci et al., ICML 2020, arXiv 1911.11134). The score comes from gradients of all
weights, by one batch of each client. Where the server readjusts, it adds up what clients find, and
that is what is sent besides the weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import masked
from sparsyfed_jax.fed import server as server_step
from sparsyfed_jax.fed.algorithm import Algorithm, Client, Setup
from sparsyfed_jax.fed.client import last_batch
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.pruning import Masks, apply_masks, first_masks, largest_masks
from sparsyfed_jax.fed.rule import LocalRule, train_client
from sparsyfed_jax.fed.rules import Knob
from sparsyfed_jax.ops import PLAIN, count_one, erk_densities, largest_mask, num_kept
from sparsyfed_jax.types import Batch, ClientData, Key, Memory, Metrics, Params, Variables
from sparsyfed_jax.wire.rounding import round_to_wire

# Fields of the `Hyper` of such a method.
UpdateEvery: TypeAlias = Annotated[int, Knob("rounds between two readjustments", low=1)]
UpdateUntil: TypeAlias = Annotated[
  int | None,
  Knob(
    "round from which on masks stay; default: half of --rounds",
    low=0,
    default=lambda settings: settings.rounds // 2,
  ),
]
DropRate: TypeAlias = Annotated[
  float, Knob("share of the weights exchanged at first", low=0, high=1)
]

# Gradients that are matrix products, which are computed once and written down. Sums of products are
# computed again wherever they are read, rounded another way, and then the entry that sets the
# threshold of a mask may not reach it.
_WRITTEN = PLAIN._replace(dot_general=lax.dot_general)

# What a client sends besides its weights: (gradient of a prunable leaf where it is outside the mask
# and 0 elsewhere, how many may grow) -> array like the leaf
Score: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def init(
  setup: Setup,
  variables: Variables,
  hyper: Hyper,
  key: Key,
  of_sparsities: bool = False,
) -> masked.State:
  """Makes the state before round 1, with the largest weights of each layer in the masks.

  Args:
    setup: of the method.
    variables: of the plain model.
    hyper: the numbers of the run.
    key: of what the server draws.
    of_sparsities: as in `ops.erk_densities`.
  """
  params = variables["params"]
  densities = densities_of(params, hyper, of_sparsities)
  if setup.task.is_given:  # maybe sparse, so that zeros have to fill the masks
    masks = first_masks(params, densities, key, is_given=True)
  else:
    masks = largest_masks(params, densities)
  return masked.init(setup, variables, masks, hyper, key)


def densities_of(params: Params, hyper: Hyper, of_sparsities: bool = False) -> jax.Array:
  """Computes the densities of the layers, as `ops.erk_densities`; (num_layers,) float32."""
  kernels, _ = trees.split_prunable(params)
  return erk_densities([leaf.shape for leaf in kernels], hyper.density, of_sparsities)


def is_due(hyper: Hyper, round_number: jax.Array) -> jax.Array:
  """Tells whether a round ends in a readjustment; () bool."""
  number = round_number.astype(jnp.float32)
  return (number % hyper.own.update_every == 0) & (number < hyper.own.update_until)


def remark(own: Any, rounds: int) -> tuple[str, str] | None:
  """Tells where a run never readjusts its masks though `update_until` is not 0.

  Args:
    own: the numbers of a method that has `UpdateEvery` and `UpdateUntil`.
    rounds: of the run.
  """
  last = min(own.update_until, rounds)
  if own.update_every < last or not own.update_until:
    return None
  return "update_every", f"masks are never readjusted, which takes a number below {last}"


def drop_rate(hyper: Hyper, round_number: jax.Array) -> jax.Array:
  """Computes the share of the weights that a readjustment exchanges; () float32."""
  share = round_number.astype(jnp.float32) / jnp.maximum(hyper.own.update_until, 1.0)
  return hyper.own.drop_rate / 2 * (1 + jnp.cos(jnp.pi * jnp.minimum(share, 1.0)))


def dense_gradient(setup: Setup, variables: Variables, data: ClientData, key: Key) -> Params:
  """Computes the gradient of all weights by the last batch of training, without L2.

  Args:
    setup: of the method.
    variables: what the client ends with.
    data: its examples.
    key: with which it trained.
  """
  batch: Batch = last_batch(setup.local, data, key)

  def loss(params: Params) -> jax.Array:
    model = {**variables, "params": params}
    return setup.task.loss(model, batch, lambda name: _WRITTEN, key)[0]

  return jax.grad(loss)(variables["params"])


def survivors(params: Params, masks: Masks, densities: jax.Array, rate: jax.Array) -> Masks:
  """Marks what a readjustment does not drop: all but a share of each layer's smallest weights."""
  kernels, _ = trees.split_prunable(params)
  return [
    largest_mask(jnp.where(mask, w, 0), num_kept(w.size, density * (1 - rate)))
    for w, mask, density in zip(kernels, masks, densities, strict=True)
  ]


def exchange(
  params: Params, masks: Masks, scores: list[jax.Array], densities: jax.Array, rate: jax.Array
) -> tuple[Params, Masks]:
  """Drops a share of each layer's smallest weights, and grows as many where a score is large.

  What has just been dropped may grow again, from 0 like the others. Where fewer scores are not 0
  than may grow, as those outside a dense layer's mask, as many fewer weights are dropped.

  Args:
    params: pytree of parameters.
    masks: outside of which they are 0.
    scores: by prunable leaf; their magnitudes count.
    densities: (num_layers,) float32.
    rate: () float32, the share.
  """
  kernels, _ = trees.split_prunable(params)
  stay, chosen = [], []
  leaves = kernels, masks, survivors(params, masks, densities, rate), scores, densities
  for w, mask, kept, score, density in zip(*leaves, strict=True):
    budget = num_kept(w.size, density)
    grown = largest_mask(jnp.where(kept, 0, score), budget - count_one(kept))
    kept |= largest_mask(jnp.where(mask & ~grown, w, 0), budget - count_one(grown))
    stay.append(kept)
    chosen.append(kept | grown)
  return apply_masks(params, stay), chosen


def largest(gradient: jax.Array, number: jax.Array) -> jax.Array:
  """Keeps the largest gradients, as many as may grow."""
  return jnp.where(largest_mask(gradient, number), gradient, 0)


def client(
  setup: Setup,
  score: Score,
  download: masked.Download,
  memory: Memory,
  data: ClientData,
  key: Key,
  rule: LocalRule | None = None,
  are_votes: bool = False,
) -> tuple[masked.Upload, Memory, Metrics]:
  """Trains inside the server's masks and, where they are due, scores what is outside.

  Args:
    setup: of the method.
    score: of a readjustment.
    download: what the client received.
    memory: stays as it is.
    data: its examples.
    key: of the client's round.
    rule: of local training; the plain one inside the masks by default.
    are_votes: whether a score is 0 or 1, so that places alone are sent.
  """
  hyper, masks = download.hyper, download.masks
  rule = masked.training(masks) if rule is None else rule
  arguments = setup.task, setup.local, download.rates, download.variables
  trained, _, metrics = train_client(rule, *arguments, {}, data, key)
  is_sent = is_due(hyper, download.round)

  def find() -> list[jax.Array]:
    gradients, _ = trees.split_prunable(
      trees.widened(dense_gradient(setup, dict(trained), data, key))
    )
    densities = densities_of(trained["params"], hyper)
    rate = drop_rate(hyper, download.round)
    return [
      score(jnp.where(mask, 0, g), num_kept(g.size, d) - num_kept(g.size, d * (1 - rate)))
      for g, mask, d in zip(gradients, masks, densities, strict=True)
    ]

  nothing = [jnp.zeros(mask.shape) for mask in masks]
  scores = round_to_wire(lax.cond(is_sent, find, lambda: nothing), setup.wire_dtype)
  dtype = bool if are_votes else jnp.float32
  # Who receives the scores knows what is outside the masks: it costs no positions.
  beside = masked.Beside(
    is_sent, *([one.astype(dtype) for one in each] for each in (scores, map(jnp.invert, masks)))
  )
  upload, sizes = masked.send(setup, download, trained, masks, data, beside)
  scores = server_step.weighed(scores, upload.weight)
  return upload._replace(extra=scores), memory, metrics | sizes


def server(
  setup: Setup, state: masked.State, upload: masked.Upload
) -> tuple[masked.State, dict[str, jax.Array]]:
  """Takes the step towards the mean and, where it is due, exchanges weights by the mean scores."""
  new = masked.advance(setup, state, masked.mean(upload, state, of_masks=False))
  params, hyper, number = new.variables["params"], state.hyper, state.round + 1

  def readjust() -> tuple[Params, Masks]:
    densities = densities_of(params, hyper)
    return exchange(params, state.masks, upload.extra, densities, drop_rate(hyper, number))

  def keep() -> tuple[Params, Masks]:
    return params, state.masks

  params, masks = lax.cond(is_due(hyper, number), readjust, keep)
  new = new._replace(variables={**new.variables, "params": params}, masks=masks)
  return masked.finish(setup, state, new, upload.weight)


def by_server(setup: Setup, client: Client) -> Algorithm:
  """Makes a method whose server readjusts the masks.

  Args:
    setup: of the method.
    client: whose uploads have scores.
  """
  return Algorithm(
    init=partial(init, setup),
    broadcast=partial(masked.broadcast, setup),
    client=client,
    server=partial(server, setup),
    model=lambda state: state.variables,
    masks=masked.masks_beside,
  )
