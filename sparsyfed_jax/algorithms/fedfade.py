"""FedFade: few weights are trained before a background that is never sent, and that fades.

All prunable weights are drawn from a seed that clients and server share. Those inside the server's
mask, a share of 1 - sparsity, are trained, sent and averaged; those outside are no zeros at first,
but a part of what was drawn for them,

    (1 - (t - 1) / fade_until)^fade_power * drawn    in round t, 0 from round fade_until + 1 on.

So signals and gradients pass through a network that is dense for some rounds, although no more than
the mask's weights go over the wire, and what is trained learns to do without the others as they
vanish. A sparse network drawn at 99 % or more hardly passes any, and weights that start at 0 get
no gradient there.

Every `update_every` rounds, until `update_until`, clients also send the places of the largest
gradients outside the mask. The server drops a share of

    drop_rate / 2 * (1 + cos(pi * t / update_until))

of the weights, those nearest to what would be in their place, and grows as many that the most
clients voted for, from the background. Layers compete for weights, but of each stays a share
`floor` of what Erdős–Rényi–kernel would give it. Biases and the parameters of norms, which at
99.9 % are more bytes than all weights of the mask, are trained and sent only after round
`biases_from`, and biases of units that have a weight in the mask alone. The first mask has the
largest drawn weights, which nobody has to send.

The method is this library's own. It puts together the dense start of SparsyFed (Guastella et al.,
ICLR 2025, arXiv 2504.05153), drawn weights that cost nothing to send (FedPM, Isik et al., ICLR
2023, arXiv 2209.15328), and votes for the weights that grow (FedRTS, Huang et al., NeurIPS 2025,
arXiv 2501.19122). A model that a run is given has to be sent once, and counts for the clients of
round 1.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.fedfade(sparsity=0.99, fade_until=30).hyper.fade_until
  30
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import adjusting, masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Choice, Knob, Method, check_options
from sparsyfed_jax.fed.pruning import Masks, positive_noise
from sparsyfed_jax.fed.rule import Carry, LocalRule, train_client
from sparsyfed_jax.fed.server import weighed
from sparsyfed_jax.metrics.flops import LayerShares
from sparsyfed_jax.ops import count_one, largest_mask, num_kept, powerprop, powerprop_inverse
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params, Variables
from sparsyfed_jax.wire.rounding import round_to_wire


def _tenths(number: int) -> Callable[[Any], int]:
  return lambda settings: number * settings.rounds // 10


class Hyper(NamedTuple):
  """The numbers of FedFade."""

  update_every: Annotated[int, Knob("rounds between two readjustments", low=1)] = 5
  update_until: Annotated[
    int | None,
    Knob(
      "round from which on masks stay; default: six tenths of --rounds", low=0, default=_tenths(6)
    ),
  ] = None
  drop_rate: adjusting.DropRate = 0.3
  fade_until: Annotated[
    int | None,
    Knob(
      "rounds with a background; 0 for none; default: six tenths of --rounds",
      low=0,
      default=_tenths(6),
    ),
  ] = None
  fade_power: Annotated[float, Knob("exponent of the background's fall", low=0)] = 1.0
  biases_from: Annotated[
    int | None,
    Knob(
      "rounds before biases and norms are trained; default: seven tenths of --rounds",
      low=0,
      default=_tenths(7),
    ),
  ] = None
  floor: Annotated[
    float, Knob("least share of a layer's Erdős–Rényi–kernel weights", low=0, high=1)
  ] = 0.5
  beta: Annotated[
    float, Knob("exponent of powerpropagation, at least 1; 1 turns it off", low=1)
  ] = 1.0


class Options(NamedTuple):
  """The forms of FedFade."""

  drops: Annotated[
    str,
    Choice(
      "what is dropped: unmoved (nearest to the background) or smallest weights",
      ("unmoved", "smallest"),
    ),
  ] = "unmoved"
  grows: Annotated[
    str, Choice("from what weights grow: background or zero", ("background", "zero"))
  ] = "background"


DEFAULT = Options()


def fedfade(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes FedFade, with any server optimizer."""
  check_options(options)
  require_prunable("fedfade", setup.task)

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> masked.State:
    drawn = variables["params"]
    kernels, rebuild = trees.split_prunable(drawn)
    masks = choose(trees.widened(kernels), *_budget(drawn, hyper))
    theta = rebuild([powerprop_inverse(w, hyper.own.beta) for w in kernels])
    theta = _with_biases(theta, masks, _zeros(theta), _has_biases(hyper, 1))
    state = masked.init(setup, {**variables, "params": theta}, masks, hyper, key)
    return state._replace(extra=drawn)

  def broadcast(state: masked.State) -> masked.Download:
    is_sent = setup.task.is_given
    drawn = round_to_wire(state.extra, setup.wire_dtype) if is_sent else state.extra
    return masked.broadcast(setup, state)._replace(extra=drawn)

  def server(
    state: masked.State, upload: masked.Upload
  ) -> tuple[masked.State, dict[str, jax.Array]]:
    new = masked.advance(setup, state, masked.mean(upload, state, of_masks=False))
    masks = lax.cond(
      adjusting.is_due(state.hyper, new.round),
      lambda: _readjusted(options, state, upload, new.variables["params"]),
      lambda: state.masks,
    )
    params = _grown(options, state, new.variables["params"], masks)
    variables = trees.cast_like({**new.variables, "params": params}, dict(new.variables))
    new = masked.with_masks(new._replace(variables=variables), masks)
    new, row = masked.finish(setup, state, new, upload.weight)
    return new, row | setup.measures.model(model(new)) | _downlink(setup, state, row)

  def model(state: masked.State) -> Variables:
    params, number = state.variables["params"], state.round + 1
    composed = _composed(params, state.masks, state.extra, state.hyper, number)
    return {**state.variables, "params": composed}

  return Algorithm(
    init=init,
    broadcast=broadcast,
    client=partial(_client, setup),
    server=server,
    model=model,
    masks=masked.masks_beside,
  )


