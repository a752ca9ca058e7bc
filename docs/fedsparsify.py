"""FedSparsify: clients train inside the server's mask, and the server prunes a little more.

At the end of every `every`-th round t the server keeps the share d(t) of its prunable weights that
is largest in magnitude, where d(t) falls by the sparsity schedule. What it has set to 0 stays 0.

Stripelis et al., Federated progressive sparsification (purge, merge, tune)+, 2022, arXiv
2204.12430. Lines marked `# +` are what the method adds to FedAvg.
"""

from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import Algorithm, Choice, Knob, Method, Setup, fed, trees
from sparsyfed_jax.fed import averaging, masked
from sparsyfed_jax.fed.algorithm import masks_of_zeros
from sparsyfed_jax.fed.method import check_options
from sparsyfed_jax.fed.pruning import Masks
from sparsyfed_jax.metrics.flops import shares_inside_masks
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params, Variables


class Hyper(NamedTuple):  # numbers: changing one compiles nothing anew
  """The numbers of FedSparsify."""

  every: Annotated[int, Knob("rounds from one pruning to the next", low=1)] = 1


class Options(NamedTuple):  # forms: each is a program of its own
  """The forms of FedSparsify."""

  form: Annotated[
    str, Choice("what is ranked: all layers together, or each alone", ("global", "layerwise"))
  ] = "global"


DEFAULT = Options()


def fedsparsify(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes FedSparsify, with any server optimizer.

  Args:
    setup: what every method is made of.
    options: the form.

  Raises:
    ValueError: the form is unknown, or nothing in the model can be pruned.
  """
  check_options(options)  # +
  fed.require_prunable("fedsparsify", setup.task)  # +

  def init(variables: Variables, hyper: fed.Hyper, key: Key) -> averaging.State:
    return averaging.init(setup, variables, hyper)

  def client(
    download: averaging.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[fed.Upload, Memory, Metrics]:
    rule = masked.training(masks_of_zeros(download))  # +
    return averaging.client(setup, rule, {}, averaging.all_trained, download, memory, data, key)

  def server(
    state: averaging.State, upload: fed.Upload
  ) -> tuple[averaging.State, dict[str, jax.Array]]:
    new, row = averaging.server(setup, state, upload)
    # Momentum of a server optimizer would move what is pruned.
    params = fed.apply_masks(new.variables["params"], masks_of_zeros(state))  # +
    is_due = new.round % new.hyper.own.every.astype(jnp.int32) == 0  # +
    density = jnp.where(is_due & (upload.weight > 0), 1 - row["target_sparsity"], 1)  # +
    params = fed.apply_masks(params, largest(params, density))  # +
    return new._replace(variables={**new.variables, "params": params}), row  # +

  def largest(params: Params, density: jax.Array) -> Masks:  # +
    if options.form == "global":  # +
      return fed.global_masks(params, density)  # +
    kernels, _ = trees.split_prunable(params)  # +
    return fed.largest_masks(params, [density] * len(kernels))  # +

  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=client,
    server=server,
    model=lambda state: state.variables,
  )


METHOD = Method(
  name="fedsparsify",
  title="FedSparsify",
  make=fedsparsify,
  hyper=Hyper,
  options=Options,
  reads=("density", "ramp_rounds"),
  layer_shares=shares_inside_masks,
)
