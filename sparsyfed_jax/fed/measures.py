"""Metrics of a round besides training: bytes, sparsity, regrowth and overlap of masks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax import trees
from sparsyfed_jax.metrics.sparsity import global_sparsity, prunable_sparsity
from sparsyfed_jax.types import Metrics, Variables, tally, weighted
from sparsyfed_jax.wire.rounding import wire_dtypes
from sparsyfed_jax.wire.size import count_changes, update_bytes, whole_bytes


class Measures(NamedTuple):
  """Functions that measure models and uploads; a mask is where parameters are not 0."""

  # (model as the client received it, model as it sends it, () int32 number of its examples) ->
  # means and sums over clients
  exchange: Callable[[Variables, Variables, jax.Array], Metrics]
  # (global model before the round, after it) -> columns of the round's row
  step: Callable[[Variables, Variables], dict[str, jax.Array]]
  # (global model after a round) -> columns of the round's row
  model: Callable[[Variables], dict[str, jax.Array]]
  # whether `exchange` reads what parameters are, and not only where they are in a mask
  needs_values: bool = False


NO_MEASURES = Measures(
  exchange=lambda *_: {},
  step=lambda *_: {},
  model=lambda _: {},
)


def measures(wire_dtype: Any = jnp.float32) -> Measures:
  """Makes the default measures, which read the parameters a few times.

  Bytes are those of `sparsyfed_jax.wire.codec`, to the byte: a client's upload with the model that
  it received as the reference, the download with none, because a client that is sampled rarely
  holds a model of earlier rounds.

  Args:
    wire_dtype: of values on the wire; int8 and int4 are those of uploads, and downloads have
      bfloat16.

  Returns:
    Measures: of an exchange `round_uplink_bytes`, a `Tally` over the clients that have examples,
    and `client_regrowth`, weighted by their number; of a step `downlink_bytes` of a client, uint32,
    `server_regrowth`, `mask_iou` between the two global models, and, (num_layers,) float32, the
    `received_density` of the old and the `layer_density` of the new one; of a model
    `global_sparsity` over all parameters and `prunable_sparsity`.
  """
  model_dtype, upload_dtype = wire_dtypes(wire_dtype)

  def exchange(download: Variables, upload: Variables, size: jax.Array) -> Metrics:
    changes = count_changes(upload, download)
    sent = update_bytes(changes, upload, download, upload_dtype)
    regrown = _share(changes.grown, upload)
    return {
      "round_uplink_bytes": tally(sent, size > 0),
      "client_regrowth": weighted(regrown, size),
    }

  def step(before: Variables, after: Variables) -> dict[str, jax.Array]:
    changes = count_changes(after, before)
    sizes, kernels = _kernels(after)
    either = jnp.sum((changes.before + changes.grown)[kernels]).astype(jnp.float32)
    both = jnp.sum((changes.now - changes.grown)[kernels]).astype(jnp.float32)
    sent = whole_bytes(changes.before, before, model_dtype)
    return {
      "server_regrowth": _share(changes.grown, after),
      "mask_iou": jnp.where(either == 0, 1.0, both / jnp.maximum(either, 1)),
      "downlink_bytes": sent,
      "received_density": changes.before[kernels].astype(jnp.float32) / sizes,
      "layer_density": changes.now[kernels].astype(jnp.float32) / sizes,
    }

  def model(after: Variables) -> dict[str, jax.Array]:
    params = after["params"]
    return {
      "global_sparsity": global_sparsity(params),
      "prunable_sparsity": prunable_sparsity(params),
    }

  return Measures(exchange, step, model)


MEASURES = measures()


def _kernels(variables: Variables) -> tuple[np.ndarray, np.ndarray]:
  """Finds the prunable leaves: their sizes as float32, and their places among all leaves."""
  flat, _ = jax.tree_util.tree_flatten_with_path(variables)
  places = [i for i, (path, leaf) in enumerate(flat) if trees.is_prunable(path, leaf)]
  return np.array([flat[i][1].size for i in places], np.float32), np.array(places, int)


def _share(counts: jax.Array, variables: Variables) -> jax.Array:
  """Divides counts by leaf, summed over the prunable ones, by the number of their entries."""
  sizes, kernels = _kernels(variables)
  return jnp.sum(counts[kernels]).astype(jnp.float32) / max(float(sizes.sum()), 1.0)