def _client(
  setup: Setup,
  download: masked.Download,
  memory: Memory,
  data: ClientData,
  key: Key,
) -> tuple[masked.Upload, Memory, Metrics]:
  hyper, masks, number = download.hyper, download.masks, download.round

  def weights(params: Params, carry: Carry) -> Params:
    return _composed(params, masks, download.extra, hyper, number)

  arguments = setup.task, setup.local, download.rates, download.variables
  trained, _, metrics = train_client(LocalRule(weights=weights), *arguments, {}, data, key)
  params = trained["params"]

  def vote() -> Masks:
    model = {**trained, "params": weights(params, {})}
    gradients = trees.widened(adjusting.dense_gradient(setup, model, data, key))
    pairs = zip(trees.split_prunable(gradients)[0], masks, strict=True)
    outside = [jnp.where(mask, 0, g) for g, mask in pairs]
    (least, most), (stay, stays) = _budget(params, hyper), _budget(params, hyper, number)
    return choose(outside, [a - b for a, b in zip(least, stay, strict=True)], most - stays)

  is_asked = adjusting.is_due(hyper, number)
  votes = lax.cond(is_asked, vote, lambda: [jnp.zeros(mask.shape, bool) for mask in masks])
  # Who receives the votes knows what is outside the masks.
  beside = masked.Beside(is_asked, votes, [~mask for mask in masks])
  sent = _with_biases(params, masks, _zeros(params), _has_biases(hyper, number))
  upload, sizes = masked.send(setup, download, {**trained, "params": sent}, masks, data, beside)
  extra = weighed([one.astype(jnp.float32) for one in votes], upload.weight)
  return upload._replace(extra=extra), memory, metrics | sizes


def _readjusted(
  options: Options, state: masked.State, upload: masked.Upload, params: Params
) -> Masks:
  """Finds the masks after a round that readjusts them, of the server's new parameters."""
  hyper, number = state.hyper, state.round + 1
  worth = [powerprop(w, hyper.own.beta) for w in trees.split_prunable(trees.widened(params))[0]]
  if options.drops == "unmoved":
    behind = trees.widened(_background(state.extra, hyper, number + 1))
    worth = [w - b for w, b in zip(worth, trees.split_prunable(behind)[0], strict=True)]
  budgets = _budget(params, hyper), _budget(params, hyper, number)
  key = jax.random.fold_in(state.key, state.round)
  return _exchanged(worth, state.masks, upload.extra, *budgets, key)


