"""FLASH: a few clients find how sensitive each layer is, then all train inside one mask.

Forms, by their names in the paper:

- spdst: in warm-up rounds clients train from random masks, exchange weights after every epoch, and
  send the masks alone; then a new model is trained inside one random mask of the layer densities
  found.
- jmwst: the same warm-up; later, every `update_every` rounds, clients exchange weights again, and
  the server takes each layer's largest weights at the mean of the clients' densities.
- pdst: inside one random mask with the same density in each layer.
- nst: each client prunes what it receives and exchanges weights by itself.
- magnitude, as SparsyFed's authors ran it: round 1 is dense, then the server prunes once.

With `prunes=convolutions`, as in the released code, dense layers stay dense, and the density is
that of the convolutions. A run that starts from given weights has masks of the largest where they
are random otherwise.

Babakniya et al., Revisiting sparsity hunting in federated learning: Why does sparsity consensus
matter?, TMLR 2023, arXiv 2208.13092, with its baselines.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.flash(sparsity=0.9, form="jmwst").options.form
  'jmwst'
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.averaging import scaled
from sparsyfed_jax.fed.client import LocalTraining
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Choice, Knob, Method, check_options
from sparsyfed_jax.fed.moving import TRAINING, moving
from sparsyfed_jax.fed.pruning import (
  Masks,
  apply_masks,
  first_masks,
  largest_kept,
  mask_densities,
  overall_density,
)
from sparsyfed_jax.fed.rule import LocalRule, train_client
from sparsyfed_jax.fed.task import Task
from sparsyfed_jax.metrics.flops import shares_inside_masks
from sparsyfed_jax.ops import floor_of_share, largest_mask, topk_mask
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params, Variables, tally
from sparsyfed_jax.wire.size import payload_bytes

_START = 2**31 - 1  # no epoch has this number, whose keys also come from the client's
FORMS = ("spdst", "jmwst", "pdst", "nst", "magnitude")
PRUNED = ("all", "convolutions")
AGGREGATIONS = ("mean", "masked_mean")


class Hyper(NamedTuple):
  """The numbers of FLASH."""

  warmup_rounds: Annotated[
    int, Knob("rounds in which clients look for layer densities (spdst, jmwst)", low=1)
  ] = 1
  warmup_epochs: Annotated[int, Knob("local epochs of those rounds", low=1)] = 10
  update_every: Annotated[int, Knob("rounds between two masks (jmwst)", low=1)] = 1
  drop_rate: Annotated[
    float,
    Knob(
      "share of its weights that a client exchanges, at the start of a fall to 0 over the local"
      " epochs",
      low=0,
      high=1,
    ),
  ] = 0.25


class Options(NamedTuple):
  """The forms of FLASH. Rounds in which nobody is left are not counted by any of them."""

  # "spdst": warm-up rounds, whose clients train from random masks and only send the masks they end
  # with; then a new model, inside one random mask of the layer densities found.
  # "jmwst": the same warm-up; later, every so many rounds, clients exchange weights again, and the
  # server takes each layer's largest weights at the mean of the clients' densities.
  # "pdst": a random mask with the same density in each layer, from the start.
  # "nst": each client prunes what it receives and exchanges weights by itself; the server has the
  # union of their masks.
  # "magnitude": round 1 is dense; its clients prune globally, the server keeps each layer's largest
  # weights at the mean of their densities, and the mask stays.
  form: Annotated[
    str,
    Choice(
      "spdst, jmwst, pdst, nst (the paper's), or magnitude (as SparsyFed's authors ran it)", FORMS
    ),
  ] = "spdst"
  # "all": of each prunable layer; "convolutions": dense layers stay dense, as in the release.
  prunes: Annotated[
    str, Choice("all prunable layers, or convolutions alone (as the release)", PRUNED)
  ] = "all"
  aggregation: Annotated[
    str, Choice("mean over all clients, or masked_mean over those that have a weight", AGGREGATIONS)
  ] = "mean"


DEFAULT = Options()


def flash(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes FLASH, with any server optimizer."""
  check_options(options)
  require_prunable("flash", setup.task)
  form = _FORMS[options.form]
  scope = _Scope(setup, _is_pruned(setup.task, options))

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> masked.State:
    mask_key, server_key = jax.random.split(key)
    masks = form.first(scope, variables["params"], hyper.density, mask_key)
    state = masked.init(setup, variables, masks, hyper, server_key)
    nothing = jnp.zeros(len(masks), jnp.float32), jnp.float32(0)
    return state._replace(extra=nothing if form.warms_up else ())

  def client(
    download: masked.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[masked.Upload, Memory, Metrics]:
    local, rule = form.local(scope, download)
    masks = form.start(scope, download, data, jax.random.fold_in(key, _START))
    received = {
      **download.variables,
      "params": apply_masks(download.variables["params"], masks),
    }
    trained, carry, metrics = train_client(
      rule, setup.task, local, download.rates, received, {"masks": masks}, data, key
    )
    masks = form.end(scope, download, trained["params"], carry["masks"], data)
    upload, sent = masked.send(setup, download, trained, masks, data)
    if form.warms_up and masked.UPLINK in sent:
      masks_alone = tally(payload_bytes(masks, download.masks), data.size > 0)
      sent = masked.sending_instead(sent, _is_warmup(download.hyper, download.update), masks_alone)
    return upload, memory, metrics | sent

  def server(
    state: masked.State, upload: masked.Upload
  ) -> tuple[masked.State, dict[str, jax.Array]]:
    target = masked.mean(upload, state, of_masks=options.aggregation == "masked_mean")
    new = masked.advance(setup, state, target)
    new = form.follow(scope, state, upload, new)
    return masked.finish(setup, state, new, upload.weight)

  return Algorithm(
    init=init,
    broadcast=partial(masked.broadcast, setup),
    client=client,
    server=server,
    model=lambda state: state.variables,
    masks=masked.masks_beside,
  )


# The pieces of which the forms are made, and then the forms.


class _Scope(NamedTuple):
  """What all pieces know."""

  setup: Setup
  is_pruned: tuple[bool, ...]  # of each prunable leaf; the masks of the others are full

  def densities(self, share: jax.Array | float) -> jax.Array:
    """Makes the densities of the layers, of one or of several; (num_layers,) float32."""
    return jnp.where(jnp.array(self.is_pruned), share, 1.0)

  def scale_of(self, found: jax.Array, density: jax.Array, params: Params) -> jax.Array:
    """Divides a density by that which layers that are pruned have together; () float32."""
    return density / overall_density(found, params, self.is_pruned)

  def full_elsewhere(self, masks: Masks) -> Masks:
    """Makes the masks of what is not pruned full."""
    pairs = zip(masks, self.is_pruned, strict=True)
    return [mask if one else jnp.ones_like(mask) for mask, one in pairs]


def _is_pruned(task: Task, options: Options) -> tuple[bool, ...]:
  """Tells of each prunable leaf whether it is pruned."""
  names = task.kernels
  if names is None:  # of a task made by hand
    names = tuple(trees.layer_names(jax.eval_shape(task.init, jax.random.key(0))["params"]))
  if options.prunes == "all":
    return (True,) * len(names)
  convolutions = {one.path for one in task.products if one.kind == "conv_general_dilated"}
  if convolutions.isdisjoint(names):
    raise ValueError(
      "prunes='convolutions': the model has no convolution that can be pruned; must be all"
    )
  return tuple(name in convolutions for name in names)


def _is_warmup(hyper: CommonHyper, number: jax.Array) -> jax.Array:
  return number.astype(jnp.float32) <= hyper.own.warmup_rounds


def _is_exchange(hyper: CommonHyper, number: jax.Array) -> jax.Array:
  """Whether clients of "jmwst" change their masks in a round."""
  since = number.astype(jnp.float32) - hyper.own.warmup_rounds - 1
  return (since < 0) | (since % hyper.own.update_every == 0)


def _first_random(scope: _Scope, params: Params, density: jax.Array, key: Key) -> Masks:
  return first_masks(params, scope.densities(density), key, scope.setup.task.is_given)


def _first_dense(scope: _Scope, params: Params, density: jax.Array, key: Key) -> Masks:
  kernels, _ = trees.split_prunable(params)
  return [jnp.ones(leaf.shape, bool) for leaf in kernels]


def _votes(download: masked.Download) -> list[jax.Array]:
  return [mask.astype(jnp.float32) for mask in download.masks]


def _start_inside(
  scope: _Scope,
  download: masked.Download,
  data: ClientData,
  key: Key,
  is_dense: jax.Array | bool = False,
) -> Masks:
  """The mask received; of it the largest part for a client of lower density."""
  if not scope.setup.is_heterogeneous:
    return download.masks
  scale = jnp.where(is_dense, 1.0, data.density_scale)
  densities = mask_densities(download.masks) * scope.densities(scale)
  smaller = largest_kept(download.variables["params"], _votes(download), densities, key)
  pairs = zip(download.masks, smaller, strict=True)
  return [jnp.where(scale < 1, part, whole) for whole, part in pairs]


def _start_dense_once(
  scope: _Scope, download: masked.Download, data: ClientData, key: Key
) -> Masks:
  return _start_inside(scope, download, data, key, download.update == 1)


def _start_pruned(scope: _Scope, download: masked.Download, data: ClientData, key: Key) -> Masks:
  """The largest weights of what was received, at the client's own density."""
  densities = scope.densities(scaled(scope.setup, download.hyper.density, data))
  return largest_kept(download.variables["params"], _votes(download), densities, key)


def _local_inside(scope: _Scope, download: masked.Download) -> tuple[LocalTraining, LocalRule]:
  return scope.setup.local, TRAINING


def _local_moving(scope: _Scope, download: masked.Download) -> tuple[LocalTraining, LocalRule]:
  local, rate = scope.setup.local, download.hyper.own.drop_rate
  return local, moving(local.epochs, jnp.bool_(True), rate, scope.is_pruned)


def _local_warm(
  is_moving: Callable[[CommonHyper, jax.Array], jax.Array],
  scope: _Scope,
  download: masked.Download,
) -> tuple[LocalTraining, LocalRule]:
  """Longer in the warm-up; masks change in the rounds that `is_moving` tells."""
  hyper, number, local = download.hyper, download.update, scope.setup.local
  epochs = jnp.where(_is_warmup(hyper, number), hyper.own.warmup_epochs, local.epochs)
  local = local._replace(epochs=epochs.astype(jnp.int32))
  rate = hyper.own.drop_rate
  return local, moving(local.epochs, is_moving(hyper, number), rate, scope.is_pruned)


def _end_as_is(
  scope: _Scope, download: masked.Download, trained: Params, masks: Masks, data: ClientData
) -> Masks:
  return masks


def _end_pruned_once(
  scope: _Scope, download: masked.Download, trained: Params, masks: Masks, data: ClientData
) -> Masks:
  share = scaled(scope.setup, download.hyper.density, data)

  def prune() -> Masks:
    kernels, _ = trees.split_prunable(trees.widened(trained))
    pairs = zip(kernels, scope.is_pruned, strict=True)
    found = iter(topk_mask([leaf for leaf, one in pairs if one], share))
    pairs = zip(masks, scope.is_pruned, strict=True)
    return [next(found) if one else mask for mask, one in pairs]

  return lax.cond(download.update == 1, prune, lambda: masks)


def _follow_inside(
  scope: _Scope, state: masked.State, upload: masked.Upload, new: masked.State
) -> masked.State:
  return new


def _follow_union(
  scope: _Scope, state: masked.State, upload: masked.Upload, new: masked.State
) -> masked.State:
  union = [kept > 0 for kept in upload.kept]
  return masked.with_masks(new, masked.unless_nobody(upload, union, state.masks))


def _follow_pruned_once(
  scope: _Scope, state: masked.State, upload: masked.Upload, new: masked.State
) -> masked.State:
  found = _mean_densities(upload, state)

  def prune() -> masked.State:
    masks = _floor_masks(new.variables["params"], found)
    return masked.with_masks(new, scope.full_elsewhere(masks))

  return lax.cond(state.updates + 1 == 1, prune, lambda: new)


def _follow_warm_up(
  scope: _Scope, state: masked.State, upload: masked.Upload, new: masked.State
) -> masked.State:
  is_warmup = _is_warmup(state.hyper, state.updates + 1)
  found = _mean_densities(upload, state)
  return lax.cond(is_warmup, lambda: _warm_up(scope, state, upload, found), lambda: new)


def _follow_votes(
  scope: _Scope, state: masked.State, upload: masked.Upload, new: masked.State
) -> masked.State:
  """Renews the mask of each layer at the mean of the clients' densities."""
  hyper, number = state.hyper, state.updates + 1
  params, found = new.variables["params"], _mean_densities(upload, state)
  # Not more than the target, but fewer where the clients ended with fewer.
  fair = scope.densities(found * jnp.minimum(1.0, scope.scale_of(found, hyper.density, params)))

  def renew() -> Masks:
    masks = largest_kept(params, upload.kept, fair, jax.random.fold_in(state.key, number))
    return masked.unless_nobody(upload, masks, state.masks)

  masks = lax.cond(_is_exchange(hyper, number), renew, lambda: state.masks)
  return _follow_warm_up(scope, state, upload, masked.with_masks(new, masks))


def _floor_masks(params: Params, densities: jax.Array) -> Masks:
  """Marks each layer's largest weights, by the floor of its share, as SparsyFed's authors did."""
  kernels, _ = trees.split_prunable(params)
  pairs = zip(kernels, densities, strict=True)
  return [largest_mask(leaf, floor_of_share(leaf.size, share)) for leaf, share in pairs]


def _mean_densities(upload: masked.Upload, state: masked.State) -> jax.Array:
  """The mean density of each layer over the clients; the server's own where there is nobody."""
  weight = jnp.where(upload.weight == 0, 1.0, upload.weight)
  found = jnp.stack([jnp.mean(kept) / weight for kept in upload.kept])
  return jnp.where(upload.weight == 0, mask_densities(state.masks), found)


def _warm_up(
  scope: _Scope, state: masked.State, upload: masked.Upload, found: jax.Array
) -> masked.State:
  """Remembers the layer densities found so far; after the last round of it, starts anew."""
  hyper, number = state.hyper, state.updates + 1
  weight = jnp.maximum(upload.weight, 1e-6)  # a round of nobody is dropped, and not NaN either
  total, weights = state.extra
  total, weights = total + weight * found, weights + weight
  on = masked.count_round(state)._replace(extra=(total, weights))
  kernels_key, mask_key = jax.random.split(jax.random.fold_in(state.key, number))

  def start_anew() -> masked.State:
    task = scope.setup.task
    variables = dict(task.init(kernels_key))
    mean = total / weights
    params = variables["params"]
    fair = scope.densities(jnp.minimum(1.0, mean * scope.scale_of(mean, hyper.density, params)))
    masks = first_masks(params, fair, mask_key, task.is_given)
    return masked.with_masks(on._replace(variables=variables), masks)

  is_last = number.astype(jnp.float32) == hyper.own.warmup_rounds
  return lax.cond(is_last, start_anew, lambda: on)


class _Form(NamedTuple):
  """What a form does where forms differ; the defaults are those of one fixed random mask."""

  first: Callable[[_Scope, Params, jax.Array, Key], Masks] = (
    _first_random  # the server's first mask
  )
  start: Callable[..., Masks] = _start_inside  # the mask in which a client begins
  local: Callable[..., tuple[LocalTraining, LocalRule]] = _local_inside
  end: Callable[..., Masks] = _end_as_is  # the mask that a client sends
  follow: Callable[..., masked.State] = _follow_inside  # what the server does about masks
  warms_up: bool = False


_FORMS = {
  "spdst": _Form(local=partial(_local_warm, _is_warmup), follow=_follow_warm_up, warms_up=True),
  "jmwst": _Form(local=partial(_local_warm, _is_exchange), follow=_follow_votes, warms_up=True),
  "pdst": _Form(),
  "nst": _Form(start=_start_pruned, local=_local_moving, follow=_follow_union),
  "magnitude": _Form(
    _first_dense, _start_dense_once, end=_end_pruned_once, follow=_follow_pruned_once
  ),
}

METHOD = Method(
  "flash",
  "FLASH",
  flash,
  Hyper,
  Options,
  reads=("density",),
  takes_densities=True,
  # Clients keep the number of their weights, but may move them between layers after an epoch.
  layer_shares=shares_inside_masks,
)
