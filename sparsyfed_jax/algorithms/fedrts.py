"""FedRTS: masks drawn by Thompson sampling, from what all rounds so far told of each weight.

Clients train inside the server's mask. The server believes that weight i deserves its place with a
probability of Beta(a_i, b_i), at first Beta(1, 1), and learns from outcomes o in [0, 1]:

    a <- a + strength * o,    b <- b + strength * (1 - o).

After every round a weight inside the mask has

    o = (1 - trust) * [it is among the largest of the mean] + trust * votes,

votes being the share of the clients, weighted as models are, among whose own largest it is. The
largest are those of its layer that a readjustment would not drop for their magnitude. Every
`update_every` rounds, until `update_until`, clients also send the places of their largest gradients
outside the mask, as many of each layer as would be dropped, and a weight outside has

    o = (1 - trust) / 2 + trust * votes,

as the server knows no gradients. Then it draws a number for each weight, and the largest draws of
each layer are the new mask.

Huang et al., FedRTS: Federated robust pruning via combinatorial Thompson sampling, NeurIPS 2025,
arXiv 2501.19122, section 3. The authors' code believes in being dropped, starts anew at every
readjustment, and draws twice: which of the mask go, and from gradients, as many that come; there
the mean of the gradients is known, too.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.fedrts(sparsity=0.9, strength=5.0).hyper.trust
  0.5
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.fed import adjusting, masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Knob, Method
from sparsyfed_jax.fed.pruning import Masks
from sparsyfed_jax.fed.server import weighed
from sparsyfed_jax.metrics.flops import shares_inside_masks
from sparsyfed_jax.ops import largest_mask, num_kept
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params, Variables


class Hyper(NamedTuple):
  """The numbers of FedRTS."""

  update_every: adjusting.UpdateEvery = 10
  update_until: adjusting.UpdateUntil = None
  drop_rate: adjusting.DropRate = 0.2
  trust: Annotated[float, Knob("share of clients' votes in an outcome", low=0, high=1)] = 0.5
  strength: Annotated[float, Knob("weight of an outcome in the beliefs", low=0)] = 10.0


class Beliefs(NamedTuple):
  """The parameters of a Beta distribution for each weight; by prunable leaf, float32."""

  successes: list[jax.Array]  # a
  failures: list[jax.Array]  # b


class Votes(NamedTuple):
  """How much of the clients' weight votes for a weight; by prunable leaf, float32."""

  inside: list[jax.Array]  # the masks
  outside: list[jax.Array]


def fedrts(setup: Setup) -> Algorithm:
  """Makes FedRTS, with any server optimizer."""
  require_prunable("fedrts", setup.task)

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> masked.State:
    state = adjusting.init(setup, variables, hyper, key)
    beliefs = Beliefs(*([jnp.ones(mask.shape) for mask in state.masks] for _ in Beliefs._fields))
    return state._replace(extra=beliefs)

  def client(
    download: masked.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[masked.Upload, Memory, Metrics]:
    arguments = setup, _vote, download, memory, data, key
    upload, _, metrics = adjusting.client(*arguments, are_votes=True)
    # What the server reads off the weights that it receives costs no bytes.
    largest = _largest(upload.variables["params"], download.masks, download.hyper, download.round)
    inside = weighed([mask.astype(jnp.float32) for mask in largest], upload.weight)
    return upload._replace(extra=Votes(inside, upload.extra)), memory, metrics

  def server(
    state: masked.State, upload: masked.Upload
  ) -> tuple[masked.State, dict[str, jax.Array]]:
    new = masked.advance(setup, state, masked.mean(upload, state, of_masks=False))
    hyper, number = state.hyper, state.round + 1
    largest = _largest(new.variables["params"], state.masks, hyper, number)
    is_due = adjusting.is_due(hyper, number)
    own, weight = hyper.own, jnp.where(upload.weight == 0, 1, upload.weight)

    def learn(
      a: jax.Array, b: jax.Array, mask: jax.Array, top: jax.Array, *votes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
      inside, outside = (own.trust * vote / weight for vote in votes)
      known = jnp.where(mask, top.astype(jnp.float32), 1 / 2)
      outcome = (1 - own.trust) * known + jnp.where(mask, inside, outside)
      strength = jnp.where(mask | is_due, own.strength, 0)
      return a + strength * outcome, b + strength * (1 - outcome)

    leaves = *state.extra, state.masks, largest, *upload.extra
    pairs = [learn(*group) for group in zip(*leaves, strict=True)]
    beliefs = Beliefs([a for a, _ in pairs], [b for _, b in pairs])
    key = jax.random.fold_in(state.key, state.round)
    densities = adjusting.densities_of(new.variables["params"], hyper)
    masks = lax.cond(is_due, lambda: _draw(beliefs, densities, key), lambda: state.masks)
    new = masked.with_masks(new, masks)._replace(extra=beliefs)
    return masked.finish(setup, state, new, upload.weight)

  return adjusting.by_server(setup, client)._replace(init=init, server=server)


def _vote(gradient: jax.Array, number: jax.Array) -> jax.Array:
  return largest_mask(gradient, number).astype(jnp.float32)


def _largest(params: Params, masks: Masks, hyper: CommonHyper, number: jax.Array) -> Masks:
  rate = adjusting.drop_rate(hyper, number)
  return adjusting.survivors(params, masks, adjusting.densities_of(params, hyper), rate)


def _draw(beliefs: Beliefs, densities: jax.Array, key: Key) -> Masks:
  """Marks the largest draws of each layer."""
  keys = jax.random.split(key, max(len(beliefs.successes), 1))
  draws = [jax.random.beta(one_key, a, b) for one_key, a, b in zip(keys, *beliefs, strict=False)]
  pairs = zip(draws, densities, strict=True)
  return [largest_mask(draw, num_kept(draw.size, density)) for draw, density in pairs]


METHOD = Method(
  "fedrts",
  "FedRTS",
  fedrts,
  Hyper,
  reads=("density",),
  layer_shares=shares_inside_masks,
  remark=adjusting.remark,
)