def _grown(options: Options, state: masked.State, params: Params, masks: Masks) -> Params:
  """Starts what was not trained in a round, and is from now on; what is outside may be left."""
  hyper, number = state.hyper, state.round + 1
  background = _background(state.extra, hyper, number + 1)
  params = _with_biases(params, state.masks, background, _has_biases(hyper, number))
  params = _with_biases(params, masks, _zeros(params), _has_biases(hyper, number + 1))
  kernels, rebuild = trees.split_prunable(params)
  starts = [jnp.zeros_like(w) for w in kernels]
  if options.grows == "background":
    behind, _ = trees.split_prunable(background)
    starts = [powerprop_inverse(b, hyper.own.beta) for b in behind]
  triples = zip(kernels, state.masks, starts, strict=True)
  return rebuild([jnp.where(old, theta, start) for theta, old, start in triples])


def choose(scores: Sequence[jax.Array], least: Sequence[jax.Array], number: jax.Array) -> Masks:
  """Marks the largest of each layer, as many as it must have, and the largest of all the others.

  Args:
    scores: by prunable leaf, float32; their magnitudes count, and zeros are never marked.
    least: () int32 by leaf.
    number: () int32, how many are marked altogether.

  Example:
    >>> import jax.numpy as jnp
    >>> scores = jnp.array([9.0, -8.0, 7.0]), jnp.array([1.0, 0.5])
    >>> choose(scores, [jnp.int32(0), jnp.int32(1)], jnp.int32(3))
    [Array([ True,  True, False], dtype=bool), Array([ True, False], dtype=bool)]
  """
  musts = [largest_mask(score, count) for score, count in zip(scores, least, strict=True)]
  rests = [jnp.where(must, 0, score) for must, score in zip(musts, scores, strict=True)]
  more = largest_mask(
    jnp.concatenate([rest.reshape(-1) for rest in rests]), number - sum(map(count_one, musts))
  )
  ends = jnp.split(more, [sum(rest.size for rest in rests[: i + 1]) for i in range(len(rests) - 1)])
  return [must | end.reshape(must.shape) for must, end in zip(musts, ends, strict=True)]


def _exchanged(
  worth: Sequence[jax.Array],
  masks: Masks,
  votes: Sequence[jax.Array],
  whole: tuple[list[jax.Array], jax.Array],
  stay: tuple[list[jax.Array], jax.Array],
  key: Key,
) -> Masks:
  """Drops what is worth least, or less where votes are few, and grows what most votes are for."""
  inside = [jnp.where(mask, score, 0) for mask, score in zip(masks, worth, strict=True)]
  kept = choose(inside, *stay)
  keys = jax.random.split(key, len(masks))
  # A hair's breadth apart: votes are sums of clients' weights.
  ranks = [
    jnp.where(mask, 0, vote * (1 + positive_noise(one_key, vote.shape) / 1000))
    for mask, vote, one_key in zip(masks, votes, keys, strict=True)
  ]

  def lacking(chosen: Masks) -> tuple[list[jax.Array], jax.Array]:
    counts = [count_one(mask) for mask in chosen]
    return [n - count for n, count in zip(whole[0], counts, strict=True)], whole[1] - sum(counts)

  grown = choose(ranks, *lacking(kept))
  kept = [a | b for a, b in zip(kept, grown, strict=True)]
  back = [jnp.where(mask, 0, score) for mask, score in zip(kept, inside, strict=True)]
  return [a | b for a, b in zip(kept, choose(back, *lacking(kept)), strict=True)]


def _budget(
  params: Params, hyper: CommonHyper, number: jax.Array | None = None
) -> tuple[list[jax.Array], jax.Array]:
  """Counts the weights that each layer has at least, and those of the model.

  Args:
    params: of the model.
    hyper: of the run.
    number: of a round, without what a readjustment at its end drops.
  """
  stay = 1.0 if number is None else 1 - adjusting.drop_rate(hyper, number)
  sizes = [leaf.size for leaf in trees.split_prunable(params)[0]]
  shares = adjusting.densities_of(params, hyper) * hyper.own.floor * stay
  least = [num_kept(size, share) for size, share in zip(sizes, shares, strict=True)]
  return least, num_kept(sum(sizes), hyper.density * stay)


def _zeros(params: Params) -> Params:
  return jax.tree.map(jnp.zeros_like, params)


def _has_biases(hyper: CommonHyper, number: jax.Array | int) -> jax.Array:
  return jnp.asarray(number, jnp.float32) > hyper.own.biases_from


