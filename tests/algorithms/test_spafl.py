"""Thresholds of units, and models that belong to clients; test_memories.py has the reference."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsyfed_jax as sf
from sparsyfed_jax.algorithms import spafl
from sparsyfed_jax.fed.agreement import mask_agreement
from sparsyfed_jax.types import Batch
from tests import cases

KEY = jax.random.key(2)
NUMBERS = (3, 0, 5)


def own_models(name, state, memories):
  """Reads out the models of all clients."""
  made = cases.algorithm("spafl", name)
  download = made.broadcast(state)
  rows = [jax.tree.map(lambda leaf, n=n: leaf[n], memories) for n in range(len(cases.SIZES))]
  return [made.client_model(download, row) for row in rows]


def mask_of(variables):
  return cases.flat_kernels(variables["params"]) != 0


@pytest.fixture(scope="module")
def played():
  """A state and all memories after a round."""
  start, kept, *_ = cases.whole("spafl", "batchnorm", cases.trained("spafl", "batchnorm"))
  upload, kept, _ = cases.play_cohort("spafl", "batchnorm", start, NUMBERS, kept=kept)
  state, _ = cases.server("spafl", "batchnorm")(start, upload)
  return state, kept


def memory(kernel, threshold):
  tau = {"Dense_0": jnp.float32(threshold)}
  return spafl.Kept({"params": {"Dense_0": {"kernel": jnp.float32(kernel)}}}, tau, tau)


def kernel_of(variables):
  return np.asarray(variables["params"]["Dense_0"]["kernel"])


def read(kept, received):
  made = cases.algorithm("spafl", "linear")
  download = made.broadcast(cases.start("spafl", "linear"))
  sent = {"params": {"Dense_0": jnp.float32(received)}}
  return kernel_of(made.client_model(download._replace(variables=sent), kept))


def test_a_unit_that_weighs_as_much_as_its_threshold_is_pruned():
  kept = memory([[0.5, 0.5, -0.75], [-0.5, 0.75, 0.25]], [0.5, 0.5, 0.25])
  found = read(kept, [0.5, 0.5, 0.25])
  np.testing.assert_array_equal(found, [[0, 0.5, -0.75], [0, 0.75, 0.25]])


def test_weights_follow_the_servers_thresholds_and_masks_the_clients_own():
  kept = memory([[1.0, 1.0, -1.0, 1.0], [1.0, 2.0, -3.0, -1.0]], [0.0, 0.0, 0.0, 0.0])
  # Nearer to 0 by half of the growth, away from it, and nowhere where the sum has no sign.
  found = read(kept, [0.5, -0.5, 0.5, 0.5])
  np.testing.assert_array_equal(found, [[0.75, 1.25, -0.75, 1], [0.75, 2.25, -2.75, -1]])


def test_a_layer_without_units_begins_again():
  kernel = [[1.0, 1.0], [1.0, 2.0]]
  np.testing.assert_array_equal(read(memory(kernel, [5.0, 5.0]), [5.0, 5.0]), kernel)
  found = read(memory(kernel, [5.0, 1.0]), [5.0, 1.0])
  np.testing.assert_array_equal(found, [[0, 1], [0, 2]])


def test_a_penalty_raises_thresholds_and_prunes_clients():
  shares = []
  for penalty in (0.0, 2.5):
    values = cases.hyper("spafl", spafl_penalty=penalty, weight_decay=0.0, client_lr=0.03)
    state = cases.start("spafl", "mlp", values)
    before = jax.tree.map(lambda leaf: leaf[3], cases.memories("spafl", "mlp"))
    data = cases.client_data(cases.problem("mlp").federation, 3)
    download = cases.algorithm("spafl", "mlp").broadcast(state)
    upload, kept, metrics = cases.client("spafl", "mlp")(download, before, data, KEY)
    own = cases.algorithm("spafl", "mlp").client_model(download, kept)
    share = float(metrics["client_prunable_sparsity"].value)
    assert share == pytest.approx(1 - mask_of(own).mean(), abs=1e-6)
    thresholds = np.concatenate(jax.tree.leaves(upload.variables)) / upload.weight
    shares.append((share, thresholds.mean()))
  (dense, low), (sparse, high) = shares
  assert sparse > dense and high > low + 0.05


def test_only_thresholds_are_exchanged():
  state = cases.trained("spafl", "cnn")
  upload, _ = cases.run_client("spafl", "cnn", state, 3)
  download = cases.algorithm("spafl", "cnn").broadcast(state)
  units = {"Conv_0": (4,), "Conv_1": (4,), "Conv_2": (5,), "Dense_0": (cases.NUM_CLASSES,)}
  for sent in (upload, download):
    assert {name: tau.shape for name, tau in sent.variables["params"].items()} == units
    assert list(sent.variables) == ["params"]
  assert not any(leaf.ndim > 1 for leaf in jax.tree.leaves((upload, download)))


def test_clients_are_scored_by_their_own_models(played):
  problem, (state, kept) = cases.problem("batchnorm"), played
  simulation = cases.simulation("spafl", "batchnorm")
  size = len(problem.y_test)
  # More than a batch, one, none, and one example that is nobody's.
  owned = [[1, 4, 5, 7, 8], [], [0], [9], [], [3, 2], []]
  assert max(map(len, owned)) > cases.EVAL_BATCH_SIZE
  rows = np.array(list(itertools.zip_longest(*owned, fillvalue=size)), np.int32).T
  whole = sf.fed.simulation.State(state, kept)
  found = simulation.score_own(whole, problem.x_test, problem.y_test, rows)
  expected = np.zeros((2, size))
  everything = Batch(problem.x_test, problem.y_test, jnp.ones(size, bool))
  models = own_models("batchnorm", state, kept)
  for variables, own in zip(models, owned, strict=True):
    scores = problem.task.score_each(variables, everything)
    expected[:, own] = np.asarray(scores)[:, own]
  np.testing.assert_array_equal(np.asarray(found), expected)
  assert found.weight.sum() == size - 1
  predictions = [problem.task.predict(one, everything) for one in models]
  assert not np.allclose(predictions[3], predictions[0])
  # Who never took part is as the run began, and has moved alike.
  cases.assert_same_bits(predictions[4], predictions[6])


def test_a_method_with_one_model_has_none_of_clients():
  problem, state = cases.problem("linear"), cases.whole("fedavg", "linear")
  rows = np.zeros((len(cases.SIZES), 1), np.int32)
  with pytest.raises(ValueError, match="no models of their own"):
    cases.simulation("fedavg", "linear").score_own(state, problem.x_test, problem.y_test, rows)


def test_masks_are_those_of_models(played):
  state, kept = played
  made, federation = cases.algorithm("spafl", "batchnorm"), cases.problem("batchnorm").federation
  arguments = state, kept, federation, cases.members(NUMBERS), KEY
  agreement = jax.jit(lambda: mask_agreement(made, 10, *arguments))()
  _, after, _ = cases.play_cohort("spafl", "batchnorm", state, NUMBERS, kept=kept, key=KEY)
  masks = [mask_of(own_models("batchnorm", state, after)[number]) for number in NUMBERS]
  pairs = list(itertools.combinations(masks, 2))
  expected = np.mean([np.sum(a & b) / np.sum(a | b) for a, b in pairs])
  assert agreement == pytest.approx(expected, rel=1e-6)
  assert 0 < expected < 1
  packed = cases.simulation("spafl", "batchnorm").pack(sf.fed.simulation.State(state, ()))
  mask = mask_of(made.model(state))
  np.testing.assert_array_equal(np.unpackbits(np.asarray(packed))[: mask.size], mask)


def test_a_run_reads_out_the_model_of_a_client():
  data = sf.data.digits()
  task = sf.classification(sf.models.MLP(10, hidden=(8,)), data)
  for method, is_own in ((sf.spafl(), True), (sf.fedavg(), False)):
    settings = dict(clients_per_round=2, local_epochs=1, rounds=1)
    run = sf.simulate(method, task, sf.data.iid(data, num_clients=4), **settings)
    state, _ = run.rounds(run.init(), 1)
    models = [run.client_model(state, number) for number in range(4)]
    distinct = {np.asarray(jax.tree.leaves(one)[0]).tobytes() for one in models}
    assert len(distinct) == (3 if is_own else 1)  # two that trained, and two that have not
    if not is_own:
      cases.assert_same_bits(models[0], run.model(state))
