"""Small models of four libraries as functions of (params, *args), for the layer transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

BATCH = 4
KEY = jax.random.key(0)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, TOKENS, IMAGES = normal(BATCH, 6), normal(BATCH, 3, 6), normal(BATCH, 6, 6, 4)
WORDS = jnp.arange(BATCH * 3).reshape(BATCH, 3) % 7


def of_linen(model, x=TOKENS, axes=0):
  """A linen model, its parameters without compiling an initialiser, an input."""
  shapes = jax.eval_shape(model.init, KEY, x)
  variables = {"params": {}} | draw(shapes)
  state = {name: part for name, part in variables.items() if name != "params"}

  def fn(params, x):
    return model.apply({**state, "params": params}, x, mutable=list(state))

  return fn, variables["params"], (x,), axes


def draw(shapes):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 3, s.dtype), shapes)


def compact(function):
  """A linen module of a function of its input."""

  class Made(nn.Module):
    @nn.compact
    def __call__(self, x):
      return function(self, x)

  return Made()


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.Dense(6)(nn.gelu(nn.LayerNorm()(x))), None


def scanned_layers(module, x):
  layers = nn.scan(
    nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
  )
  return nn.Dense(2)(layers()(x, None)[0])


def tied(module, words):
  embed = nn.Embed(7, 6)
  return embed.attend(nn.tanh(nn.Dense(6)(embed(words))))


def mixture(module, x):
  gates = nn.softmax(nn.Dense(3)(x))
  experts = module.param("experts", nn.initializers.normal(), (3, 6, 5))
  return jnp.einsum("bte,eio,bti->bto", gates, experts, x)


def branches(module, x):
  w = module.param("w", nn.initializers.normal(), (6, 6))
  x = lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x))[1]
  return lax.cond(jnp.sum(x) > 0, lambda x: x @ w, lambda x: x, x)


def merged(module, x):
  y = nn.Dense(6)(x.reshape(-1, 6)).reshape(x.shape)
  y = nn.Dense(6, name="turned")(jnp.swapaxes(y, 0, 1))
  return nn.Dense(2, name="both")(y.reshape(-1, 6))


def positions(module, x):
  table = jnp.sin(jnp.arange(18.0).reshape(3, 6))
  return nn.Dense(5, name="of_x")(x) + nn.Dense(5, name="of_table")(table)


def normalised(module, x):
  x = nn.BatchNorm(use_running_average=False)(nn.Conv(8, (3, 3))(x))
  return nn.Dense(3)(nn.avg_pool(nn.relu(x), (2, 2), (2, 2)).reshape(x.shape[0], -1))


def heads(module, x):
  dense = nn.vmap(
    nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
  )
  return dense(4)(x)


def of_nnx(make, x):
  graph, params, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)

  def fn(params, rest, x):
    module = nnx.merge(graph, params, jax.tree.map(jnp.asarray, rest))
    return module(x), nnx.state(module, nnx.BatchStat)

  return fn, params, (rest, x), (None, 0)


class NnxConvolutions(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    return self.head(self.drop(jnp.mean(nnx.relu(self.norm(self.conv(x))), (1, 2))))


class NnxSequence(nnx.Module):
  def __init__(self, rngs):
    self.rnn = nnx.RNN(nnx.GRUCell(6, 6, rngs=rngs))
    self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)

  def __call__(self, x):
    return self.attention(self.rnn(x))


def of_equinox(make, x):
  eqx = pytest.importorskip("equinox")
  params, static = eqx.partition(make(eqx), eqx.is_inexact_array)

  def fn(params, x):
    return jax.vmap(eqx.combine(params, static))(x)

  return fn, params, (x,), 0


def eqx_convolutions(eqx):
  conv = eqx.nn.Conv2d(6, 5, 3, key=KEY)
  mlp = eqx.nn.MLP(5, 3, 7, 1, key=KEY)
  return eqx.nn.Sequential([conv, eqx.nn.Lambda(lambda y: jnp.mean(y, (1, 2))), mlp])


def of_eqx_cell(eqx_name, x):
  eqx = pytest.importorskip("equinox")
  params, static = eqx.partition(getattr(eqx.nn, eqx_name)(6, 5, key=KEY), eqx.is_inexact_array)

  def fn(params, x):
    cell = eqx.combine(params, static)
    start = (jnp.zeros(5), jnp.zeros(5)) if eqx_name == "LSTMCell" else jnp.zeros(5)

    def run(x):
      return lax.scan(lambda h, x: (cell(x, h), None), start, x)[0]

    return jax.vmap(run)(x)

  return fn, params, (x,), 0


def eqx_attention(eqx):
  attention = eqx.nn.MultiheadAttention(2, 6, key=KEY)

  class SelfAttention(eqx.Module):
    inner: eqx.nn.MultiheadAttention

    def __call__(self, x):
      return self.inner(x, x, x)

  return SelfAttention(attention)


def of_haiku(make, x, axes=0):
  hk = pytest.importorskip("haiku")
  model = hk.without_apply_rng(hk.transform(lambda x: make(hk, x)))
  return model.apply, draw(jax.eval_shape(model.init, KEY, x)), (x,), axes


def haiku_convolutions(hk, x):
  return hk.Linear(3)(hk.Flatten()(jax.nn.relu(hk.Conv2D(5, 3)(x))))


def haiku_sequence(hk, x):
  core = hk.LSTM(5)
  y, _ = hk.dynamic_unroll(core, jnp.swapaxes(x, 0, 1), core.initial_state(BATCH))
  start = hk.initializers.VarianceScaling()
  return hk.Linear(2)(hk.MultiHeadAttention(2, 4, w_init=start)(y, y, y))


def plain(params, x):
  for w in params:
    x = jax.nn.relu(jnp.einsum("bi,oi->bo", x, w))
  return x


def rnn(cell, **options):
  return of_linen(nn.RNN(cell(5), **options))


# Makers of (function, parameters, other arguments, where the batch is in those).
FUNCTIONS = {
  "dense": lambda: of_linen(nn.Dense(5), X),
  "dense of several axes": lambda: of_linen(
    nn.Sequential([nn.DenseGeneral((3, 4)), nn.relu, nn.DenseGeneral(5, axis=(-2, -1))])
  ),
  "einsum": lambda: of_linen(nn.Einsum((6, 3), "bti,io->bto")),
  "convolution": lambda: of_linen(nn.Conv(5, (3, 3), strides=2), IMAGES),
  "depthwise": lambda: of_linen(nn.Conv(8, (3, 3), feature_group_count=4), IMAGES),
  "grouped": lambda: of_linen(nn.Conv(6, (3, 3), feature_group_count=2), IMAGES),
  "dilated": lambda: of_linen(nn.Conv(5, (3, 3), kernel_dilation=2), IMAGES),
  "transposed": lambda: of_linen(nn.ConvTranspose(5, (3, 3), (2, 2)), IMAGES),
  "local": lambda: of_linen(nn.ConvLocal(3, (3, 3)), IMAGES),
  "batch norm": lambda: of_linen(compact(normalised), IMAGES),
  "attention": lambda: of_linen(nn.MultiHeadDotProductAttention(2)),
  "tied embedding": lambda: of_linen(compact(tied), WORDS),
  "layers scanned and rematerialised": lambda: of_linen(compact(scanned_layers)),
  "mixture of experts": lambda: of_linen(compact(mixture)),
  "mapped heads": lambda: of_linen(compact(heads)),
  "while and cond": lambda: of_linen(compact(branches), X),
  "merged axes": lambda: of_linen(compact(merged)),
  "positions": lambda: of_linen(compact(positions)),
  "GRU": lambda: rnn(nn.GRUCell),
  "LSTM": lambda: rnn(nn.LSTMCell),
  "LSTM, time first": lambda: of_linen(
    nn.RNN(nn.LSTMCell(5), time_major=True), jnp.swapaxes(TOKENS, 0, 1), (1,)
  ),
  "nnx convolutions": lambda: of_nnx(NnxConvolutions, IMAGES),
  "nnx GRU and attention": lambda: of_nnx(NnxSequence, TOKENS),
  "equinox convolutions": lambda: of_equinox(eqx_convolutions, IMAGES),
  "equinox GRU": lambda: of_eqx_cell("GRUCell", TOKENS),
  "equinox LSTM": lambda: of_eqx_cell("LSTMCell", TOKENS),
  "equinox attention": lambda: of_equinox(eqx_attention, TOKENS),
  "haiku convolutions": lambda: of_haiku(haiku_convolutions, IMAGES),
  "haiku LSTM and attention": lambda: of_haiku(haiku_sequence, TOKENS),
  "plain": lambda: (plain, [normal(5, 6), normal(3, 5)], (X,), 0),
}
# How many products with parameters each has, written down by hand.
NUMBERS = {
  "dense": 1,
  "dense of several axes": 2,
  "einsum": 1,
  "convolution": 1,
  "depthwise": 1,
  "grouped": 1,
  "dilated": 1,
  "transposed": 1,
  "local": 1,
  "batch norm": 2,
  "attention": 4,  # query, key, value, out
  "tied embedding": 2,
  "layers scanned and rematerialised": 2,
  "mixture of experts": 2,
  "mapped heads": 1,
  "while and cond": 2,
  "merged axes": 3,
  "positions": 2,
  "GRU": 6,
  "LSTM": 8,
  "LSTM, time first": 8,
  "nnx convolutions": 2,
  "nnx GRU and attention": 2 + 4,
  "equinox convolutions": 3,
  "equinox GRU": 2,
  "equinox LSTM": 2,
  "equinox attention": 4,
  "haiku convolutions": 2,
  "haiku LSTM and attention": 1 + 4 + 1,
  "plain": 2,
}
