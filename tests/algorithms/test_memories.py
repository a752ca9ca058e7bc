"""Rounds of methods whose clients keep something between them, against the plain reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.fed.optimizers import adamw, sgd
from sparsyfed_jax.fed.server import alike
from tests import cases
from tests.algorithms import reference, reference_memories
from tests.algorithms.reference_net import each
from tests.algorithms.test_reference import TOLERANCE, VALUES, assert_noticed, plain_method

# Who takes part: again and again, never, without examples (client 1); sizes 7, 6, 3, 1, 0, 1, 4.
COHORTS = ((3, 0, 5), (2, 1, 3), (0, 3, 4), (3, 5, 0))
ABSENT = {2: 0}  # in the round of this index, who vanishes
STRAGGLER = {1: 3, 3: 0}  # and who does less than half of its epochs
WORK = 0.4


def cohort_of(index):
  cohort = cases.members(COHORTS[index])
  is_slow = cohort.numbers == STRAGGLER.get(index, -1)
  return cohort._replace(
    is_present=cohort.numbers != ABSENT.get(index, -1), work=jnp.where(is_slow, WORK, 1.0)
  )


def plain_clients(index, key):
  """Makes the clients of a round, a straggler with the first batches of its epochs alone."""
  federation, clients = cases.problem("cnn").federation, {}
  for number in COHORTS[index]:
    if number == ABSENT.get(index):
      continue
    data, own_key = cases.client_data(federation, number), jax.random.fold_in(key, number)
    client = reference.make_client(data, own_key, cases.BATCH_SIZE, cases.EPOCHS)
    if number == STRAGGLER.get(index):
      epochs = [batches[: int(np.ceil(WORK * len(batches)))] for batches in client.epochs]
      assert len(epochs[0]) < len(client.epochs[0])
      client = client._replace(epochs=epochs)
    clients[number] = client
  return clients


def play(variant):
  """Runs rounds; returns for each the state and the memories before it, and those after it."""
  state, kept, *_ = cases.whole(variant, "cnn", cases.start(variant, "cnn", hyper(variant)))
  rounds = []
  for index in range(len(COHORTS)):
    download = cases.algorithm(variant, "cnn").broadcast(state)
    key, federation = jax.random.key(50 + index), cases.problem("cnn").federation
    run = cases.cohort(variant, "cnn")
    upload, after, _ = run(download, kept, federation, cohort_of(index), key)
    new, _ = cases.server(variant, "cnn")(state, upload)
    rounds.append((key, (state, kept), (new, after)))
    state, kept = new, after
  return rounds


def hyper(variant):
  return cases.hyper(variant, **VALUES)


def named(kernels, row):
  params = cases.variables("cnn")["params"]
  return {name: np.asarray(leaf[row]) for name, leaf in zip(params, kernels, strict=True)}


def row_of(tree, number):
  return jax.tree.map(lambda leaf: np.asarray(leaf[number], np.float64), tree)


def test_rounds_of_scaffold_are_those_of_the_plain_reference():
  total_weight = float(sum(cases.SIZES))
  for index, (key, (state, kept), (new, after)) in enumerate(play("scaffold")):
    clients = plain_clients(index, key)

    def compare(method, tolerance, index=index, clients=clients, before=(state, kept), new=new):
      state, kept = before
      own = {number: row_of(kept, number) for number in range(len(cases.SIZES))}
      params, control = reference_memories.scaffold_round(
        method,
        index + 1,
        state.variables["params"],
        reference.double(state.extra),
        own,
        clients,
        cases.EPOCHS,
        total_weight,
      )
      cases.assert_close((new.variables["params"], new.extra), (params, control), tolerance)
      return own

    own = compare(plain_method("scaffold"), TOLERANCE)
    for number in range(len(cases.SIZES)):
      cases.assert_close(row_of(after, number), own[number], TOLERANCE)
    assert all(
      np.any(leaf) == (number in sum(COHORTS[: index + 1], ()) and number not in (1, 6))
      for number in range(len(cases.SIZES))
      for leaf in jax.tree.leaves(own[number])[1:2]
    )
    changes = {"client_lr": 0.5, "weight_decay": 0.3, "server_lr": 0.8}
    others = [plain_method("scaffold", **{name: value}) for name, value in changes.items()]
    assert_noticed(compare, others)


def test_rounds_of_feddyn_are_those_of_the_plain_reference():
  total_weight = float(sum(cases.SIZES))
  for index, (key, (state, kept), (new, after)) in enumerate(play("feddyn")):
    clients = plain_clients(index, key)

    def compare(method, tolerance, index=index, clients=clients, before=(state, kept), new=new):
      state, kept = before
      alpha = method.values["feddyn_alpha"]

      def gradient(offset):
        return each(lambda leaf: -alpha * leaf, offset)

      own = {number: gradient(row_of(kept, number)) for number in range(len(cases.SIZES))}
      params, h = reference_memories.feddyn_round(
        method,
        index + 1,
        state.variables["params"],
        gradient(reference.double(state.extra)),
        own,
        clients,
        cases.EPOCHS,
        total_weight,
      )
      found = new.variables["params"], gradient(reference.double(new.extra))
      cases.assert_close(found, (params, h), tolerance)
      return {number: each(lambda leaf: leaf / -alpha, rows) for number, rows in own.items()}

    own = compare(plain_method("feddyn"), TOLERANCE)
    for number in range(len(cases.SIZES)):
      cases.assert_close(row_of(after, number), own[number], TOLERANCE)
    changes = {"client_lr": 0.5, "weight_decay": 0.3, "server_lr": 0.8, "feddyn_alpha": 0.5}
    others = [plain_method("feddyn", **{name: value}) for name, value in changes.items()]
    assert_noticed(compare, others)


@pytest.mark.parametrize("weighting", ["size", "uniform"])
@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_the_servers_memory_is_the_mean_of_all_clients(method, weighting):
  setup = {"client_weight": alike} if weighting == "uniform" else {}
  weights = np.array(cases.SIZES, float)
  if weighting == "uniform":
    weights = (weights > 0).astype(float)
  total = weights.sum()
  start = cases.start(method, "cnn", cases.hyper(method, total_weight=total))
  state, kept, *_ = cases.whole(method, "cnn", start)
  for index in range(len(COHORTS)):
    download = cases.algorithm(method, "cnn").broadcast(state)
    run = cases.cohort(method, "cnn", **setup)
    arguments = cases.problem("cnn").federation, cohort_of(index), jax.random.key(index)
    upload, kept, _ = run(download, kept, *arguments)
    state, _ = cases.server(method, "cnn")(state, upload)
  mean = jax.tree.map(lambda leaf: np.tensordot(weights / total, np.asarray(leaf), 1), kept)
  cases.assert_close(state.extra, mean, 1e-5)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(mean))


def test_rounds_with_feedback_are_those_of_the_plain_reference():
  for index, (key, (state, kept), (new, after)) in enumerate(
    play("sparsyfed-changes-with-feedback")
  ):
    clients = plain_clients(index, key)

    def compare(method, tolerance, index=index, clients=clients, before=(state, kept), new=new):
      state, kept = before
      rest = {number: named(kept, number) for number in range(len(cases.SIZES))}
      params = reference_memories.feedback_round(
        method, index + 1, state.variables["params"], rest, clients, cases.EPOCHS
      )
      cases.assert_close(new.variables["params"], params, tolerance)
      return rest

    rest = compare(plain_method("sparsyfed-changes-with-feedback"), TOLERANCE)
    for number in range(len(cases.SIZES)):
      cases.assert_close(named(after, number), rest[number], TOLERANCE)
    changes = {"client_lr": 0.5, "weight_decay": 0.3, "density": 0.26, "beta": 1.15}
    assert_noticed(
      compare,
      [plain_method("sparsyfed-changes-with-feedback", **{k: v}) for k, v in changes.items()],
    )


def test_rounds_of_spafl_are_those_of_the_plain_reference():
  numbers, seen = range(len(cases.SIZES)), []
  for index, (key, (state, kept), (new, after)) in enumerate(play("spafl")):
    clients = plain_clients(index, key)

    def plain(kept):
      rows = [row_of(kept, number) for number in numbers]
      return {n: (row.variables["params"], *row[1:]) for n, row in zip(numbers, rows, strict=True)}

    def compare(method, tolerance, index=index, clients=clients, before=(state, kept), new=new):
      state, kept = before
      own = plain(kept)
      thresholds = reference_memories.spafl_round(
        method,
        index + 1,
        jax.tree.map(np.float64, state.variables["params"]),
        own,
        clients,
        cases.EPOCHS,
      )
      cases.assert_close(new.variables["params"], thresholds, tolerance)
      return own, thresholds

    own, thresholds = compare(plain_method("spafl"), TOLERANCE)
    cases.assert_close(plain(after), own, TOLERANCE)
    made = cases.algorithm("spafl", "cnn")
    for number in numbers:
      # Of who takes part, who does not, and whoever never has.
      row = jax.tree.map(lambda leaf, n=number: leaf[n], after)
      found = made.client_model(made.broadcast(new), row)["params"]
      params, received, ended = own[number]
      moved = reference_memories.followed(params, received, thresholds)
      cases.assert_close(found, reference_memories.spafl_model(moved, ended), TOLERANCE)
      seen += [leaf.any(tuple(range(leaf.ndim - 1))) for leaf in cases.kernels(found).values()]
    start = reference.double(cases.variables("cnn")["params"])
    nothing = {name: np.zeros_like(tau) for name, tau in thresholds.items()}
    first = reference_memories.followed(start, nothing, thresholds)
    expected = reference_memories.spafl_model(first, thresholds)
    cases.assert_close(made.model(new)["params"], expected, TOLERANCE)
    changes = {"client_lr": 0.5, "weight_decay": 0.3, "server_lr": 0.8, "spafl_penalty": 0.2}
    others = [plain_method("spafl", **{name: value}) for name, value in changes.items()]
    assert_noticed(compare, others)
  left = np.concatenate(seen)
  assert 0.1 < left.mean() < 0.95


@pytest.mark.parametrize("optimizer", [sgd(0.9), sgd(0.9, nesterov=True), adamw])
def test_scaffold_refuses_steps_that_remember_earlier_ones(optimizer):
  setup = cases.make_setup(cases.problem("mlp").task)
  setup = setup._replace(local=setup.local._replace(optimizer=optimizer))
  with pytest.raises(ValueError, match="SGD without momentum"):
    cases.form("scaffold", setup)
