"""Tasks besides classification, against float64 NumPy: losses, gradients, metrics, guessing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import sparsyfed_jax as sf
from sparsyfed_jax.data.characters import from_pieces
from sparsyfed_jax.fed.simulation import State
from sparsyfed_jax.fed.task import plain_layers
from sparsyfed_jax.fed.tasks import TASKS
from sparsyfed_jax.types import Batch
from tests import cases

TOLERANCE = 1e-5
VALID = np.array([True, False, True, True, False])
TOKENS, LENGTH = 5, 4
# Sequences of 4, 1, 3, 2 and 0 tokens that count.
NEXT = np.array([[1, 0, 4, 2], [3, -1, -1, -1], [2, 2, 0, -1], [1, 4, -1, -1], [-1] * 4])


class Looked(nn.Module):
  """A dense layer of what is looked up for each token: logits that no other token has a part in."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    x = nn.Embed(TOKENS, 3)(x)
    return nn.Dense(TOKENS)(x)


def random_variables(task):
  rng = np.random.default_rng(3)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  return jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)


def token_case():
  x = np.random.default_rng(0).integers(0, TOKENS, NEXT.shape)
  data = sf.data.text("abcd" * 20, num_clients=1, sequence_length=LENGTH)
  assert data.num_classes == TOKENS
  task = sf.next_token(Looked(), data)
  return task, Batch(jnp.int32(x), jnp.int32(NEXT), jnp.asarray(VALID))


def table(num_outputs):
  x = np.float32(np.random.default_rng(1).normal(size=(5, 3)))
  return x, sf.models.MLP(num_outputs, hidden=())


def label_case():
  x, model = table(4)
  y = np.random.default_rng(2).random((5, 4)) < 0.4
  data = sf.data.from_arrays(x, y, x, y, task="multi_label")._replace(mean=0.5, std=2.0)
  return sf.multi_label(model, data), Batch(jnp.asarray(x), jnp.asarray(y), jnp.asarray(VALID))


def number_case(num_outputs=2):
  x, model = table(num_outputs)
  y = np.float32(np.random.default_rng(2).normal(5, 3, (5, num_outputs)))
  y = y if num_outputs > 1 else y[:, 0]
  data = sf.data.from_arrays(x, y, x, y, task="regression")._replace(mean=0.5, std=2.0)
  return sf.regression(model, data), Batch(jnp.asarray(x), jnp.asarray(y), jnp.asarray(VALID))


def dense(params, x):
  return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def tokens_by_numpy(params, batch):
  """Losses, hits and whether they count, of each token."""
  x = np.where(batch.y >= 0, batch.x, 0)
  z = dense(params, params["Embed_0"]["embedding"][x])
  z = z - z.max(-1, keepdims=True)
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  losses = -np.log(np.take_along_axis(p, np.maximum(batch.y, 0)[..., None], -1)[..., 0])
  counted = (batch.y >= 0) & batch.valid[:, None]
  return losses[counted], (z.argmax(-1) == batch.y)[counted]


def tokens_expected(params, batch):
  losses, hits = tokens_by_numpy(params, batch)
  return {"loss": losses.mean(), "accuracy": hits.mean(), "perplexity": np.exp(losses.mean())}


def labels_expected(params, batch):
  z = dense(params, (batch.x - 0.5) / 2)[batch.valid]
  y = batch.y[batch.valid]
  p = 1 / (1 + np.exp(-z))
  named = p > 0.5
  precision, recall = (named & y).sum() / named.sum(), (named & y).sum() / y.sum()
  return {
    "loss": -np.mean(np.where(y, np.log(p), np.log(1 - p))),
    "f1": 2 * precision * recall / (precision + recall),
    "accuracy": np.mean(named == y),
    "exact_match": np.mean((named == y).all(1)),
  }


def numbers_expected(params, batch):
  outputs = dense(params, (batch.x - 0.5) / 2)
  y = batch.y.reshape(5, -1)
  middle, width = y.mean(0), y.std(0)  # of the training set, which has all five
  predicted, y = (outputs * width + middle)[batch.valid], y[batch.valid]
  mse = np.mean((predicted - y) ** 2)
  return {
    "loss": np.mean(((predicted - y) / width) ** 2),
    "mse": mse,
    "mae": np.mean(np.abs(predicted - y)),
    "r2": 1 - mse / np.mean((middle - y) ** 2),
  }


CASES = {
  "next_token": (token_case, tokens_expected),
  "multi_label": (label_case, labels_expected),
  "regression": (number_case, numbers_expected),
  "regression of one": (lambda: number_case(1), numbers_expected),
}


