"""Arrays of a wrong rank or length are refused where they would be broadcast or clamped."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import sparsyfed_jax as sf
from sparsyfed_jax.data.batches import take_batch
from sparsyfed_jax.fed.sampling import sample, uniformly
from sparsyfed_jax.fed.task import classification
from sparsyfed_jax.metrics import mask_iou, regrowth
from sparsyfed_jax.types import Batch, ClientData, tally, weighted

ONE, TWO, KEY = jnp.float32(1), jnp.ones(2), jax.random.key(0)
KERNEL, WIDER = {"kernel": jnp.ones((1, 2))}, {"kernel": jnp.ones((3, 2))}
DATA = ClientData(jnp.ones((4, 2)), jnp.zeros(4, jnp.int32), jnp.arange(4), jnp.int32(4), ONE, ONE)


class Tokens(nn.Module):
  """Logits for every token, which nobody averages."""

  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    return nn.Dense(3)(x)


def evaluate_tokens():
  task = classification(Tokens(), (4, 2))
  batch = Batch(jnp.ones((2, 4, 2)), jnp.zeros(2, jnp.int32), jnp.ones(2, bool))
  return task.evaluate(task.init(KEY), batch)


def evaluate_columns():
  task = classification(sf.models.MLP(3, hidden=()), (2,))
  batch = take_batch(DATA._replace(y=jnp.zeros((4, 1), jnp.int32)), jnp.int32(0), 2)
  return task.evaluate(task.init(KEY), batch)


def evaluate_fewer_examples():
  data = sf.data.digits()
  task = sf.classification(sf.models.MLP(10, hidden=(4,)), data)
  run = sf.simulate(sf.fedavg(), task, sf.data.iid(data))
  return run._replace(x_test=run.x_test[:7]).evaluate(run.init())


@pytest.mark.parametrize(
  "call",
  [
    lambda: sf.fed.weigh({"params": TWO}, TWO),
    lambda: tally(jnp.arange(3)),
    lambda: weighted(ONE, TWO),
    lambda: regrowth(KERNEL, WIDER),
    lambda: mask_iou(KERNEL, WIDER),
    lambda: take_batch(DATA._replace(indices=jnp.zeros((4, 1), jnp.int32)), jnp.int32(0), 2),
    evaluate_columns,
    lambda: sample(KEY, KEY, jnp.ones((3, 1), jnp.int32), 2, uniformly, None),
    evaluate_tokens,
    evaluate_fewer_examples,
  ],
)
def test_a_wrong_rank_is_an_error(call):
  with pytest.raises((AssertionError, ValueError), match="rank|shape"):
    call()
