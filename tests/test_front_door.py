"""The front door: what a program of a few lines says, and that it computes as the program does."""

import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import sparsyfed_jax as sf
from experiments.flags import DEFAULTS, resolve
from experiments.run.build import build
from sparsyfed_jax.types import total
from tests import cases

ROUNDS = 2
HEAVY = ("matplotlib", "sklearn", "scipy", "rich", "orbax", "markdown_it")


@pytest.fixture(scope="module")
def data():
  return sf.data.digits(seed=3)


@pytest.fixture(scope="module")
def clients(data):
  return sf.data.dirichlet(data, num_clients=100, alpha=0.1, seed=3)


@pytest.fixture(scope="module")
def task(data):
  return sf.classification(sf.models.MLP(data.num_classes), data)


def make_run(clients, task, method, **settings):
  return sf.simulate(method, task, clients, clients_per_round=4, local_epochs=1, **settings)


def test_a_program_of_a_few_lines():
  data = sf.data.digits(seed=0)
  clients = sf.data.dirichlet(data, num_clients=100, alpha=0.1, seed=0)
  task = sf.classification(sf.models.MLP(data.num_classes), data)
  run = sf.simulate(sf.sparsyfed(sparsity=0.95), task, clients, clients_per_round=10)
  state, rows = run.rounds(run.init(seed=0), 12)
  assert rows["round"].tolist() == list(range(1, 13))
  assert all(len(column) == 12 for column in rows.values())
  scores = run.evaluate(state)
  assert scores["test_accuracy"] > 0.5
  model = run.model(state)
  kernels = [layer["kernel"] for layer in model["params"].values()]
  zeros = np.mean(np.concatenate([np.ravel(kernel == 0) for kernel in kernels]))
  assert zeros == pytest.approx(rows["prunable_sparsity"][-1], abs=1e-6)


@pytest.mark.parametrize("method", cases.over_methods(sf.METHODS, quick=cases.FEW))
def test_computes_as_the_program_does(method, clients, task):
  run = make_run(clients, task, getattr(sf, method)(), rounds=20)
  start = run.init(seed=3)
  state, rows = run.rounds(start, ROUNDS)
  scores = run.evaluate(state)
  config = DEFAULTS._replace(
    algorithm=method,
    model="mlp",
    seed=3,
    dirichlet_alpha=0.1,
    clients_per_round=4,
    local_epochs=1,
    rounds=20,
    eval_every=20,
    num_devices=1,
  )
  other = build(resolve(config))
  before = other.simulation.init(other.hyper, other.keys.init)
  after, row = other.simulation.run(before, other.federation, other.keys.rounds, ROUNDS)
  if jax.local_device_count() == 1:
    cases.assert_same_bits((state.server, state.memories, ()), tuple(after))
  assert set(rows) == set(row)
  for column, found in rows.items():
    assert np.all(np.isfinite(found)), column
    expected = np.asarray(row[column])[:ROUNDS]
    expected = total(expected) if column in ("examples", "round_uplink_bytes") else expected
    np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=column)
  expected = other.simulation.evaluate(after, other.x_test, other.y_test)
  assert scores == pytest.approx({key: float(value) for key, value in expected.items()}, rel=1e-5)


def test_a_state_can_be_used_again(clients, task):
  run = make_run(clients, task, sf.fedavg())
  start = run.init(seed=1)
  first, _ = run.rounds(start, 3)
  again, _ = run.rounds(run.rounds(start, 1)[0], 2)
  cases.assert_same_bits(first, again)
  cases.assert_same_bits(start, run.init(seed=1))


