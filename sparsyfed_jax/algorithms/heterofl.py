"""HeteroFL: weak clients train the first channels of each layer.

A client of width r has the first ceil(r n) of the n channels of each hidden layer, all inputs of
the first layer, and all outputs of the last. Biases, batch norm and its statistics follow their
channels. It trains this narrower model as if there were no other. The server takes each
coordinate's mean over the clients that have it, weighted as usual; what nobody has stays.

Widths are 1, 1/2, 1/4 and so on, `levels` of them, of which each client draws one every round, all
equally likely. With `--client_sparsities` they are fixed: a client's share of all channels is (1 -
its own) / (1 - `--sparsity`), so with `--sparsity=0` its own is the share that it lacks.

With `outputs=divided` those of hidden layers are divided by the width in training, as in the paper,
where batch norm follows; without it they grow with the depth, and training at small widths needs
low rates or diverges. With `labels=own`, which is the paper's too, the logits of classes that a
client lacks are 0 in its loss, and it does not have their weights. The released code weighs clients
alike (`--client_weighting=uniform`).

The paper's batch norm keeps no running statistics, but finds them after training. Here they are
means over the clients that have a channel. Group and layer norm mix channels and are refused, and
so are attention and recurrence; the release narrows transformers by head.

Bytes are those of the narrower models, whose places the width tells, and FLOPs are their share.
Downloads differ by client: `downlink_bytes` is the mean over those that reported.

Diao, Ding, Tarokh, HeteroFL: Computation and communication efficient federated learning for
heterogeneous clients, ICLR 2021, arXiv 2010.01264.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.heterofl(levels=3).hyper.levels
  3
"""

from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging, masked
from sparsyfed_jax.fed import server as server_step
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.channels import Place, is_place, places_of
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Choice, Knob, Method, check_options
from sparsyfed_jax.fed.rule import Carry, LocalRule, train_client
from sparsyfed_jax.metrics.flops import shares_inside_masks
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params, Variables
from sparsyfed_jax.wire.rounding import round_to_wire
from sparsyfed_jax.wire.size import payload_bytes

_WIDTH = 2**31 - 1  # no epoch has this number, whose keys also come from the client's


class Hyper(NamedTuple):
  """The numbers of HeteroFL."""

  levels: Annotated[
    int, Knob("widths 1, 1/2, 1/4, ... of which clients draw one every round", low=1, high=16)
  ] = 5


class Options(NamedTuple):
  """The forms of HeteroFL."""

  outputs: Annotated[
    str,
    Choice("of hidden layers in training: plain, or divided by the width", ("plain", "divided")),
  ] = "plain"
  labels: Annotated[
    str,
    Choice("all classes, or the client's own, of which alone it trains logits", ("all", "own")),
  ] = "all"


class Upload(NamedTuple):
  """The upload of a client, multiplied by its weight."""

  variables: Variables  # 0 where the client has nothing
  kept: Variables  # the weight where it has a coordinate, 0 elsewhere; float32
  weight: jax.Array  # () float32
  received: jax.Array  # (2,) float32, bytes received and 1; not multiplied


DEFAULT = Options()


