"""What a round reports of models and masks, besides training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsyfed_jax.io.wire import payload_bytes
from sparsyfed_jax.metrics.masks import mask_iou, regrowth
from sparsyfed_jax.metrics.sparsity import density_by_layer, global_sparsity, prunable_sparsity
from sparsyfed_jax.types import Metrics, Variables, weighted


class Measures(NamedTuple):
  """What is measured of what is sent; masks are where parameters are not 0."""

  # (model as the client received it, model as it sends it, () int32 number of its examples) ->
  # means over clients
  exchange: Callable[[Variables, Variables, jax.Array], Metrics]
  # (global model before the round, after it) -> columns of the round's row
  step: Callable[[Variables, Variables], dict[str, jax.Array]]
  # (global model after a round) -> columns of the round's row
  model: Callable[[Variables], dict[str, jax.Array]]


NO_MEASURES = Measures(
  exchange=lambda *_: {},
  step=lambda *_: {},
  model=lambda _: {},
)


def measures(wire_dtype: Any = jnp.float32) -> Measures:
  """Makes the measures that cost a few readings of the parameters.

  Bytes are those of `sparsyfed_jax.io.codec`, to the byte: a client's upload with the model that it
  received as the reference, the download with none, because a client that is sampled rarely holds
  no model of earlier rounds.

  Args:
    wire_dtype: of values on the wire.

  Returns:
    Measures: of an exchange `uplink_bytes`, a mean over the clients that have examples, and
    `client_regrowth`, weighted by their number; of a step `downlink_bytes` of a client,
    `server_regrowth`, `mask_iou` between the two global models, and, (num_layers,) float32, the
    `received_density` of the old and the `layer_density` of the new one; of a model
    `global_sparsity` over all parameters and `prunable_sparsity`.
  """

  def exchange(download: Variables, upload: Variables, size: jax.Array) -> Metrics:
    sent = payload_bytes(upload, download, wire_dtype)
    return {
      "uplink_bytes": weighted(sent.astype(jnp.float32), size > 0),
      "client_regrowth": weighted(regrowth(download["params"], upload["params"]), size),
    }

  def step(before: Variables, after: Variables) -> dict[str, jax.Array]:
    return {
      "server_regrowth": regrowth(before["params"], after["params"]),
      "mask_iou": mask_iou(before["params"], after["params"]),
      "downlink_bytes": payload_bytes(before, value_dtype=wire_dtype).astype(jnp.float32),
      "received_density": density_by_layer(before["params"]),
      "layer_density": density_by_layer(after["params"]),
    }

  def model(after: Variables) -> dict[str, jax.Array]:
    params = after["params"]
    return {
      "global_sparsity": global_sparsity(params),
      "prunable_sparsity": prunable_sparsity(params),
    }

  return Measures(exchange, step, model)


MEASURES = measures()
