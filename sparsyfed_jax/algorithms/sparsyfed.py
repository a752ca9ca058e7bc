"""SparsyFed: sparse training from the first round, with masks that agree.

Guastella et al., SparsyFed: Sparse adaptive federated training, ICLR 2025, arXiv 2504.05153.
Weights are a power of the trained parameters, so that small ones gain little and pruned ones stay
pruned; activations are pruned in the backward pass to each layer's own sparsity; the parameters of
largest magnitude over the whole model are uploaded.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import (
  Algorithm,
  Setup,
  require_injected,
  require_one_of,
  require_prunable,
)
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.fed.rule import Carry, LocalRule
from sparsyfed_jax.fed.server import Upload
from sparsyfed_jax.fed.task import Layers
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
)
from sparsyfed_jax.types import Batch, ClientData, Key, Memory, Metrics, Params, Variables

ACTIVATION_THRESHOLDS = ("batch", "first_batch")
REPARAMETERISATIONS = ("powerprop", "spectral")
UPLOADS = ("weights", "changes")


class Options(NamedTuple):
  """The forms of SparsyFed."""

  # When the threshold of a layer's activations is found: "batch", anew in every batch; or
  # "first_batch", in convolutions only in the client's first batch of a round, as in the release.
  activation_threshold: str = "batch"
  # Layers whose names this regular expression finds are plain, but take part in the ranking of the
  # upload; "" finds none. The reference runs leave the shortcuts of ResNets out.
  reparam_exclude: str = ""
  # "powerprop": the exponent is `Hyper.beta`; "spectral": each layer has its own, from its weights
  # as the client receives them, and parameters start as the weights do.
  reparameterisation: str = "powerprop"
  # "weights": the largest parameters; "changes": the largest changes of parameters, which keep no
  # mask, so that the server's model becomes dense.
  upload: str = "weights"


DEFAULT = Options()


def sparsyfed(setup: Setup, options: Options = DEFAULT) -> Algorithm:
  """Makes SparsyFed, with any server optimizer."""
  require_one_of("activation_threshold", options.activation_threshold, ACTIVATION_THRESHOLDS)
  require_one_of("reparameterisation", options.reparameterisation, REPARAMETERISATIONS)
  require_one_of("upload", options.upload, UPLOADS)
  is_plain = trees.name_finder(options.reparam_exclude)
  require_prunable("sparsyfed", setup.task)
  require_injected("sparsyfed", setup.task, is_plain)

  def exponents_of(theta: Params, beta: jax.Array) -> list[jax.Array]:
    if options.reparameterisation == "spectral":
      return [spectral_exponent(leaf) for leaf in trees.split_prunable(theta)[0]]
    return [beta] * len(trees.split_prunable(theta)[0])

  def powers(theta: Params, exponents: Sequence[jax.Array], inverse: bool = False) -> Params:
    names, (leaves, rebuild) = trees.layer_names(theta), trees.split_prunable(theta)
    power = powerprop_inverse if inverse else powerprop
    triples = zip(names, leaves, exponents, strict=True)
    return rebuild([leaf if is_plain(name) else power(leaf, e) for name, leaf, e in triples])

  def init(variables: Variables, hyper: Hyper, key: Key) -> averaging.State:
    theta = variables["params"]
    if options.reparameterisation == "powerprop":
      # The weights, not the parameters, have the plain initialisation (section 3 of the paper).
      theta = powers(theta, exponents_of(theta, hyper.beta), inverse=True)
    return averaging.init(setup, {**variables, "params": theta}, hyper)

  def client(
    download: averaging.Download, memory: Memory, data: ClientData, key: Key
  ) -> tuple[Upload, Memory, Metrics]:
    hyper = download.hyper
    received = averaging.receive(setup, download, data)
    exponents = exponents_of(received["params"], hyper.beta)

    def weights(theta: Params, carry: Carry) -> Params:
      return powers(theta, exponents)

    def layers(batch: Batch, carry: Carry) -> Layers:
      anew = pruned_layers(batch.valid, hyper.activation_floor)

      def layer(name: str) -> LayerOps:
        if is_plain(name):
          return PLAIN
        if options.activation_threshold == "batch":
          return anew
        threshold = partial(activation_threshold, valid=batch.valid, floor=hyper.activation_floor)
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
    weights = powers(theta, exponents_of(theta, state.hyper.beta))
    return {**state.variables, "params": weights}

  sends_changes = options.upload == "changes"
  select = averaging.largest_changes if sends_changes else averaging.largest_trained
  return Algorithm(
    init=init,
    broadcast=partial(averaging.broadcast, setup),
    client=client,
    server=partial(averaging.server, setup, is_change=sends_changes),
    model=model,
  )
