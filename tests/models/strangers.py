"""One small network in four libraries, and another of plain functions."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from tests import cases


class Linen(nn.Module):
  """A convolution, batch norm, dropout and a dense layer, none of which knows of this library."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (3, 3))(x)))
    x = nn.Dropout(0.25, deterministic=not train)(x)
    return nn.Dense(cases.NUM_CLASSES)(x.reshape(x.shape[0], -1))


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(3, rngs=rngs)
    self.drop = nnx.Dropout(0.25, rngs=rngs)
    self.head = nnx.Linear(3 * 16, cases.NUM_CLASSES, rngs=rngs)

  def __call__(self, x):
    x = self.drop(nnx.relu(self.norm(self.conv(x))))
    return self.head(x.reshape(x.shape[0], -1))


def equinox_model(key):
  """Written for one example, with state."""
  eqx = pytest.importorskip("equinox")

  class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
      self.conv = eqx.nn.Conv2d(1, 3, 3, padding=1, key=key)
      self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")
      self.drop = eqx.nn.Dropout(0.25)
      self.head = eqx.nn.Linear(3 * 16, cases.NUM_CLASSES, key=key)

    def __call__(self, x, state, key=None):
      x, state = self.norm(self.conv(jnp.moveaxis(x, -1, 0)), state)
      return self.head(self.drop(jax.nn.relu(x), key=key).reshape(-1)), state

  return eqx.nn.make_with_state(Equinox)(key)


def haiku_model():
  hk = pytest.importorskip("haiku")

  def run(x, is_training):
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(3, 3)(x), is_training))
    if is_training:
      x = hk.dropout(hk.next_rng_key(), 0.25, x)
    return hk.Linear(cases.NUM_CLASSES)(hk.Flatten()(x))

  return hk.transform_with_state(run)


def plain_model():
  def init(key):
    return [jax.random.normal(key, (16, 8)) / 4, jax.random.normal(key, (8, cases.NUM_CLASSES)) / 3]

  def apply(params, x, train):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ params[0]) @ params[1]

  return init, apply


SHAPE = (4, 4, 1)
# Makers of a model, how its own library evaluates what `to_model` gives, names of layers.
MODELS = {
  "linen": (Linen, lambda own, x: Linen().apply(own, x), ("Conv_0", "Dense_0")),
  "nnx": (lambda: Nnx(nnx.Rngs(0)), lambda own, x: own(x), ("conv", "head")),
  "equinox": (
    lambda: equinox_model(jax.random.key(0)),
    lambda own, x: jax.vmap(lambda one: own[0](one, own[1])[0], axis_name="batch")(x),
    ("conv/weight", "head/weight"),
  ),
  "haiku": (
    haiku_model,
    lambda own, x: haiku_model().apply(*own, None, x, False)[0],
    ("conv2_d/w", "linear/w"),
  ),
  "plain": (plain_model, lambda own, x: plain_model()[1](own, x, False), ("0", "1")),
}