def test_defaults_are_those_of_the_program():
  program = resolve(DEFAULTS)._asdict()
  parameters = inspect.signature(sf.simulate).parameters
  defaults = {name: p.default for name, p in parameters.items() if name in program}
  numbers = {key: n for key, n in defaults.items() if n is None or isinstance(n, int | float)}
  assert len(numbers) > 10 and program["client_optimizer"] == program["server_optimizer"] == "sgd"
  derived = {name: program[name] for name, default in numbers.items() if default is None}
  assert set(derived) == {"client_lr_final", "clients_per_chunk"}
  assert {**numbers, **derived} == {name: program[name] for name in numbers}
  for name, method in sf.METHODS.items():
    flags = {setting.field: setting.name for setting in method.settings()}
    for argument, parameter in inspect.signature(getattr(sf, name)).parameters.items():
      assert parameter.default == getattr(DEFAULTS, flags.get(argument, argument))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"sparsity": 1.0}, "sparsity=1.0: must be at least 0 and below 1"),
    ({"sparsity": "high"}, "sparsity='high': must be a number"),
    ({"sparsity": True}, "sparsity=True: must be a number"),
    ({"sparsity_ramp_rounds": 2.5}, "sparsity_ramp_rounds=2.5: must be a whole number"),
    ({"sparsity_ramp_rounds": -1}, "sparsity_ramp_rounds=-1: must be at least 0"),
    ({"sparsity_schedule": "steep"}, "must be one of constant, cubic, linear"),
    ({"beta": float("nan")}, "beta=nan: must be at least 1 and finite"),
    ({"upload": "all"}, "upload='all': must be one of weights, changes"),
    ({"reparam_exclude": "("}, "must be a regular expression"),
  ],
)
def test_a_method_refuses_what_is_wrong(arguments, message):
  with pytest.raises(ValueError, match="^[^\n]*$") as caught:
    sf.sparsyfed(**arguments)
  assert message in str(caught.value)


def test_a_method_refuses_contradictions():
  with pytest.raises(ValueError, match="^mask_ratio=0.5: must be between 0 and sparsity=0.4, "):
    sf.zerofl(mask_ratio=0.5, sparsity=0.4)


def test_a_method_knows_its_arguments():
  with pytest.raises(TypeError, match="has no argument 'beta'"):
    sf.fedavg(beta=2.0)
  signature = inspect.signature(sf.feddst)
  numbers = ["sparsity", "update_every", "update_until", "drop_rate"]
  assert list(signature.parameters) == [*numbers, "densities"]
  assert "drop_rate (float, between 0 and 1): share of the weights" in sf.feddst.__doc__


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"clients_per_round": 101}, "clients_per_round=101: must be at most 100"),
    ({"clients_per_round": 0}, "clients_per_round=0: must be at least 1"),
    ({"client_lr": 0.0}, "client_lr=0.0: must be positive"),
    ({"local_epochs": 1.5}, "local_epochs=1.5: must be a whole number"),
    ({"client_dropout": 1.0}, "client_dropout=1.0: must be at least 0 and below 1"),
    # Which would take the weight decay for its momentum, or for the decay of its first moment.
    ({"client_optimizer": optax.sgd}, "client_optimizer=.*must take a rate and a weight decay"),
    ({"client_optimizer": optax.adam}, "client_optimizer=.*must take a rate and a weight decay"),
    # Clients that have vanished would count.
    ({"client_weight": lambda size: jnp.ones(size.shape)}, "client_weight=.*must be 0 of 0 exam"),
  ],
)
def test_simulate_refuses_what_is_wrong(settings, message, clients, task):
  with pytest.raises(ValueError, match=message):
    sf.simulate(sf.fedavg(), task, clients, **settings)


def test_simulate_takes_functions_of_ones_own(clients, task):
  def by_root(size):
    return jnp.sqrt(size)

  def with_adam(rate, decay):
    return optax.adamw(rate, weight_decay=decay)

  for optimizer in (with_adam, sf.fed.sgd(momentum=0.9), lambda rate, decay: optax.sgd(rate)):
    make_run(clients, task, sf.fedavg(), client_optimizer=optimizer, client_weight=by_root)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"sparsity_ramp_rounds": 21}, "sparsity_ramp_rounds=21: must be at most 20 in 20 rounds"),
    ({"sparsity_ramp_rounds": 1, "sparsity_schedule": "constant"}, "must be at most 0 in 20"),
  ],
)
def test_a_sparsity_that_would_not_be_reached_is_refused(arguments, message, clients, task):
  with pytest.raises(ValueError, match=message):
    make_run(clients, task, sf.topk(**arguments), rounds=20)
  make_run(clients, task, sf.topk(sparsity_ramp_rounds=20), rounds=20)


