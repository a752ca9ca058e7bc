"""FedSparsify, the method of the page "your own method", and what importing the library brings."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.algorithms import find
from sparsyfed_jax.fed.method import with_own
from sparsyfed_jax.fed.server import weigh
from tests import cases

DENSITY, EVERY = 0.25, 2  # kept are whole numbers of the layers' 40 and 24 weights


@pytest.fixture(params=["global", "layerwise"])
def form(request):
  return request.param


@pytest.fixture
def begun(request, form, key):
  """The method's functions, and its state before round 1."""
  path = request.config.rootpath / "docs" / "fedsparsify.py"
  assert len(path.read_text().splitlines()) <= 110
  method = find(f"{path}:METHOD")
  algorithm = method.algorithm(cases.make_setup(cases.problem("mlp").task), method.options(form))
  hyper = with_own(cases.hyper(density=DENSITY), method.hyper(every=EVERY))
  return algorithm, algorithm.init(cases.variables("mlp"), hyper, key)


def play_server(algorithm, state, seed):
  """Takes the server's step towards a random model; returns its kernels, and the new state's."""
  rng = np.random.default_rng(seed)
  sent = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), dict(state.variables))
  state, _ = algorithm.server(state, weigh(sent, jnp.float32(3)))
  return state, *(list(cases.kernels(tree).values()) for tree in (sent, state.variables))


def largest(kernels, form):
  """Marks the weights of largest magnitude, of all layers together or of each."""
  ranked = [np.abs(kernel) for kernel in kernels]
  together = np.concatenate([each.ravel() for each in ranked])
  groups = [together, together] if form == "global" else ranked
  bounds = [np.sort(group, axis=None)[-int(DENSITY * group.size)] for group in groups]
  return [each >= bound for each, bound in zip(ranked, bounds, strict=True)]


def test_its_server_prunes_every_few_rounds_and_for_good(begun, form):
  algorithm, state = begun
  state, sent, kernels = play_server(algorithm, state, 0)
  cases.assert_close(kernels, sent, 1e-6)
  state, sent, kernels = play_server(algorithm, state, 1)
  masks = largest(sent, form)
  cases.assert_close(kernels, [w * mask for w, mask in zip(sent, masks, strict=True)], 1e-6)
  state, sent, kernels = play_server(algorithm, state, 2)
  cases.assert_close(kernels, [w * mask for w, mask in zip(sent, masks, strict=True)], 1e-6)


def test_its_clients_train_what_is_left_and_nothing_else(begun, key):
  algorithm, state = begun
  for seed in range(EVERY):
    state, _, kernels = play_server(algorithm, state, seed)
  data = cases.client_data(cases.problem("mlp").federation, 0)
  upload, _, _ = jax.jit(algorithm.client)(algorithm.broadcast(state), (), data, key)
  for before, after in zip(kernels, cases.kernels(upload.variables).values(), strict=True):
    np.testing.assert_array_equal(after != 0, before != 0)
    assert np.any(after / upload.weight != before)


def test_an_import_brings_nothing_that_only_the_program_needs():
  program = """
import sys
import jax, flax.linen, optax
before = set(sys.modules)
import sparsyfed_jax, sparsyfed_jax.algorithms, sparsyfed_jax.data.sources
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
  ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  brought = set(ran.stdout.split())
  assert "sparsyfed_jax" in brought
  assert not brought & {"matplotlib", "sklearn", "scipy", "rich", "orbax", "jinja2"}
  assert not brought & {"h5py", "PIL", "pyarrow", "sqlite3"}