def in_float64(tree):
  def widen(leaf):
    leaf = np.asarray(leaf)
    return leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf

  return jax.tree.map(widen, tree)


def values(task, sums):
  found = {name: np.float64(mean.total) / np.float64(mean.weight) for name, mean in sums.items()}
  return found | {m.name: float(m.of(found)) for m in task.metrics if m.of}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_metrics_are_those_of_numpy(name):
  make, expected_of = CASES[name]
  task, batch = make()
  variables = random_variables(task)
  expected = expected_of(*in_float64((variables["params"], batch)))
  loss, (_, sums) = task.loss(variables, batch, plain_layers, jax.random.key(0))
  assert float(loss) == pytest.approx(expected["loss"], rel=TOLERANCE)
  assert set(sums) == set(task.sums)
  for found in (values(task, sums), values(task, task.evaluate(variables, batch))):
    for metric, value in expected.items():
      assert found[metric] == pytest.approx(value, rel=TOLERANCE), metric
  assert {metric.name for metric in task.metrics} == set(expected) - {"loss"}
  assert task.metrics == TASKS[name.split()[0]].metrics


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_numpy_by_differences(name):
  make, expected_of = CASES[name]
  task, batch = make()
  variables = random_variables(task)

  def loss(variables):
    return task.loss(variables, batch, plain_layers, jax.random.key(0))[0]

  gradient = jax.grad(loss)(variables)
  params, plain = in_float64((variables["params"], batch))
  flat, treedef = jax.tree.flatten(params)
  for place, leaf in enumerate(flat):
    for index in list(np.ndindex(leaf.shape))[:5]:
      pair = []
      for step in (1e-6, -1e-6):
        moved = [other.copy() for other in flat]
        moved[place][index] += step
        pair.append(expected_of(treedef.unflatten(moved), plain)["loss"])
      expected = (pair[0] - pair[1]) / 2e-6
      found = jax.tree.leaves(gradient["params"])[place][index]
      assert float(found) == pytest.approx(expected, abs=1e-5, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_nobody_has_no_loss_and_no_gradient(name):
  task, batch = CASES[name][0]()
  batch = batch._replace(valid=jnp.zeros(5, bool))
  variables = random_variables(task)

  def loss(variables):
    return task.loss(variables, batch, plain_layers, jax.random.key(0))

  (value, (_, sums)), gradient = jax.value_and_grad(loss, has_aux=True)(variables)
  assert float(value) == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
  assert all(float(leaf) == 0 for leaf in jax.tree.leaves(sums))


@pytest.mark.parametrize("name", CASES)
def test_each_example_alone_has_what_all_have_together(name):
  task, batch = CASES[name][0]()
  variables = random_variables(task)
  each = task.score_each(variables, batch._replace(valid=jnp.ones(5, bool)))
  total, weight = (float(np.sum(np.asarray(leaf)[VALID])) for leaf in each)
  compared = TASKS[name.split()[0]].compared.name
  together = task.evaluate(variables, batch)[compared]
  assert total / weight == pytest.approx(float(together.value), rel=TOLERANCE)


def test_what_padding_holds_changes_no_bit():
  task, batch = token_case()
  variables = random_variables(task)
  other = jnp.where(batch.y >= 0, batch.x, (batch.x + 2) % TOKENS)
  assert np.any(other != batch.x)

  def everything(batch):
    def loss(variables):
      return task.loss(variables, batch, plain_layers, jax.random.key(0))

    return jax.value_and_grad(loss, has_aux=True)(variables), task.score_each(variables, batch)

  cases.assert_same_bits(everything(batch), everything(batch._replace(x=other)))


def test_longer_padding_changes_only_how_sums_are_rounded():
  pieces = {"a": "abcdabcd" * 3, "b": "dcbadc", "c": "abdc" * 2}
  found = []
  for length in (19, 23):  # a row each: only padding differs
    data = from_pieces(pieces, length, "toy")
    assert data.x_train.shape == (3, length)
    task = sf.next_token(Looked(), data)
    batch = Batch(*map(jnp.asarray, (data.x_train, data.y_train, np.ones(len(data.y_train), bool))))
    variables = random_variables(task)
    loss, (_, sums) = task.loss(variables, batch, plain_layers, jax.random.key(0))
    found.append((float(loss), float(sums["accuracy"].total), float(sums["loss"].weight)))
  assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_perplexity_is_of_the_mean_loss_of_all_batches():
  # Clients and batches of very different losses: a mean of perplexities would be far off.
  data = from_pieces({"a": "abcd" * 20, "b": "dddd" * 40}, LENGTH, "toy")
  task = sf.next_token(Looked(), data)
  run = sf.simulate(
    sf.fedavg(), task, sf.data.natural(data), clients_per_round=2, local_epochs=1, rounds=1
  )
  state, rows = run.rounds(run.init(seed=0), 1)
  sizes = dict(clients_per_round=2, clients_per_chunk=2, rounds_per_call=1, eval_batch_size=3)
  engine = sf.fed.simulate(run.algorithm, task, **sizes)
  found = engine.evaluate(State(state.server, ()), run.x_test, run.y_test)
  scores = {name: float(score) for name, score in found.items()}
  assert scores == pytest.approx(run.evaluate(state), rel=1e-5)
  assert scores["test_perplexity"] == pytest.approx(np.exp(scores["test_loss"]), rel=1e-5)
  assert rows["train_perplexity"][0] == pytest.approx(np.exp(rows["train_loss"][0]), rel=1e-5)
  assert int(rows["examples"][0]) == len(data.y_train)  # sequences, not tokens
  whole = Batch(*map(jnp.asarray, (data.x_test, data.y_test, np.ones(len(data.y_test), bool))))
  expected = task.evaluate(run.model(state), whole)["loss"].value
  assert scores["test_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_guessing_by_hand():
  accuracy, f1 = TASKS["classification"].main, TASKS["multi_label"].main
  perplexity, mse = TASKS["next_token"].main, TASKS["regression"].main
  assert accuracy.chance(np.array([2, 2, 5, 2])).level == 0.75
  # Three of four tokens are 1: e^(entropy).
  entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
  tokens = np.array([[1, 1, -1], [1, 0, -1]] * 50)
  found = perplexity.chance(tokens)
  assert found.level == pytest.approx(np.exp(entropy))
  spread = np.std(-np.log([0.75, 0.75, 0.75, 0.25]))
  assert found.limit == pytest.approx(np.exp(entropy - 2 * spread / np.sqrt(200)))
  # Naming label 0 alone: 3 hits of 4 named and 4 there; both labels: 4 of 8 named.
  labels = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], bool)
  assert f1.chance(labels).level == pytest.approx(max(2 * 3 / (4 + 4), 2 * 4 / (8 + 4)))
  assert mse.chance(np.array([1.0, 3.0])) == (1.0, 1.0)
  assert mse.chance(np.ones(3)).limit is None
  assert perplexity.chance(np.zeros((3, 2), int)) == (1, None)


