"""Masks of the largest saliency, which clients find in round 1 in place of training.

Each sends `|gradient * weight|` of every prunable parameter by one batch, and the server marks the
largest of the mean, over the whole model. From round 2 on they train inside the mask. It is SNIP
(Lee et al., ICLR 2019, arXiv 1810.02340) over a federation.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.data.batches import take_batch
from sparsyfed_jax.data.shuffle import shuffle
from sparsyfed_jax.fed import masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup
from sparsyfed_jax.fed.client import train_metrics
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.rule import train_client
from sparsyfed_jax.fed.task import plain_layers
from sparsyfed_jax.ops import topk_mask
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params, Variables


def by_saliency(setup: Setup) -> Algorithm:
  """Makes FedAvg inside a mask of the largest saliency, with any server optimizer."""
  return Algorithm(
    init=partial(_init, setup),
    broadcast=partial(masked.broadcast, setup),
    client=partial(_client, setup),
    server=partial(_server, setup),
    model=lambda state: state.variables,
    masks=masked.masks_beside,
  )


def _init(setup: Setup, variables: Variables, hyper: Hyper, key: Key) -> masked.State:
  _, server_key = jax.random.split(key)
  kernels, _ = trees.split_prunable(variables["params"])
  masks = [jnp.ones(leaf.shape, bool) for leaf in kernels]
  return masked.init(setup, variables, masks, hyper, server_key)


def _client(
  setup: Setup, download: masked.Download, memory: Memory, data: ClientData, key: Key
) -> tuple[masked.Upload, Memory, Metrics]:
  received = download.variables

  def learn() -> tuple[Variables, Metrics]:
    rule, arguments = masked.training(download.masks), (setup.task, setup.local, download.rates)
    trained, _, metrics = train_client(rule, *arguments, received, {}, data, key)
    return dict(trained), metrics

  def score() -> tuple[Variables, Metrics]:
    return _saliency(setup, received, data, key)

  is_scoring = download.update == 1
  sent, metrics = lax.cond(is_scoring, score, learn)
  upload, exchange = masked.send(setup, download, sent, download.masks, data)
  if masked.UPLINK in exchange:
    scores_alone = setup.measures.exchange(_scores(received), _scores(sent), data.size)
    exchange = masked.sending_instead(exchange, is_scoring, scores_alone[masked.UPLINK])
  return upload, memory, metrics | exchange


def _scores(variables: Variables) -> Variables:
  return {"scores": trees.split_prunable(variables["params"])[0]}


def _saliency(
  setup: Setup, variables: Variables, data: ClientData, key: Key
) -> tuple[Variables, Metrics]:
  """Puts `|gradient * weight|` of one batch in the place of each prunable parameter."""
  batch = take_batch(shuffle(key, data), jnp.int32(0), setup.local.batch_size)

  def loss(params: Params) -> Any:
    value, (_, metrics) = setup.task.loss({**variables, "params": params}, batch, plain_layers, key)
    return value, metrics

  gradient, metrics = jax.grad(loss, has_aux=True)(variables["params"])
  saliency = trees.map_prunable(
    lambda w, g: jnp.abs(w * g), *map(trees.widened, (variables["params"], gradient))
  )
  saliency = trees.cast_like(saliency, variables["params"])
  return {**variables, "params": saliency}, train_metrics(metrics)


def _server(
  setup: Setup, state: masked.State, upload: masked.Upload
) -> tuple[masked.State, dict[str, jax.Array]]:
  target = masked.mean(upload, state, of_masks=False)

  def choose() -> masked.State:
    scores, _ = trees.split_prunable(target["params"])
    masks = topk_mask(scores, state.hyper.density)
    return masked.with_masks(masked.count_round(state), masks)

  new = lax.cond(state.updates == 0, choose, lambda: masked.advance(setup, state, target))
  return masked.finish(setup, state, new, upload.weight)