def heterofl(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes HeteroFL, with any server optimizer."""
  check_options(options)
  require_prunable("heterofl", setup.task)
  places = places_of("heterofl", setup.task)

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> averaging.State:
    return averaging.init(setup, variables, hyper)

  def client(
    download: averaging.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[Upload, Memory, Metrics]:
    width = _width(setup, download.hyper, data, key)
    has_label = _has_label(places, data) if options.labels == "own" else None
    masks = _map(lambda place: place.mask(width, has_label), places)
    scale = 1 / width if options.outputs == "divided" else jnp.float32(1)
    rule = LocalRule(weights=partial(_narrow, places["params"], masks["params"], scale))
    received = _apply(masks, download.variables)
    trained, _, metrics = train_client(
      rule, setup.task, setup.local, download.rates, received, {}, data, key
    )
    sent = round_to_wire(_apply(masks, trained), setup.wire_dtype)
    weight = setup.client_weight(data.size)
    kept = jax.tree.map(lambda mask: weight * mask.astype(jnp.float32), masks)
    exchange, num_bytes = _measure(setup, masks, received, sent, data)
    upload = Upload(server_step.weighed(sent, weight), kept, weight, num_bytes)
    return upload, memory, metrics | exchange

  def server(
    state: averaging.State, upload: Upload
  ) -> tuple[averaging.State, dict[str, jax.Array]]:
    new, row = averaging.follow(setup, state, _mean(upload, state.variables), upload.weight)
    measured = setup.measures.step(state.variables, state.variables)
    if masked.DOWNLINK in measured:
      num_bytes, clients = upload.received
      whole = measured[masked.DOWNLINK].astype(jnp.float32)
      mean = num_bytes / jnp.maximum(clients, 1)
      row[masked.DOWNLINK] = jnp.where(clients > 0, mean, whole)
      row["received_density"] = _densities(upload)
    return new, row

  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=client,
    server=server,
    model=lambda state: state.variables,
    masks=_masks,
  )


def _width(setup: Setup, hyper: CommonHyper, data: ClientData, key: Key) -> jax.Array:
  if setup.is_heterogeneous:
    return jnp.minimum(data.density_scale, 1.0)
  level = jnp.floor(jax.random.uniform(jax.random.fold_in(key, _WIDTH)) * hyper.own.levels)
  return jnp.exp2(-level)


def _has_label(places: Variables, data: ClientData) -> jax.Array:
  """Marks the classes that a client has; (num_classes,) bool."""
  if data.y.ndim != 1 or not jnp.issubdtype(data.y.dtype, jnp.integer):
    raise ValueError("labels='own': the task predicts no classes; must be all")
  flat = jax.tree.leaves(places, is_leaf=is_place)
  num_classes = next(one.shape[one.labels] for one in flat if one.labels is not None)
  is_own = jnp.arange(data.indices.shape[0]) < data.size
  return jnp.zeros(num_classes, bool).at[data.y[data.indices]].max(is_own, mode="drop")


def _map(fn: Any, places: Variables, *others: Any) -> Any:
  return jax.tree.map(fn, places, *others, is_leaf=is_place)


def _narrow(
  places: Params, masks: Params, scale: jax.Array, params: Params, carry: Carry
) -> Params:
  """Makes the weights of the narrower model, whose hidden layers' outputs are scaled."""

  def narrow(place: Place, mask: jax.Array, leaf: jax.Array) -> jax.Array:
    inside = jnp.where(mask, leaf, 0)
    return inside * scale.astype(leaf.dtype) if place.is_hidden else inside

  return _map(narrow, places, masks, params)


def _apply(masks: Variables, variables: Variables) -> Variables:
  return jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, dict(variables))


def _measure(
  setup: Setup, masks: Variables, received: Variables, sent: Variables, data: ClientData
) -> tuple[Metrics, jax.Array]:
  """Measures an exchange whose places both sides know; also the bytes received, and 1."""

  def mark(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    one = jnp.ones((), leaf.dtype)
    if not setup.measures.needs_values:
      return jnp.where(mask, one, 0)
    return jnp.where(mask, jnp.where(leaf == 0, one, leaf), 0)

  before, after = (jax.tree.map(mark, masks, model) for model in (received, sent))
  metrics = setup.measures.exchange(before, after, data.size)
  if masked.UPLINK not in metrics:
    return metrics, jnp.zeros(2)
  is_there = (data.size > 0).astype(jnp.float32)
  num_bytes = payload_bytes(before, before, setup.wire_dtype).astype(jnp.float32)
  return metrics, is_there * jnp.stack([num_bytes, jnp.float32(1)])


def _mean(upload: Upload, variables: Variables) -> Variables:
  """Averages each coordinate over those that have it; what nobody has stays."""

  def mean(total: jax.Array, kept: jax.Array, old: jax.Array) -> jax.Array:
    has = kept > 0
    return jnp.where(has, total / jnp.where(has, kept, 1.0), old.astype(total.dtype))

  return jax.tree.map(mean, upload.variables, upload.kept, dict(variables))


def _densities(upload: Upload) -> jax.Array:
  """Computes the share of each layer that clients have, as a weighted mean; (num_layers,)."""
  kernels, _ = trees.split_prunable(upload.kept["params"])
  weight = jnp.where(upload.weight == 0, 1.0, upload.weight)
  found = jnp.stack([jnp.mean(leaf) / weight for leaf in kernels])
  return jnp.where(upload.weight == 0, 1.0, found)


def _masks(sent: averaging.Download | Upload) -> list[jax.Array]:
  if isinstance(sent, Upload):
    return [kept > 0 for kept in trees.split_prunable(sent.kept["params"])[0]]
  kernels, _ = trees.split_prunable(sent.variables["params"])
  return [jnp.ones(leaf.shape, bool) for leaf in kernels]


METHOD = Method(
  "heterofl",
  "HeteroFL",
  heterofl,
  Hyper,
  Options,
  takes_densities=True,
  layer_shares=shares_inside_masks,
  are_alike=False,
)
