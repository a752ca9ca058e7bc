"""Uploads in 8 or 4 bits, of methods of every kind: masks survive, nothing is lost for good."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.fed.levelled import with_levels
from sparsyfed_jax.fed.measures import measures
from sparsyfed_jax.types import total
from sparsyfed_jax.wire import codec
from tests import cases

CLIENT, EMPTY = 3, cases.EMPTY
SETUP = {"wire_dtype": jnp.bfloat16, "measures": measures(jnp.int8)}


def exchange(method, name, has_feedback=False, number=CLIENT, memory=None, key=4):
  """Runs a client as it is, and with levels."""
  plain = cases.algorithm(method, name, **SETUP)
  made = with_levels(plain, "int8", has_feedback)
  state = cases.trained(method, name)
  download = plain.broadcast(state)
  if memory is None:
    memory = made.memory(cases.variables(name), cases.hyper(method))
  data = cases.client_data(cases.problem(name).federation, number)
  arguments = download, memory, data, jax.random.key(key)
  exact = plain.client(download, (), data, jax.random.key(key))[0]
  return download, exact, *jax.jit(made.client)(*arguments)


def kernels(upload):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(upload.variables) if leaf.ndim > 1]


@pytest.mark.parametrize("method", cases.over_methods(["sparsyfed", "feddst"], quick=cases.FEW))
def test_arrays_of_two_axes_are_on_levels_with_the_same_zeros(method):
  _, exact, upload, memory, metrics = exchange(method, "batchnorm")
  assert memory == () and jax.tree.structure(exact) == jax.tree.structure(upload)
  for before, after in zip(jax.tree.leaves(exact), jax.tree.leaves(upload), strict=True):
    if before.ndim < 2:
      np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-7)
      continue
    np.testing.assert_array_equal(before != 0, after != 0)
    magnitudes = np.abs(before[before != 0])
    if magnitudes.size:
      step = np.ptp(magnitudes) / 126
      np.testing.assert_allclose(after, before, rtol=1e-5, atol=1.001 * step)
  changed = zip(kernels(exact), kernels(upload), strict=True)
  assert any(np.abs(a - b).max() > 1e-4 for a, b in changed)
  assert total(metrics["round_uplink_bytes"].value) > 0


def test_bytes_are_those_of_the_wire_format():
  download, _, upload, _, metrics = exchange("sparsyfed", "batchnorm")
  sent = jax.tree.map(lambda leaf: np.asarray(leaf / upload.weight), upload.variables)
  received = jax.device_get(download.variables)
  expected = len(codec.encode(sent, received, "int8"))
  assert total(metrics["round_uplink_bytes"].value) == expected
  assert expected < len(codec.encode(sent, received, "bfloat16"))


def test_feedback_loses_nothing():
  memory, sent, exact = None, 0, 0
  for key in range(3):
    _, plain, upload, memory, _ = exchange("fedavg", "linear", True, memory=memory, key=key)
    exact += np.float64(kernels(plain)[0])
    sent += np.float64(kernels(upload)[0])
    # What has not been sent is what is kept: less than a step, however many rounds there were.
    np.testing.assert_allclose(sent + memory[0], exact, rtol=1e-5, atol=1e-6)
  step = np.ptp(np.abs(kernels(upload)[0])) / 126
  assert 0 < np.abs(memory[0]).max() < 1.01 * step


def test_feedback_makes_and_moves_no_zero():
  algorithm = cases.algorithm("sparsyfed", "linear", **SETUP)
  made = with_levels(algorithm, "int8", True)
  memory = made.memory(cases.variables("linear"), cases.hyper("sparsyfed"))
  kept = [jnp.full_like(leaf, 0.25) for leaf in memory]
  _, exact, upload, after, _ = exchange("sparsyfed", "linear", True, memory=kept)
  (before,), (now,) = kernels(exact), kernels(upload)
  np.testing.assert_array_equal(before != 0, now != 0)
  assert np.any(before == 0)
  np.testing.assert_array_equal(after[0][before == 0], 0.25)  # is added once it is sent
  assert not np.any(after[0][before != 0] == 0.25)
  np.testing.assert_allclose((now + after[0])[before != 0], (before + 0.25)[before != 0], rtol=1e-5)


def test_a_client_without_examples_sends_nothing_and_keeps_its_memory():
  kept = [jnp.full((5, cases.NUM_CLASSES), 0.25)]
  _, _, upload, after, _ = exchange("fedavg", "linear", True, EMPTY, kept)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(upload))
  np.testing.assert_array_equal(after[0], kept[0])


def test_each_client_and_round_has_its_own_chance():
  uploads = [kernels(exchange("fedavg", "linear", key=key)[2])[0] for key in (4, 4, 5)]
  np.testing.assert_array_equal(uploads[0], uploads[1])
  assert np.any(uploads[0] != uploads[2])


def test_what_cannot_be_is_refused():
  scaffold = cases.algorithm("scaffold", "linear")
  with pytest.raises(ValueError, match="wire_dtype='int8': must be float32, bfloat16 or float16"):
    with_levels(scaffold, "int8")
  assert with_levels(scaffold, "bfloat16") is scaffold
  with pytest.raises(ValueError, match="wire_feedback=True: needs wire_dtype int8 or int4"):
    with_levels(scaffold, "bfloat16", True)
