"""SSFL: one mask of the largest saliency, found before training and sent once.

In round 1 clients do not train. Each sends the saliency of every prunable weight by one batch, and
the server marks the largest of

    sum_k p_k abs(dL_k/dw * w)

over the whole model, where `p_k` is the share of client k in the examples. From round 2 on it is
FedAvg inside the mask, as in `static` with the form `saliency`.

Whoever knows the mask needs no positions. So scores alone are sent up in round 1, and weights alone
afterwards; the download has the dense model in round 1, the weights with the mask in round 2, and
weights alone afterwards. In the paper all clients score, and all receive the mask. Here those of
round 1 score, and the bytes of the mask are counted for those of round 2. The released code takes
the plain mean over clients, which is `--client_weighting=uniform`.

Ohib et al., SSFL: Discovering sparse unified subnetworks at initialization for efficient federated
learning, TMLR 2026, arXiv 2405.09037.

Example:
  >>> import sparsyfed_jax as sf
  >>> sf.ssfl(sparsity=0.7).sparsity.sparsity
  0.7
"""

import jax
import jax.numpy as jnp

from sparsyfed_jax.fed import masked
from sparsyfed_jax.fed.algorithm import Algorithm, Setup, require_prunable
from sparsyfed_jax.fed.method import Method
from sparsyfed_jax.fed.saliency import by_saliency
from sparsyfed_jax.metrics.flops import shares_inside_masks
from sparsyfed_jax.wire.size import payload_bytes


def ssfl(setup: Setup) -> Algorithm:
  """Makes SSFL, with any server optimizer."""
  require_prunable("ssfl", setup.task)
  with_masks = by_saliency(setup)

  def server(
    state: masked.State, upload: masked.Upload
  ) -> tuple[masked.State, dict[str, jax.Array]]:
    new, row = with_masks.server(state, upload)
    if masked.DOWNLINK in row:
      model = masked.marked(state.variables, state.masks)
      weights_alone = payload_bytes(model, model, setup.wire_dtype)
      row[masked.DOWNLINK] = jnp.where(state.updates > 1, weights_alone, row[masked.DOWNLINK])
    return new, row

  return with_masks._replace(server=server)


METHOD = Method("ssfl", "SSFL", ssfl, reads=("density",), layer_shares=shares_inside_masks)
