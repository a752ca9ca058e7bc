"""Rounds worked by hand, on linear models whose two classes stay equally likely.

The two columns of the kernel are equal, and so are the biases. So both logits of an example are
equal, softmax gives 1/2 and 1/2, the loss is ln 2, and the gradient of an example's logits is
(-1/2, 1/2) for class 0 and (1/2, -1/2) for class 1: a multiple of (1, -1).
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.data.shuffle import shuffle
from sparsyfed_jax.fed.simulation import State, simulate
from sparsyfed_jax.fed.task import classification
from sparsyfed_jax.models import MLP
from sparsyfed_jax.types import total
from tests import cases

APART = np.array([1.0, -1.0])


def linear(kernel, bias):
  return {"params": {"Dense_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}


def make(method, num_features, batch_size):
  task = classification(MLP(2, hidden=()), (num_features,))
  return task, METHODS[method].algorithm(cases.make_setup(task, batch_size, epochs=1))


@cache
def make_simulation(method, num_features, num_clients):
  task, algorithm = make(method, num_features, batch_size=4)
  run = simulate(algorithm, task, num_clients, 2, rounds_per_call=1, eval_batch_size=4).run
  return algorithm, run


def run_one_round(method, variables, x, y, parts, values):
  """Runs round 1 of a simulation in which all clients take part, in batches of 4."""
  algorithm, run = make_simulation(method, len(x[0]), len(parts))
  state = cases.copy(algorithm.init(variables, cases.hyper(method, **values), jax.random.key(0)))
  federation = cases.make_federation(np.asarray(x, float), np.asarray(y), parts)
  (state, *_), rows = run(State(state, ()), federation, jax.random.key(0), 1)
  row = {name: float(column[0]) for name, column in rows.items() if column.ndim == 1}
  uplink, examples = (total(rows[name][0]) for name in ("round_uplink_bytes", "examples"))
  return algorithm, state, {**row, "uplink_bytes": uplink / row["clients"], "examples": examples}


def assert_row(row, **expected):
  assert row == pytest.approx(row | expected, rel=1e-6)


def assert_linear(variables, kernel, bias):
  cases.assert_close(variables, linear(kernel, bias), 1e-6)


# The rate of round 1 of 2, halfway from 1 to 1/4 by an exponential, is 1/2. With an L2 factor of
# 1/5, theta <- theta - (gradient + theta / 5) / 2 = 0.9 theta - gradient / 2.
RATES = {"rounds": 2.0, "client_lr": 1.0, "client_lr_final": 0.25, "weight_decay": 0.2}


# Of a payload besides what its two leaves hold: header, forms, checksum; and against the model that
# the client received digests of the shapes and of the mask, otherwise the shapes and their names.
UPLINK = 5 + 2 + 4 + 8 + 4
DOWNLINK = (
  (5 + 2 + 4)
  + (5 + 2 + len("params"))
  + (5 + 2 + len("Dense_0"))
  + (5 + 2 + len("bias") + 2 + 4 + 2 + len("kernel") + 2 + 2 * 4)
)


class TestFedAvg:
  def test_a_round_of_one_and_three_examples(self):
    # Client A, x = (1, 2) of class 0. Its gradient is that of the logits, (-1/2)(1, -1), times x:
    #   kernel (-1/2)(1, -1) and (-2/2)(1, -1), bias (-1/2)(1, -1).
    # Client B, one step with the mean over three examples in a batch of 4:
    #   (2, 0) of class 1: kernel rows   1 (1, -1),     0,         bias  1/2 (1, -1)
    #   (0, 1) of class 0:               0,         -1/2 (1, -1),       -1/2 (1, -1)
    #   (1, 1) of class 1:             1/2 (1, -1),  1/2 (1, -1),        1/2 (1, -1)
    #   a third of the sum:            1/2 (1, -1),      0,              1/6 (1, -1).
    # Half the gradient is subtracted from 0.9 theta.
    kernel, bias = np.array([[0.5, 0.5], [-1.0, -1.0]]), np.array([0.2, 0.2])
    kernel_a = 0.9 * kernel + [0.25 * APART, 0.5 * APART]
    bias_a = 0.9 * bias + 0.25 * APART
    kernel_b = 0.9 * kernel + [-0.25 * APART, 0 * APART]
    bias_b = 0.9 * bias - APART / 12
    algorithm, state, row = run_one_round(
      "fedavg",
      linear(kernel, bias),
      x=[[2, 0], [1, 2], [0, 1], [1, 1]],
      y=[1, 0, 0, 1],
      parts=[np.array([1]), np.array([0, 2, 3])],
      values=RATES,
    )
    assert_linear(algorithm.model(state), (kernel_a + 3 * kernel_b) / 4, (bias_a + 3 * bias_b) / 4)
    assert int(state.round) == 1
    # Equal logits: class 0 is predicted. The kernel is sent whole, 4 values, and so is the bias, 2.
    assert_row(
      row,
      round=1,
      train_loss=np.log(2),
      train_accuracy=0.5,
      client_lr=0.5,
      examples=4,
      clients=2,
      uplink_bytes=UPLINK + 24,
      downlink_bytes=DOWNLINK + 24,
      global_sparsity=0,
      target_sparsity=0,
    )

  def test_a_client_with_a_partial_batch(self):
    # Three examples in batches of 2, and only orders in which (0, 1) comes last: the first batch
    # holds both classes, the biases' gradients cancel, and the kernel's second row is not touched.
    #   (1, 0) of class 0: row -1/2 (1, -1); (-3, 0) of class 1: row -3/2 (1, -1); mean -(1, -1).
    # So the third example's logits are still equal in the second step. It is alone in its batch,
    # and its gradient is not halved: (0, 1) of class 1 gives 1/2 (1, -1) to row and bias.
    # Weight decay multiplies by 0.9 in both steps.
    kernel, bias = np.array([[0.5, 0.5], [-1.0, -1.0]]), np.array([0.2, 0.2])
    _, algorithm = make("fedavg", 2, batch_size=2)
    federation = cases.make_federation(
      np.array([[0, 1], [1, 0], [-3, 0], [9, 9]], float),
      np.array([1, 0, 1, 0]),
      [np.array([1, 2, 0])],
    )
    data = cases.client_data(federation, 0)
    keys = (jax.random.key(seed) for seed in range(100))
    # The order of the first epoch of a client with this key.
    key = next(
      key for key in keys if shuffle(jax.random.fold_in(key, 0), data).indices.tolist()[2] == 0
    )
    state = algorithm.init(linear(kernel, bias), cases.hyper(**RATES), jax.random.key(0))
    upload, _, metrics = jax.jit(algorithm.client)(algorithm.broadcast(state), (), data, key)
    kernel = 0.9 * (0.9 * kernel + [0.5 * APART, 0 * APART]) - [0 * APART, 0.25 * APART]
    bias = 0.81 * bias - 0.25 * APART
    # What is sent is the model times 3.
    assert float(upload.weight) == 3
    assert_linear(upload.variables, 3 * kernel, 3 * bias)
    assert float(metrics["train_loss"].total) == pytest.approx(3 * np.log(2))

  def test_client_and_server_regrowth(self):
    # A kernel of zeros, and features that are 0 or not: the row of a feature that a client has
    # grows. A: both rows, B: one of two, the union: both.
    _, _, row = run_one_round(
      "fedavg",
      linear(np.zeros((2, 2)), np.zeros(2)),
      x=[[1, 3], [0, 2], [0, 3], [0, 4]],
      y=[0, 1, 1, 1],
      parts=[np.array([0]), np.array([1, 2, 3])],
      values={},
    )
    assert_row(
      row,
      client_regrowth=(1 * 1 + 3 * 1 / 2) / 4,
      server_regrowth=1,
      # A: all 4 values. B: a count, a byte of bitmap and 2 values. Two biases each. Where all is 0,
      # a count says so.
      uplink_bytes=UPLINK + (4 * 4 + (4 + 1 + 2 * 4)) / 2 + 8,
      downlink_bytes=DOWNLINK + 4 + 4,
      prunable_sparsity=0,
    )


class TestSparsyFed:
  # Of 8 weights 4 are 0: half of the activations are kept for the backward pass, and 3/8 of the
  # weights are sent. With beta = 2, w = theta |theta|, and the gradient of theta is that of w times
  # 2 |theta|: 2, 1, 0 and 0 in the four rows.
  THETA = np.array([[1.0, 1.0], [-0.5, -0.5], [0, 0], [0, 0]])
  BIAS = np.array([0.2, 0.2])
  X = [[2, 1, 0.5, -4], [1, 0.5, 0.1, 0.2], [0.3, 4, 3, 0.4], [2, 1.5, -0.6, 5]]
  Y = [0, 1, 1, 0]
  PARTS = [np.array([0]), np.array([1, 2, 3])]
  VALUES = RATES | {"beta": 2.0, "density": 3 / 8}
  # Client A keeps 2 of its 4 activations, 2 and -4. The gradient of w: -1/2 (1, -1) times 2 in row
  # 1, and row 4, where 2 |theta| is 0. So theta's is -2 (1, -1) in row 1, and half of it is
  # subtracted from 0.9 theta: (1.9, -0.1), (-0.45, -0.45). The three largest: without the -0.1.
  THETA_A = np.array([[1.9, 0], [-0.45, -0.45], [0, 0], [0, 0]])
  # Client B keeps 6 of its 12 activations (not 8 of the 16 of its padded batch): the largest are
  # 5, 4, 3, 2, 1.5, 1; 0.6 is the next. In the first two rows the gradient of w is a third of
  #   1 * 1/2 - 2 * 1/2 = -1/2   (1 of class 1, 0.3 pruned, 2 of class 0), times (1, -1),
  #   4 * 1/2 - 1.5 * 1/2 = 5/4  (0.5 pruned, 4 of class 1, 1.5 of class 0), times (1, -1).
  # Theta's: -1/3 (1, -1) and 5/12 (1, -1). Half of it is subtracted from 0.9 theta: (0.9 + 1/6,
  # 0.9 - 1/6) and (-0.45 - 5/24, -0.45 + 5/24), of which the last is not among the three largest.
  THETA_B = np.array([[0.9 + 1 / 6, 0.9 - 1 / 6], [-0.45 - 5 / 24, 0], [0, 0], [0, 0]])
  # Biases are neither powers nor pruned: as in the first test of FedAvg.
  BIAS_A = 0.9 * BIAS + 0.25 * APART
  BIAS_B = 0.9 * BIAS - APART / 12

  def test_a_round(self):
    # The model is initialised with w, not with theta.
    weights = linear(self.THETA * np.abs(self.THETA), self.BIAS)
    algorithm, state, row = run_one_round(
      "sparsyfed", weights, self.X, self.Y, self.PARTS, self.VALUES
    )
    theta = (self.THETA_A + 3 * self.THETA_B) / 4
    bias = (self.BIAS_A + 3 * self.BIAS_B) / 4
    assert_linear(state.variables, theta, bias)
    assert_linear(algorithm.model(state), theta * np.abs(theta), bias)
    kernel = np.asarray(state.variables["params"]["Dense_0"]["kernel"])
    assert (kernel != 0).tolist() == [[True, True], [True, True], [False, False], [False, False]]
    # 3 of 8 values with a byte of bitmap go up, 4 of 8 down; 2 biases.
    assert_row(
      row,
      train_loss=np.log(2),
      train_accuracy=0.5,
      examples=4,
      clients=2,
      uplink_bytes=UPLINK + 4 + 1 + 3 * 4 + 8,
      downlink_bytes=DOWNLINK + 4 + 1 + 4 * 4 + 8,
      target_sparsity=5 / 8,
      prunable_sparsity=4 / 8,
      global_sparsity=4 / 10,
      client_regrowth=0,
      server_regrowth=0,
    )

  def test_the_model_starts_as_it_was_initialised(self):
    variables = cases.variables("mlp")
    algorithm = cases.algorithm("sparsyfed", "mlp")
    state = algorithm.init(variables, cases.hyper("sparsyfed", beta=1.5), jax.random.key(0))
    cases.assert_close(algorithm.model(state), variables, 1e-6)
    for name, layer in state.variables["params"].items():
      w = np.asarray(variables["params"][name]["kernel"])
      np.testing.assert_allclose(layer["kernel"], np.sign(w) * np.abs(w) ** (1 / 1.5), rtol=1e-5)
      cases.assert_same_bits(layer["bias"], variables["params"][name]["bias"])

  @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
  @pytest.mark.parametrize("beta", [1.25, 1.0])
  def test_zeros_stay_for_ever_with_beta_above_one(self, beta, optimizer):
    state = cases.start(
      "sparsyfed", "mlp", cases.hyper("sparsyfed", beta=beta, client_lr=1.0), server=optimizer
    )
    zeros, num_regrown, regrowth = [], 0, 0.0
    for i in range(5):
      numbers = [(3, 0, 5), (6, 3, 4), (2, 1, 0)][i % 3]
      upload, sums = cases.run_cohort("sparsyfed", "mlp", state, numbers, key=jax.random.key(i))
      state, _ = cases.serve("sparsyfed", "mlp", state, upload, optimizer)
      zeros.append(cases.flat_kernels(state.variables["params"]) == 0)
      num_regrown += (zeros[-2] & ~zeros[-1]).sum() if i else 0
      regrowth += float(sums["client_regrowth"].value)
    assert zeros[0].any()
    assert (num_regrown == 0) == (beta > 1)
    assert (regrowth == 0) == (beta > 1)
