"""What FedFade trains late: biases, and the scales of norms."""

import jax
import numpy as np
import pytest

from tests import cases

MODEL = "batchnorm"  # Dense_0, BatchNorm_0, Dense_1
BIASES_FROM = 2  # of `cases.HYPER`


@pytest.mark.parametrize("method", ["fedfade"])  # beside the laws, whose programs it shares
def test_biases_and_norms_are_sent_only_at_the_end(method):
  if method not in cases.VARIANTS:
    pytest.skip("another method is tested")
  model, drawn = cases.algorithm(method, MODEL).model, cases.variables(MODEL)["params"]
  state = cases.start(method, MODEL)
  for number in range(1, BIASES_FROM + 3):
    upload, _ = cases.run_cohort(method, MODEL, state, (0, 3, 5), key=jax.random.key(number))
    is_late = number > BIASES_FROM
    for leaf in jax.tree.leaves(_late(upload.variables["params"])):
      assert np.any(leaf) == is_late
    for leaf in jax.tree.leaves(_late(state.variables["params"])):
      assert np.any(leaf) == is_late
    # Before, clients compute with the norms as they were drawn; a layer's biases fade.
    norm = model(state)["params"]["BatchNorm_0"]
    for name, leaf in drawn["BatchNorm_0"].items():
      assert np.array_equal(norm[name], leaf) == (number <= BIASES_FROM + 1), (number, name)
    state, _ = cases.server(method, MODEL)(state, upload)


def _late(params):
  """Takes the norm's parameters and the last layer's biases, some of which have weights."""
  return {"norm": params["BatchNorm_0"], "bias": params["Dense_1"]["bias"]}
