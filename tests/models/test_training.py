"""Methods train models of every library: sparse as asked, from batches that are not full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import trees
from sparsyfed_jax.fed.task import classification
from tests import cases
from tests.models.strangers import MODELS, SHAPE

METHODS = ("sparsyfed", "zerofl", "topk", "flash", "feddst")
# Each library and each method once; the other pairs differ little, and compiling takes long.
PAIRS = set(zip(MODELS, METHODS, strict=True))


@pytest.fixture(autouse=True)
def as_others_have_it():
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


@pytest.mark.parametrize(
  ("name", "method"),
  [
    pytest.param(name, method, marks=() if (name, method) in PAIRS else pytest.mark.slow)
    for name in MODELS
    for method in METHODS
  ],
)
def test_rounds_of_one_client(name, method):
  task = classification(MODELS[name][0](), SHAPE)
  algorithm = cases.form(method, cases.make_setup(task))
  hyper = cases.hyper(method)
  federation = cases.random_federation(SHAPE, sizes=(7, 3))
  variables = task.init(jax.random.key(0))
  state = algorithm.init(variables, hyper, jax.random.key(1))
  memory = algorithm.memory(variables, hyper)
  client, server, losses = jax.jit(algorithm.client), jax.jit(algorithm.server), []
  for number in range(4):
    download, key = algorithm.broadcast(state), jax.random.key(number)
    data = cases.client_data(federation, 0)
    upload, memory, metrics = client(download, memory, data, key)
    state, _ = server(state, upload)
    losses.append(float(metrics["train_loss"].value))
  assert np.isfinite(losses).all() and min(losses[1:]) < losses[0]
  assert jax.tree.structure(state.variables) == jax.tree.structure(dict(variables))
  masks = algorithm.masks(state)
  density = sum(jnp.count_nonzero(mask) for mask in masks) / trees.size(masks)
  more = cases.HYPER["zerofl_mask_ratio"] if method == "zerofl" else 0
  assert density == pytest.approx(cases.HYPER["density"] + more, abs=0.03)
  # A client without examples uploads nothing.
  nobody = cases.client_data(federation, 1)._replace(size=jnp.int32(0))
  upload, _, _ = client(download, memory, nobody, key)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(upload))
