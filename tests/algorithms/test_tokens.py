"""Rounds on ragged sequences of tokens: methods against NumPy, and padding for all of them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import sparsyfed_jax as sf
from sparsyfed_jax.data.characters import from_pieces
from sparsyfed_jax.fed.cohort import federation_of
from tests import cases

LENGTH, RATE, DECAY = 6, 0.3, 0.01
# Training sequences of 6 and 1 tokens; of 3; of none.
DATA = from_pieces({"a": "abcdabcd" + "dd", "b": "dcba" + "d", "c": "a"}, LENGTH, "toy")
EMPTY = 2


class Looked(nn.Module):
  """A dense layer of what is looked up for each token."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    x = nn.Embed(DATA.num_classes, 3)(x)
    return nn.Dense(DATA.num_classes)(x)


MODELS = {
  "looked": Looked(),
  "lstm": sf.models.LSTM(DATA.num_classes, dim=3, hidden=2),
  "transformer": sf.models.Transformer(DATA.num_classes, dim=4, depth=1, heads=2, mlp_ratio=1),
}


@cache
def task(name):
  return sf.next_token(MODELS[name], DATA)


def federation(junk=0):
  """Puts clients together, with something in the places that are padding."""
  x = np.where(DATA.y_train >= 0, DATA.x_train, junk)
  return jax.tree.map(jnp.asarray, federation_of(x, DATA.y_train, sf.data.natural(DATA).parts))


def start(name="looked"):
  rng = np.random.default_rng(5)
  shapes = jax.eval_shape(task(name).init, jax.random.key(0))
  return jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), shapes)


@cache
def algorithm(method, name):
  return cases.form(method, cases.make_setup(task(name), epochs=1))


@cache
def client(method, name):
  return jax.jit(algorithm(method, name).client)


def play(method, number, junk=0, name="looked"):
  hyper = cases.hyper(method, client_lr=RATE, client_lr_final=RATE, weight_decay=DECAY)
  own = algorithm(method, name)
  state = own.init(start(name), hyper, jax.random.key(1))
  data = cases.client_data(federation(junk), number)
  memory = own.memory(start(name), hyper)
  return client(method, name)(own.broadcast(state), memory, data, jax.random.key(2))


def step_by_numpy(number):
  """Takes a client's one step in float64; returns its parameters and the loss before it."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start()["params"])
  mine = DATA.client_train == number
  is_token = DATA.y_train[mine] >= 0
  x, y = DATA.x_train[mine][is_token], DATA.y_train[mine][is_token]
  embedding, dense = params["Embed_0"]["embedding"], params["Dense_0"]
  features = embedding[x]
  z = features @ dense["kernel"] + dense["bias"]
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  loss = -np.mean(np.log(p[np.arange(len(y)), y]))
  slope = (p - np.eye(DATA.num_classes)[y]) / len(y)
  by_token = np.zeros_like(embedding)
  np.add.at(by_token, x, slope @ dense["kernel"].T)
  gradient = {
    "Embed_0": {"embedding": by_token},
    "Dense_0": {"kernel": features.T @ slope, "bias": slope.sum(0)},
  }
  new = jax.tree.map(lambda w, g: w - RATE * (g + DECAY * w), params, gradient)
  return new, loss


@pytest.mark.parametrize("number", [0, 1])
def test_a_round_of_fedavg_is_that_of_numpy(number):
  upload, _, metrics = play("fedavg", number)
  expected, loss = step_by_numpy(number)
  weight = float(upload.weight)
  assert weight == [2, 1][number]  # sequences
  sent = jax.tree.map(lambda leaf: leaf / weight, upload.variables["params"])
  cases.assert_close(sent, expected, 1e-5)
  assert float(metrics["train_loss"].value) == pytest.approx(loss, rel=1e-5)
  assert float(metrics["train_loss"].weight) == [7, 3][number]  # tokens


def test_a_round_of_topk_keeps_the_largest_weights_of_it():
  upload, _, _ = play("topk", 0)
  expected, _ = step_by_numpy(0)
  kernel = expected["Dense_0"]["kernel"]
  count = round(cases.HYPER["density"] * kernel.size)
  least = np.sort(np.abs(kernel).ravel())[-count]
  expected["Dense_0"]["kernel"] = np.where(np.abs(kernel) >= least, kernel, 0)
  weight = float(upload.weight)
  sent = jax.tree.map(lambda leaf: leaf / weight, upload.variables["params"])
  cases.assert_close(sent, expected, 1e-5)


# Every form with a loop over time, which cannot be made narrower; attention with the methods whose
# layers differ.
EVERY = [
  *cases.over_methods(
    [name for name in cases.FORMS if name != "heterofl"], "lstm", quick=cases.FEW
  ),
  *cases.over_methods(
    [] if cases.CHOSEN else ["fedavg", "sparsyfed", "zerofl"], "transformer", quick=["sparsyfed"]
  ),
]


@pytest.mark.parametrize(("method", "name"), EVERY)
class TestEveryMethod:
  def test_what_padding_holds_changes_no_bit(self, method, name):
    first, second = play(method, 0, name=name), play(method, 0, junk=3, name=name)
    cases.assert_same_bits(first, second)
    leaves = jax.tree.leaves(first)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves) and any(map(np.any, leaves))

  def test_an_empty_client_uploads_zeros(self, method, name):
    upload, _, metrics = play(method, EMPTY, name=name)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves((upload, metrics)))
