"""Fixed masks: FedAvg inside a mask that is chosen once and never changes.

The mask is random, with the same density in each layer; `erk`, random at Erdős–Rényi–kernel
densities; or of largest `saliency`: in round 1 clients do not train, but send `|gradient * weight|`
of one batch, and the entries whose mean is largest over the whole model are trained from then on.
Every download has the mask beside its weights, as those of other methods. In a run that starts from
given weights, masks that would be random are of the largest of them.

Saliency is SNIP (Lee et al., ICLR 2019, arXiv 1810.02340); `ssfl` is it with a mask sent once.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.static(sparsity=0.9, mask="erk").options.mask
  'erk'
"""

from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed import masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.method import Choice, Method, check_options
from sparsyfed_jax.fed.pruning import first_masks
from sparsyfed_jax.fed.rule import train_client
from sparsyfed_jax.fed.saliency import by_saliency
from sparsyfed_jax.metrics.flops import shares_inside_masks
from sparsyfed_jax.ops import erk_densities
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Variables

MASKS = ("random", "erk", "saliency")


class Options(NamedTuple):
  """The forms of fixed masks."""

  # "random": the same density in each layer; "erk": random, at Erdős–Rényi–kernel densities;
  # "saliency": in round 1 clients do not train, but send |gradient * weight| of a batch, and the
  # largest of the mean are trained from then on.
  mask: Annotated[
    str, Choice("of the mask: random, erk (random, small layers denser) or saliency (SNIP)", MASKS)
  ] = "random"


DEFAULT = Options()


def static(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes FedAvg inside a fixed mask, with any server optimizer."""
  check_options(options)
  require_prunable("static", setup.task)
  if options.mask == "saliency":
    return by_saliency(setup)

  def init(variables: Variables, hyper: Hyper, key: Key) -> masked.State:
    mask_key, server_key = jax.random.split(key)
    kernels, _ = trees.split_prunable(variables["params"])
    densities = jnp.full(len(kernels), hyper.density)
    if options.mask == "erk":
      densities = erk_densities([leaf.shape for leaf in kernels], hyper.density)
    masks = first_masks(variables["params"], densities, mask_key, setup.task.is_given)
    return masked.init(setup, variables, masks, hyper, server_key)

  def client(
    download: masked.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[masked.Upload, Memory, Metrics]:
    arguments = setup.task, setup.local, download.rates, download.variables
    trained, _, metrics = train_client(masked.training(download.masks), *arguments, {}, data, key)
    upload, exchange = masked.send(setup, download, trained, download.masks, data)
    return upload, memory, metrics | exchange

  def server(
    state: masked.State, upload: masked.Upload
  ) -> tuple[masked.State, dict[str, jax.Array]]:
    new = masked.advance(setup, state, masked.mean(upload, state, of_masks=False))
    return masked.finish(setup, state, new, upload.weight)

  return Algorithm(
    init=init,
    broadcast=partial(masked.broadcast, setup),
    client=client,
    server=server,
    model=lambda state: state.variables,
    masks=masked.masks_beside,
  )


METHOD = Method(
  "static",
  "Static mask",
  static,
  options=Options,
  reads=("density",),
  layer_shares=shares_inside_masks,
)