def test_simulate_refuses_what_does_not_fit(data, clients, task):
  with pytest.raises(ValueError, match="^reparam_exclude='Conv': must find a layer of .*Dense_0"):
    make_run(clients, task, sf.sparsyfed(reparam_exclude="Conv"))
  with pytest.raises(ValueError, match="^sparsity_ramp_rounds=9: must be at most 8 in 8 rounds"):
    make_run(clients, task, sf.topk(sparsity_ramp_rounds=9), rounds=8)
  beyond = sf.data.Clients(data, [np.arange(9), np.array([1438])])
  with pytest.raises(ValueError, match="^clients: parts hold 1438, must hold .* 0 to 1437"):
    sf.simulate(sf.fedavg(), task, beyond, clients_per_round=2)
  with pytest.raises(ValueError, match="^scaffold: clients must train by SGD without momentum"):
    make_run(clients, task, sf.scaffold(), client_optimizer=sf.fed.sgd(momentum=0.9))
  with pytest.raises(ValueError, match="^mine: must be one of "):
    sf.find("mine")


def test_simulate_wants_a_method_that_was_called(clients, task):
  with pytest.raises(TypeError, match="must be called"):
    sf.simulate(sf.fedavg, task, clients)


def test_a_run_ends_where_it_was_planned_to(clients, task):
  run = make_run(clients, task, sf.METHODS["fedavg"], rounds=2)
  with pytest.raises(ValueError, match="num_rounds=3: must be between 1 and 2, .* rounds="):
    run.rounds(run.init(), 3)


def test_defaults_of_methods_follow_from_the_run(clients, task):
  run = make_run(clients, task, sf.feddst(), rounds=30)
  assert run.hyper.own.update_until == 15
  assert make_run(clients, task, sf.topk(), rounds=30).hyper.ramp_rounds == 15
  constant = sf.topk(sparsity_schedule="constant")
  assert make_run(clients, task, constant, rounds=30).hyper.ramp_rounds == 0


class WithoutOps(nn.Module):
  @nn.compact
  def __call__(self, x, *, train=False, valid=None):
    return nn.Dense(10)(x.reshape(x.shape[0], -1))


def test_a_task_says_what_models_it_takes(data):
  assert sf.classification(WithoutOps(), data).kernels == ("Dense_0",)
  with pytest.raises(ValueError, match="^function: must be a flax.linen, .* or Equinox module"):
    sf.classification(lambda x: x, data)
  with pytest.raises(ValueError, match="^MLP: has 7 logits, must have 10"):
    sf.classification(sf.models.MLP(7), data)


def test_somebody_elses_method(tmp_path, clients, task):
  file = tmp_path / "mine.py"
  file.write_text(
    '"""FedAvg under another name."""\n'
    "from sparsyfed_jax import METHODS\n"
    "METHOD = METHODS['fedavg']._replace(name='mine')\n"
  )
  method = sf.find(f"{file}:METHOD")
  assert method.name == "mine"
  for chosen in (method, method()):
    run = make_run(clients, task, chosen)
    assert np.isfinite(run.rounds(run.init(), 1)[1]["train_loss"]).all()


def test_arrays_of_ones_own():
  rng = np.random.default_rng(0)
  y = np.array(["cat", "dog", "eel"])[rng.integers(0, 3, 60)]
  x = rng.normal(size=(60, 5)).astype(np.float32)
  data = sf.data.from_arrays(x[:40], y[:40], x[40:], y[40:], client_train=np.arange(40) % 4)
  assert (data.num_classes, data.num_clients, data.classes) == (3, 4, ("cat", "dog", "eel"))
  assert sf.data.natural(data).sizes.tolist() == [10] * 4
  with pytest.raises(sf.data.DataError, match="^data: y_train: .*39 labels, must be 40"):
    sf.data.from_arrays(x[:40], y[:39], x[40:], y[40:])
  with pytest.raises(sf.data.DataError, match="has no clients of its own"):
    sf.data.natural(data._replace(num_clients=0))


def test_importing_is_light():
  code = (
    "import sys, jax, flax.linen, optax; before = set(sys.modules); import sparsyfed_jax;"
    "print(*sorted({name for name in set(sys.modules) - before}))"
  )
  found = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True
  ).stdout.split()
  assert "sparsyfed_jax.run" in found
  assert [name for name in found if name.split(".")[0] in HEAVY] == []