def _background(drawn: Params, hyper: CommonHyper, number: jax.Array) -> Params:
  """Makes what is outside the masks in a round; what belongs to no layer stays as it was drawn."""
  done = (number.astype(jnp.float32) - 1) / jnp.maximum(hyper.own.fade_until, 1)
  left = jnp.where(done < 1, jnp.maximum(1 - done, 0) ** hyper.own.fade_power, 0)
  left = jnp.where(hyper.own.fade_until > 0, left, 0)
  biases = set(_biases_of(drawn))

  def fade(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    is_layers = trees.is_prunable(path, leaf) or trees.path_name(path) in biases
    return (left * leaf).astype(leaf.dtype) if is_layers else leaf

  return jax.tree_util.tree_map_with_path(fade, drawn)


def _composed(
  params: Params, masks: Masks, drawn: Params, hyper: CommonHyper, number: jax.Array
) -> Params:
  """Makes the weights of a round: powers inside the masks, and the background outside."""
  background = _background(drawn, hyper, number)
  kernels, _ = trees.split_prunable(params)
  behind, _ = trees.split_prunable(background)
  _, rebuild = trees.split_prunable(
    _with_biases(params, masks, background, _has_biases(hyper, number))
  )
  triples = zip(kernels, masks, behind, strict=True)
  return rebuild([jnp.where(mask, powerprop(t, hyper.own.beta), b) for t, mask, b in triples])


def _with_biases(params: Params, masks: Masks, others: Params, is_trained: jax.Array) -> Params:
  """Replaces the biases and scales that are not trained, such as those of units without a weight.

  Args:
    params: with them.
    masks: of the kernels.
    others: like `params`, what they are replaced by.
    is_trained: () bool, whether the others are.
  """
  units = dict(zip(_biases_of(params), masks, strict=True))

  def replaced(path: tuple[Any, ...], leaf: jax.Array, other: jax.Array) -> jax.Array:
    if leaf.ndim > 1:
      return leaf
    mask = units.get(trees.path_name(path))
    if mask is None or leaf.shape != mask.shape[-1:]:
      return jnp.where(is_trained, leaf, other)
    has_weight = jnp.any(mask, axis=tuple(range(mask.ndim - 1)))
    return jnp.where(has_weight & is_trained, leaf, other)

  return jax.tree_util.tree_map_with_path(replaced, params, others)


def _biases_of(params: Params) -> list[str]:
  """Names the biases that the layers of the kernels may have."""
  return [f"{layer}/bias" if layer else "bias" for layer in trees.layer_names(params)]


def _downlink(setup: Setup, state: masked.State, row: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Counts the download of round 1: without what clients draw themselves, or all that is given."""
  if masked.DOWNLINK not in row:
    return {}
  if setup.task.is_given:
    # Without a background that is what is in the masks, and norms, which are not trained yet.
    params, hyper, given = state.variables["params"], state.hyper, state.extra
    background = _background(given, hyper, state.round + 1)
    few = _with_biases(params, state.masks, background, _has_biases(hyper, state.round + 1))
    needed = jax.tree.map(partial(jnp.where, hyper.own.fade_until > 0), given, few)
    first: Variables = {**state.variables, "params": needed}
  else:
    first = masked.marked(state.variables, [jnp.zeros_like(mask) for mask in state.masks])
  num_bytes = setup.measures.step(first, first)[masked.DOWNLINK]
  return {masked.DOWNLINK: jnp.where(state.updates == 0, num_bytes, row[masked.DOWNLINK])}


def _layer_shares(
  options: Any, hyper: Any, name: str, is_first: bool, density: float, target: float
) -> LayerShares:
  """Counts the rounds after the background's end as those with it."""
  if hyper.fade_until == 0:
    return LayerShares(density, density, density)
  return LayerShares(1.0, 1.0, density)


def _remark(own: Any, rounds: int) -> tuple[str, str] | None:
  if own.fade_until > rounds:
    return "fade_until", f"the run ends before the background, which takes at most {rounds}"
  return adjusting.remark(own, rounds)


METHOD = Method(
  "fedfade",
  "FedFade",
  fedfade,
  Hyper,
  Options,
  reads=("density",),
  layer_shares=_layer_shares,
  remark=_remark,
)
