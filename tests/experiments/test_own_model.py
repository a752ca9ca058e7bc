"""A model in a file of its own: made of the number of outputs, recorded, and refused by name."""

import json

import numpy as np
import pytest
from absl import flags as absl_flags

import sparsyfed_jax as sf
from experiments import flags, train
from experiments.run.build import build
from experiments.run.models import make_model, model_digest
from sparsyfed_jax.io.writers import read_metrics

SOURCE = """
import jax
import jax.numpy as jnp
from flax import linen as nn, nnx


def shallow(num_outputs):
  return nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(num_outputs, name="head")])


def plain(num_outputs, input_shape, key):
  from flax import nnx

  class Model(nnx.Module):
    def __init__(self, rngs):
      self.body = nnx.Linear(input_shape[0] * input_shape[1], 8, rngs=rngs)
      self.head = nnx.Linear(8, num_outputs, rngs=rngs)

    def __call__(self, x):
      return self.head(nnx.relu(self.body(x.reshape(x.shape[0], -1))))

  return Model(nnx.Rngs(key))


class Lost(nn.Module):
  num_outputs: int

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(8, name="body")(x.reshape(x.shape[0], -1))
    return nn.Dense(self.num_outputs, name="head")(x[::-1])[::-1]


def dense(num_outputs):
  return nn.Dense(num_outputs)


class Needy(nnx.Module):
  def __init__(self, num_outputs, rngs):
    pass


def broken(num_outputs):
  raise RuntimeError("no such weights")


number = 3
"""
COMMON = ["--num_clients=10", "--clients_per_round=2", "--local_epochs=1", "--eval_every=1"]


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(SOURCE)
  return path


def read(model, *arguments):
  table = absl_flags.FlagValues()
  flags.define(table)
  flags.parse(["train", *COMMON, f"--model={model}", *arguments], table)
  return flags.resolve(flags.read(table))


def test_it_trains_is_recorded_and_goes_on_with_its_own_code_alone(file, tmp_path, capsys):
  directory = tmp_path / "run"
  directory.mkdir()
  config = read(f"{file}:shallow", "--rounds=1", f"--output_dir={directory}")
  train.run(config, build(config), directory)
  out = capsys.readouterr().out
  assert "note: Sequential does not take `valid`: " in out
  (row,) = read_metrics(directory / "metrics.jsonl")
  assert 0 < row["client_flops"] and row["prunable_sparsity"] >= 0
  written = json.loads((directory / "config.json").read_text())
  assert written["model_sha256"] == model_digest(config)
  assert "method_sha256" not in written
  train.check_resumable(config, directory)
  (directory / "config.json").write_text(json.dumps(written | {"model_sha256": "0" * 64}))
  with pytest.raises(flags.ConfigError, match=r"^--model=.*: its file is not that which the run"):
    train.check_resumable(config, directory)


@pytest.mark.parametrize("prunable", ["", "body"])
def test_what_it_trained_is_read_with_the_model_alone(file, tmp_path, prunable):
  directory = tmp_path / "run"
  directory.mkdir()
  config = read(
    f"{file}:plain", "--rounds=1", f"--prunable={prunable}", f"--output_dir={directory}"
  )
  experiment = build(config)
  train.run(config, experiment, directory)
  told = r"class '.*mine.py:plain', .* as model= \(to a command --model="
  with pytest.raises(ValueError, match=told):
    sf.load_model(directory)
  loaded = sf.load_model(directory, model=make_model(config, (8, 8, 1), 10))
  x = np.asarray(experiment.x_test[:7]).reshape(-1, 8, 8, 1)
  logits = loaded.variables(
    (x.astype(np.float32) - loaded.signature.mean) / loaded.signature.std
  )  # of flax.nnx
  np.testing.assert_allclose(loaded.predict(x), logits, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="does not fit its data|must be left out|missing"):
    sf.load_model(directory, model=make_model(read(f"{file}:shallow"), (8, 8, 1), 10))


def test_factories_may_ask_for_the_shape_and_the_key(file):
  config = read(f"{file}:plain")
  experiment = build(config)
  assert experiment.layers == ("body", "head")
  assert [(cost.name, cost.forward) for cost in experiment.costs] == [
    ("body", 2 * 64 * 8),
    ("head", 2 * 8 * 10),
  ]
  make = make_model(config, (8, 8, 1), 10)
  assert make is make_model(config, (8, 8, 1), 10)  # so that a sweep's runs share programs


def test_prunable_parameters_are_chosen_by_path(file):
  experiment = build(read(f"{file}:plain", "--prunable=body"))
  assert experiment.layers == ("body",)
  assert build(read("mlp", "--prunable=Dense_[01]")).layers == ("Dense_0", "Dense_1")
  with pytest.raises(flags.ConfigError, match=r"^--prunable=nose: .* must find .* body/kernel"):
    build(read(f"{file}:plain", "--prunable=nose"))
  with pytest.raises(flags.ConfigError, match=r"^--prunable=\(: must be a regular expression"):
    read("mlp", "--prunable=(")


def test_what_a_method_cannot_follow_is_one_line(file):
  right = r"^--model=.*: sparsyfed: the input of the model's layer head: .* not known after rev; "
  with pytest.raises(flags.ConfigError, match=right) as error:
    build(read(f"{file}:Lost"))
  assert "\n" not in str(error.value)
  build(read(f"{file}:Lost", "--algorithm=topk"))
  build(read(f"{file}:Lost", "--reparam_exclude=head"))
  build(read(f"{file}:Lost", "--prunable=body"))


@pytest.mark.parametrize(
  ("factory", "right"),
  [
    ("nothing", r"must be a factory that can be imported \(AttributeError: "),
    ("number", "must be a function of the number of outputs, is a int"),
    ("Needy", "must need only the number of outputs, input_shape and key, but needs rngs, which"),
    ("broken", r"must make a model of 10 outputs .* \(RuntimeError: no such weights\)"),
    ("dense", "Dense: gives an array of rank 4, must have 10 logits for the classes of the data"),
  ],
)
def test_what_is_wrong_with_it_is_one_line(file, factory, right):
  with pytest.raises(flags.ConfigError, match=f"^--model={file}:{factory}: {right}") as error:
    build(read(f"{file}:{factory}"))
  assert "\n" not in str(error.value)


def test_names_that_are_nobody_s_are_refused():
  with pytest.raises(
    flags.ConfigError, match="^--model=resnet: must be one of mlp, .* of your own"
  ):
    read("resnet")
  with pytest.raises(flags.ConfigError, match=r"^--model=no.such:f: must be .* \(ModuleNotFound"):
    read("no.such:f")
