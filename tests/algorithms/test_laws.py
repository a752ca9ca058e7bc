"""The laws of `fed/algorithm.py`, for every method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax import trees
from sparsyfed_jax.fed.cohort import CLIENTS, EXCLUDED
from tests import cases

# Statistics with every form, by default with a few.
ON_CONVOLUTIONS = [name for name in cases.LAWFUL if cases.problem_of(name) == "cnn"]
every_problem = pytest.mark.parametrize(
  ("method", "name"),
  cases.over_methods(cases.FORMS, "batchnorm")
  + cases.over_methods(["sparsyfed", "zerofl", "flash-convolutions"], "cnn", quick=["sparsyfed"])
  + cases.over_methods(ON_CONVOLUTIONS, "cnn", quick=ON_CONVOLUTIONS),
)
COHORT = (3, 0, 5)  # sizes 7, 6, 3


def play_alone(method, name, state, number):
  """Runs one client: outside a cohort, or of those that share programs where all others vanish."""
  if method not in ON_CONVOLUTIONS or name != "cnn":
    return cases.play_client(method, name, state, number)
  numbers = number, *[other for other in COHORT if other != number][:2]
  upload, kept, metrics = cases.play_cohort(method, name, state, numbers, vanished=(1, 2))
  assert float(metrics.pop(CLIENTS).total) == (cases.SIZES[number] > 0)
  assert float(metrics.pop(EXCLUDED).total) == 0
  return upload, jax.tree.map(lambda leaf: leaf[number], kept), metrics


@every_problem
class TestUploadsAreSummable:
  def test_a_cohort_counted_twice_is_the_cohort(self, method, name):
    state = cases.trained(method, name)
    upload, _ = cases.run_cohort(method, name, state, COHORT)
    once, _ = cases.server(method, name)(state, upload)
    # As of two alike populations.
    hyper = state.hyper._replace(total_weight=2 * state.hyper.total_weight)
    twice, _ = cases.server(method, name)(state._replace(hyper=hyper), cases.add(upload, upload))
    assert not cases.same_bits(once.variables, state.variables)
    cases.assert_close(twice._replace(hyper=once.hyper), once, 1e-6)

  def test_a_client_does_alone_what_it_does_in_the_cohort(self, method, name):
    state = cases.trained(method, name)
    upload, metrics = cases.run_cohort(method, name, state, COHORT)
    assert float(metrics.pop(EXCLUDED).total) == 0
    assert float(metrics.pop(CLIENTS).total) == len(COHORT)
    together = upload, metrics
    alone = [play_alone(method, name, state, number)[::2] for number in COHORT]
    cases.assert_close(together, cases.add(*alone), 1e-5)


@every_problem
class TestNobodyChangesNothing:
  def test_an_empty_client_uploads_zeros(self, method, name):
    upload, _, metrics = play_alone(method, name, cases.trained(method, name), cases.EMPTY)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves((upload, metrics)))

  def test_who_does_not_take_part_keeps_its_memory(self, method, name):
    before = cases.memories(method, name, seed=1)
    state, taking_part = cases.trained(method, name), [3, 0]
    # Also in one chunk: who has examples and who has none.
    _, after, _ = cases.play_cohort(method, name, state, (*taking_part, cases.EMPTY))
    others = np.delete(np.arange(len(cases.SIZES)), taking_part)
    cases.assert_same_bits(*(jax.tree.map(lambda leaf: leaf[others], m) for m in (after, before)))
    for number in taking_part:
      _, alone, _ = play_alone(method, name, state, number)
      own = jax.tree.map(lambda leaf, n=number: leaf[n], (after, before))
      cases.assert_close(own[0], alone, 1e-5)
      for new, old in zip(*map(jax.tree.leaves, own), strict=True):
        assert np.any(new != old)

  def test_rows_of_nobody_are_never_seen(self, method, name):
    state = cases.trained(method, name)
    clean = cases.problem(name).federation
    junky = cases.random_federation(clean.x.shape[1:], junk=np.nan, label_junk=10**6)
    assert not cases.same_bits(junky.x, clean.x)
    # The first two share a chunk: of seven examples and none.
    for numbers in [(3, cases.EMPTY, 5), COHORT]:
      cases.assert_same_bits(
        cases.play_cohort(method, name, state, numbers, junky),
        cases.play_cohort(method, name, state, numbers),
      )


@pytest.mark.parametrize("method", cases.over_methods(cases.DEFAULT_FORMS, quick=cases.FEW))
@pytest.mark.parametrize("name", ["batchnorm"])
class TestPaddingChangesNothing:
  def test_empty_clients_add_nothing(self, method, name):
    state = cases.trained(method, name)
    expected = cases.play_cohort(method, name, state, COHORT)
    # One fills the chunk of the last client, two are a chunk of their own.
    actual = cases.play_cohort(method, name, state, COHORT + (cases.EMPTY,) * 3)
    cases.assert_same_bits(actual, expected)

  def test_longer_index_lists(self, method, name):
    state = cases.trained(method, name)
    shape = cases.problem(name).federation.x.shape[1:]
    longer = cases.random_federation(shape, junk=np.nan, more_padding=9)
    for number in (cases.EMPTY, *COHORT):
      cases.assert_same_bits(
        cases.play_client(method, name, state, number, longer),
        cases.play_client(method, name, state, number),
      )

  def test_a_partial_batch_is_a_batch_of_its_size(self, method, name):
    state = cases.trained(method, name)
    size = cases.SIZES[cases.PARTIAL]
    assert size < cases.BATCH_SIZE
    upload, metrics = cases.run_client(method, name, state, cases.PARTIAL)
    expected = cases.run_client(method, name, state, cases.PARTIAL, batch_size=size)
    assert float(metrics["train_loss"].weight) == cases.EPOCHS * size
    cases.assert_close((upload, metrics), expected, 1e-6)


@pytest.mark.parametrize("method", cases.over_methods(cases.DEFAULT_FORMS, quick=cases.FEW))
def test_the_cut_of_the_cohort_changes_nothing(method, name="batchnorm"):
  def run(clients_per_chunk):
    state, kept, *_ = cases.whole(method, name)
    for i, numbers in enumerate([(3, 0, 5), (6, 3, 4), (2, 1, 0)]):
      upload, kept, metrics = cases.play_cohort(
        method,
        name,
        state,
        numbers,
        key=jax.random.key(i),
        kept=kept,
        clients_per_chunk=clients_per_chunk,
      )
      state, _ = cases.server(method, name)(state, upload)
    return state, kept, metrics

  expected = run(2)
  for before, after in zip(cases.whole(method, name), expected, strict=False):
    assert not jax.tree.leaves(before) or not cases.same_bits(after, before)
  for clients_per_chunk in (1, 3):
    cases.assert_close(run(clients_per_chunk), expected, 1e-5)


@pytest.mark.parametrize("method", cases.LAWFUL)
def test_a_round_is_decided_by_its_state_and_its_key(method):
  name = cases.problem_of(method)
  state = cases.trained(method, name)

  def follow(state, seed):
    upload, kept, _ = cases.play_cohort(method, name, state, COHORT, key=jax.random.key(seed))
    return cases.server(method, name)(state, upload), kept

  first = follow(state, 7)
  other = follow(state, 8)
  cases.assert_same_bits(follow(cases.copy(state), 7), first)
  assert not cases.same_bits(other, first)


@pytest.mark.parametrize("method", cases.over_methods([*cases.DEFAULT_FORMS, "flash-jmwst"]))
class TestReproducible:
  def run(self, method, state, num_rounds, seed=3, rounds_per_call=5):
    simulation = cases.simulation(method, "linear", rounds_per_call=rounds_per_call)
    federation = cases.problem("linear").federation
    state, rows = simulation.run(cases.copy(state), federation, jax.random.key(seed), num_rounds)
    return state, {name: row[:num_rounds] for name, row in rows.items()}

  def test_the_key_decides(self, method):
    start = cases.whole(method, "linear")
    first = self.run(method, start, 2)
    cases.assert_same_bits(self.run(method, start, 2), first)
    assert not cases.same_bits(self.run(method, start, 2, seed=4)[0], first[0])

  def test_a_continued_run_is_the_uninterrupted_one(self, method):
    self.check_continued(method, 5)

  @pytest.mark.slow
  def test_calls_of_another_length_continue_it_too(self, method):
    self.check_continued(method, 3)

  def check_continued(self, method, rounds_per_call):
    start = cases.whole(method, "linear")
    whole, rows = self.run(method, start, 5)
    half, first = self.run(method, start, 2, rounds_per_call=rounds_per_call)
    end, last = self.run(method, half, 3, rounds_per_call=rounds_per_call)
    cases.assert_same_bits(end, whole)
    cases.assert_same_bits(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last), rows)

  def test_any_round_can_be_recomputed_alone(self, method):
    start = cases.whole(method, "linear")
    _, rows = self.run(method, start, 5)
    before, _ = self.run(method, start, 3)
    _, fourth = self.run(method, before, 1)
    cases.assert_same_bits(fourth, {name: row[3:4] for name, row in rows.items()})


@pytest.mark.parametrize(
  "method",
  cases.over_methods(
    ["sparsyfed", "topk", "sparsyfed-changes", "zerofl-changes"], quick=cases.LAWFUL
  ),
)
def test_the_server_forms_the_weighted_mean(method):
  name = cases.problem_of(method)
  state = cases.trained(method, name)
  sizes = [cases.SIZES[0], cases.SIZES[5]]
  uploads = [play_alone(method, name, state, number)[0] for number in (0, 5)]
  assert [float(upload.weight) for upload in uploads] == sizes
  first, second = (
    jax.tree.map(lambda leaf, n=n: np.asarray(leaf, np.float64) / n, upload.variables)
    for upload, n in zip(uploads, sizes, strict=True)
  )
  expected = jax.tree.map(lambda a, b: (sizes[0] * a + sizes[1] * b) / sum(sizes), first, second)
  if method in cases.SEND_CHANGES:
    moved = trees.map_prunable(np.add, expected["params"], state.variables["params"])
    expected = {**expected, "params": moved}
  new, _ = cases.server(method, name)(state, cases.add(*uploads))
  cases.assert_close(new.variables, expected, 1e-6)


@pytest.mark.parametrize("method", ["fedavg", "sparsyfed"])
def test_the_server_optimizer_remembers(method):
  # Twice to u = w / 2, with momentum 0.9. First w - u = w / 2 is subtracted. Then nothing is left
  # but 0.9 w / 2, and w / 20 remains.
  state = cases.start(method, "linear", server="momentum")
  upload, _ = cases.run_cohort(method, "linear", state, COHORT)
  half = jax.tree.map(lambda leaf: leaf / 2, state.variables)
  upload = upload._replace(variables=half, weight=jnp.float32(1))
  expected = jax.tree.map(lambda leaf: leaf / 20, state.variables)
  for _ in range(2):
    state, _ = cases.server(method, "linear", server="momentum")(state, upload)
  cases.assert_close(state.variables, expected, 1e-6)


@pytest.mark.parametrize(
  "method", cases.over_methods(["sparsyfed", "topk", "zerofl"], quick=["sparsyfed", "topk"])
)
@pytest.mark.parametrize("optimizer", cases.SERVER_OPTIMIZERS)
def test_what_nobody_keeps_is_zero_whatever_the_server_optimizer(method, optimizer):
  state = cases.start(method, "mlp", server=optimizer)
  rng = np.random.default_rng(0)

  # Any tenth of the weights may be the one that nobody keeps, momentum or not.
  def drop(leaf):
    return jnp.where(jnp.asarray(rng.random(leaf.shape) < 0.1), 0, leaf)

  for i in range(4):
    # Clients do not depend on the server's optimizer: one compilation for all.
    upload, _ = cases.run_cohort(method, "mlp", state, COHORT, key=jax.random.key(i))
    params = trees.map_prunable(drop, upload.variables["params"])
    upload = upload._replace(variables={**upload.variables, "params": params})
    before = cases.flat_kernels(state.variables["params"])
    state, _ = cases.serve(method, "mlp", state, upload, optimizer)
    after, is_dropped = (
      cases.flat_kernels(state.variables["params"]),
      cases.flat_kernels(params) == 0,
    )
    assert np.isfinite(after).all() and (before[is_dropped] != 0).any()
    assert (after[is_dropped] == 0).all()
    assert (after[~is_dropped] != before[~is_dropped]).all()


@pytest.mark.parametrize(
  ("method", "optimizer"),
  cases.over_methods(cases.SEND_MASKED, "sgd", quick=cases.LAWFUL)
  + cases.over_methods(cases.SEND_MASKED, "adam"),
)
def test_outside_the_masks_is_zero_whatever_the_server_optimizer(method, optimizer):
  name = cases.problem_of(method)
  state = cases.start(method, name, server=optimizer)
  if cases.CHOSEN and not hasattr(state, "masks"):
    pytest.skip("keeps no masks beside its model")
  for i in range(5):
    upload, _ = cases.run_cohort(method, name, state, COHORT, key=jax.random.key(i))
    state, _ = cases.serve(method, name, state, upload, optimizer)
    kernels = cases.kernels(state.variables["params"]).values()
    for leaf, mask in zip(kernels, state.masks, strict=True):
      assert np.isfinite(leaf).all() and not np.any(leaf[~np.asarray(mask)])
  assert any(not np.all(mask) for mask in state.masks)