def test_metrics_know_which_way_is_better():
  accuracy, perplexity = TASKS["next_token"].compared, TASKS["next_token"].main
  assert accuracy.is_better(0.5, 0.4) and not perplexity.is_better(5, 4)
  assert perplexity.reaches(4, 4) and perplexity.reaches(3, 4) and not perplexity.reaches(5, 4)
  assert accuracy.worst(np.array([0.1, 0.7])) == 0.1
  assert TASKS["regression"].main.worst(np.array([0.1, 0.7])) == 0.7
  assert (accuracy.text(0.5), perplexity.text(4.5)) == ("50.00 %", "4.500")


def toy(kind):
  x = np.ones((4, 3))
  y = {"classification": [0, 1, 0, 1], "regression": [0.5, 1, 2, 3], "multi_label": np.eye(4)}[kind]
  return sf.data.from_arrays(x, np.array(y), x, np.array(y), task=kind)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: sf.next_token(Looked(), toy("classification")), "data: y must be .* tokens"),
    (
      lambda: sf.multi_label(sf.models.MLP(4), toy("regression")),
      "y must be .* booleans, is float",
    ),
    (lambda: sf.regression(sf.models.MLP(4), toy("multi_label")), r"y must be .* floats, is bool"),
    (lambda: sf.multi_label(sf.models.MLP(3), toy("multi_label")), r"MLP: .*\(3,\).*\(4,\)"),
    (lambda: sf.regression(sf.models.MLP(3), toy("regression")), r"MLP: .*\(3,\).*\(1,\)"),
    (
      lambda: sf.next_token(Looked(), sf.data.text("abcde" * 20, 1, sequence_length=7)),
      r"Looked: .*\(7, 5\).*\(7, 6\)",
    ),
  ],
)
def test_a_task_that_does_not_fit_is_refused(make, message):
  with pytest.raises(ValueError, match=message) as caught:
    make()
  assert "\n" not in str(caught.value)
