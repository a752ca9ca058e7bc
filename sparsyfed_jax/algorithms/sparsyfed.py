"""SparsyFed: sparse training from the first round, with masks that agree.

A weight is a power of the parameter theta that is trained::

    w = theta * |theta|^(beta - 1),

so that small parameters gain little and pruned ones, whose gradient is 0, stay pruned. In the
backward pass every layer keeps its input's largest activations only, as large a share as the layer
has weights that are not 0. At the end of a round a client uploads the parameters of largest
magnitude over the whole model, a share of 1 - sparsity; the server averages parameters.

Guastella et al., SparsyFed: Sparse adaptive federated training, ICLR 2025, arXiv 2504.05153.

Example:
  >>> import sparsyfed_jax as sf
  >>> data = sf.data.digits()
  >>> task = sf.classification(sf.models.MLP(10), data)
  >>> clients = sf.data.dirichlet(data, num_clients=50, alpha=0.1)
  >>> run = sf.simulate(sf.sparsyfed(sparsity=0.95, beta=1.25), task, clients)
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import (
  Algorithm,
  Setup,
  no_memory,
  require_prunable,
  require_rows,
)
from sparsyfed_jax.fed.hyper import Hyper as CommonHyper
from sparsyfed_jax.fed.method import Choice, Knob, Method, Pattern, check_options
from sparsyfed_jax.fed.rule import Carry, LocalRule
from sparsyfed_jax.fed.server import Upload
from sparsyfed_jax.fed.task import Layers
from sparsyfed_jax.metrics.flops import DENSE, LayerShares, larger
from sparsyfed_jax.ops import (
  PLAIN,
  LayerOps,
  activation_threshold,
  first_found,
  powerprop,
  powerprop_inverse,
  pruned_layers,
  residual_layers,
  spectral_exponent,
  spectral_exponent_of_weights,
)
from sparsyfed_jax.types import Batch, ClientData, Key, Memory, Metrics, Params, Variables


class Hyper(NamedTuple):
  """The numbers of SparsyFed."""

  beta: Annotated[
    float, Knob("exponent of powerpropagation, at least 1; 1 turns it off", low=1)
  ] = 1.25
  activation_floor: Annotated[
    float, Knob("least share of activations kept in the backward pass", low=0, high=1)
  ] = 0.0


class Options(NamedTuple):
  """The forms of SparsyFed."""

  activation_threshold: Annotated[
    str,
    Choice(
      "batch (exact, anew in every batch) or first_batch (convolutions reuse that of the client's"
      " first batch of the round, as the release does)",
      ("batch", "first_batch"),
    ),
  ] = "batch"
  # The reference runs leave the shortcuts of ResNets out.
  reparam_exclude: Annotated[
    str,
    Pattern(
      "a regular expression; layers whose names it finds (such as shortcut) are plain but take part"
      " in the ranking of the upload; empty for none"
    ),
  ] = ""
  # The spectral exponents come from the weights as the client receives them, and parameters start
  # as drawn weights do; of given weights, as those whose powers they are.
  reparameterisation: Annotated[
    str,
    Choice(
      "powerprop (the exponent is --beta) or spectral (each layer has its own)",
      ("powerprop", "spectral"),
    ),
  ] = "powerprop"
  upload: Annotated[
    str,
    Choice(
      "weights (the largest parameters), changes (the largest changes; they keep no mask, and the"
      " server's model becomes dense) or changes_with_feedback (each client adds what it has not"
      " sent to its next changes)",
      ("weights", "changes", "changes_with_feedback"),
    ),
  ] = "weights"


DEFAULT = Options()


def sparsyfed(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes SparsyFed, with any server optimizer."""
  check_options(options)
  is_plain = trees.name_finder(options.reparam_exclude)
  require_prunable("sparsyfed", setup.task)
  is_kept = options.activation_threshold == "first_batch"
  require_rows("sparsyfed", setup.task, is_plain, ["conv_general_dilated"] if is_kept else [])

  def exponents_of(theta: Params, beta: jax.Array) -> list[jax.Array]:
    if options.reparameterisation == "spectral":
      return [spectral_exponent(leaf) for leaf in trees.split_prunable(theta)[0]]
    return [beta] * len(trees.split_prunable(theta)[0])

  def powers(theta: Params, exponents: Sequence[jax.Array], inverse: bool = False) -> Params:
    names, (leaves, rebuild) = trees.layer_names(theta), trees.split_prunable(theta)
    power = powerprop_inverse if inverse else powerprop
    triples = zip(names, leaves, exponents, strict=True)
    return rebuild([leaf if is_plain(name) else power(leaf, e) for name, leaf, e in triples])

  def init(variables: Variables, hyper: CommonHyper, key: Key) -> averaging.State:
    theta = variables["params"]
    if options.reparameterisation == "powerprop":
      # The weights, not the parameters, have the plain initialisation (section 3 of the paper).
      theta = powers(theta, exponents_of(theta, hyper.own.beta), inverse=True)
    elif setup.task.is_given:
      exponents = [spectral_exponent_of_weights(w) for w in trees.split_prunable(theta)[0]]
      theta = powers(theta, exponents, inverse=True)
    return averaging.init(setup, {**variables, "params": theta}, hyper)

  def client(
    download: averaging.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[Upload, Memory, Metrics]:
    hyper = download.hyper
    received = averaging.receive(setup, download, data)
    exponents = exponents_of(received["params"], hyper.own.beta)

    def weights(theta: Params, carry: Carry) -> Params:
      return powers(theta, exponents)

    def layers(batch: Batch, carry: Carry) -> Layers:
      anew = pruned_layers(batch.valid, hyper.own.activation_floor)

      def layer(name: str) -> LayerOps:
        if is_plain(name):
          return PLAIN
        if options.activation_threshold == "batch":
          return anew
        threshold = partial(
          activation_threshold, valid=batch.valid, floor=hyper.own.activation_floor
        )
        once = residual_layers(first_found(threshold, carry, name))
        return LayerOps(anew.dot_general, once.conv_general_dilated)

      return layer

    carry = {}
    if options.activation_threshold == "first_batch":
      carry = {name: jnp.float32(-1) for name in setup.task.layer_names}
    rule = LocalRule(weights=weights, layers=layers)
    return averaging.client(setup, rule, carry, select, download, memory, data, key)

  def model(state: averaging.State) -> Variables:
    theta = state.variables["params"]
    weights = powers(theta, exponents_of(theta, state.hyper.own.beta))
    return {**state.variables, "params": weights}

  sends_changes = options.upload != "weights"
  select = averaging.largest_changes if sends_changes else averaging.largest_trained
  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=client,
    server=partial(averaging.server, setup, is_change=sends_changes),
    model=model,
    memory=averaging.no_rest if options.upload == "changes_with_feedback" else no_memory,
  )


def _layer_shares(
  options: Options, hyper: Hyper, name: str, is_first: bool, density: float, target: float
) -> LayerShares:
  """Zeros stay, as the gradient of a power above 1 is 0 there; activations are as dense."""
  is_off = options.reparameterisation == "powerprop" and hyper.beta == 1
  if is_off or trees.name_finder(options.reparam_exclude)(name):
    return DENSE
  return LayerShares(density, density, larger(density, hyper.activation_floor))


METHOD = Method(
  "sparsyfed",
  "SparsyFed",
  sparsyfed,
  Hyper,
  Options,
  reads=("density", "ramp_rounds"),
  takes_densities=True,
  layer_shares=_layer_shares,
  prefix="",
)
