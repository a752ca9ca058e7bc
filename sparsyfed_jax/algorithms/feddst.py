"""FedDST: sparse training inside masks that clients readjust and the server agrees upon.

Layers have Erdős–Rényi–kernel densities. Every `update_every` rounds t, until `update_until`, each
client ends its training with a readjustment: of every layer it drops the share

    drop_rate / 2 * (1 + cos(pi * t / update_until))

of smallest weights, and grows as many where the gradient of one batch is largest. The server takes
each weight's mean over the clients that have it and keeps the largest, by the layer's density.
With the densities of the `release` a layer's sparsity is in proportion to 1 minus the quotient to
which its density is in proportion by default: at 95 % a ResNet-18's first convolution has a density
of 0.089 in place of 1, and its last one 0.050 in place of 0.028.

Bibikar et al., Federated dynamic sparse training, AAAI 2022, arXiv 2112.09824.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.feddst(sparsity=0.8, update_every=5).hyper.update_every
  5
"""

from functools import partial
from typing import Annotated, NamedTuple

import jax
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed import adjusting, masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.method import Choice, Method, check_options
from sparsyfed_jax.fed.pruning import Masks, largest_kept
from sparsyfed_jax.fed.rule import train_client
from sparsyfed_jax.metrics.flops import shares_inside_masks
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params


class Hyper(NamedTuple):
  """The numbers of FedDST."""

  update_every: adjusting.UpdateEvery = 10
  update_until: adjusting.UpdateUntil = None
  drop_rate: adjusting.DropRate = 0.5


class Options(NamedTuple):
  """The forms of FedDST."""

  densities: Annotated[
    str,
    Choice(
      "of layers: erk (RigL's, scaled densities) or release (FedDST's code, scaled sparsities)",
      ("erk", "release"),
    ),
  ] = "erk"


DEFAULT = Options()


def feddst(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes FedDST, with any server optimizer."""
  check_options(options)
  require_prunable("feddst", setup.task)
  of_sparsities = options.densities == "release"

  def client(
    download: masked.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[masked.Upload, Memory, Metrics]:
    hyper, masks = download.hyper, download.masks
    arguments = setup.task, setup.local, download.rates, download.variables
    trained, _, metrics = train_client(masked.training(masks), *arguments, {}, data, key)

    def readjust() -> tuple[Params, Masks]:
      gradient = adjusting.dense_gradient(setup, trained, data, key)
      scores, _ = trees.split_prunable(gradient)
      rate = adjusting.drop_rate(hyper, download.round)
      densities = adjusting.densities_of(gradient, hyper, of_sparsities)
      return adjusting.exchange(trained["params"], masks, scores, densities, rate)

    def keep() -> tuple[Params, Masks]:
      return trained["params"], masks

    params, masks = lax.cond(adjusting.is_due(hyper, download.round), readjust, keep)
    upload, exchange = masked.send(setup, download, {**trained, "params": params}, masks, data)
    return upload, memory, metrics | exchange

  def server(
    state: masked.State, upload: masked.Upload
  ) -> tuple[masked.State, dict[str, jax.Array]]:
    new = masked.advance(setup, state, masked.mean(upload, state, of_masks=True))
    params, key = new.variables["params"], jax.random.fold_in(state.key, state.round)
    densities = adjusting.densities_of(params, state.hyper, of_sparsities)
    pruned = largest_kept(params, upload.kept, densities, key)
    masks = masked.unless_nobody(upload, pruned, state.masks)
    return masked.finish(setup, state, masked.with_masks(new, masks), upload.weight)

  return Algorithm(
    init=partial(adjusting.init, setup, of_sparsities=of_sparsities),
    broadcast=partial(masked.broadcast, setup),
    client=client,
    server=server,
    model=lambda state: state.variables,
    masks=masked.masks_beside,
  )


# Without the one dense gradient of a readjustment.
METHOD = Method(
  "feddst",
  "FedDST",
  feddst,
  Hyper,
  Options,
  reads=("density",),
  layer_shares=shares_inside_masks,
  remark=adjusting.remark,
)
