"""Runs that start from weights of another place, and keep some of them."""

import json
import shutil

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments import flags, train
from experiments.exports import formats
from experiments.run import begun, weight_files
from experiments.run.build import build, program_key
from sparsyfed_jax.io import model_file
from sparsyfed_jax.io.writers import read_metrics
from sparsyfed_jax.loaded import load_model
from tests import cases
from tests.experiments import test_sweep as sweeps

COMMON = ["--model=mlp", "--num_clients=10", "--clients_per_round=2", "--local_epochs=1"]
SHORT = [*COMMON, "--rounds=2", "--eval_every=1", "--checkpoint_every=1"]


def read(*arguments):
  table = absl_flags.FlagValues()
  flags.define(table)
  flags.parse(["train", *SHORT, *map(str, arguments)], table)
  return flags.resolve(flags.read(table))


def run(directory, *arguments):
  """Runs a command as `experiments.train` does; returns what it was built of."""
  directory.mkdir(exist_ok=True)
  config = read(*arguments, f"--output_dir={directory}")
  before = train.check_resumable(config, directory) if config.resume else None
  if before:
    config = begun.with_recorded_chunk(config, begun.recorded_chunk(before))
  experiment = build(config)
  if before:
    begun.check_data(before, config, experiment.facts, directory)
  train.run(config, experiment, directory)
  return experiment


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A run of the default method, whose model it leaves in its folder."""
  directory = tmp_path_factory.mktemp("source") / "run"
  run(directory, "--sparsity_schedule=constant", "--sparsity=0.5")
  return directory


def save_orbax(place, tree):
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(place.absolute(), tree)
  return place


def place_of(kind, source, folder):
  """Writes the weights of a run as another kind of file."""
  if kind == "run":
    return source
  if kind == "sfed":
    return shutil.copy(source / "model.sfed", folder / "any.sfed")
  loaded = load_model(source)
  if kind == "safetensors":
    pytest.importorskip("safetensors")
    formats.export(loaded, "safetensors", folder / "any.safetensors", "float32", None)
    return folder / "any.safetensors"
  tree = loaded.variables if kind == "orbax" else loaded.variables["params"]
  save_orbax(folder / ("any" if kind == "orbax" else "step/default"), tree)
  return folder / ("any" if kind == "orbax" else "step")


@pytest.mark.parametrize("kind", ["run", "sfed", "safetensors", "orbax", "orbax-step"])
def test_each_kind_begins_with_the_evaluation_of_its_model(kind, source, tmp_path):
  experiment = build(read(f"--init_from={place_of(kind, source, tmp_path)}", "--seed=0"))
  simulation = experiment.simulation
  state = simulation.init(experiment.hyper, experiment.keys.init)
  cases.assert_close(experiment.algorithm.model(state.server), load_model(source).variables, 1e-5)
  if kind in ("run", "orbax"):
    scores = simulation.evaluate(state, experiment.x_test, experiment.y_test)
    last = read_metrics(source / "metrics.jsonl")[-1]
    assert abs(float(scores["test_loss"]) - last["test_loss"]) < 1e-5
  if kind != "orbax-step":  # which was saved without the name of its collection
    expected = weight_files.read(str(source)).sha256
    assert experiment.facts["init_sha256"] == expected
  assert not [remark for remark in experiment.remarks if "weights" in remark]


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda folder: folder / "none", "no such file or folder; must be the folder of a run, a mo"),
    (lambda folder: folder, "must be the folder of a run, a model file"),
    (lambda folder: write(folder / "w.pkl", b"\x80\x04N."), "must be the folder of a run, a model"),
    (lambda folder: write(folder / "w.sfed", b"PK"), "is no model file, which begins with SFED"),
    (lambda folder: write(folder / "config.json", b"{}").parent, "model.sfed: no such file; a run"),
    (lambda folder: write(folder / "_METADATA", b"{}").parent, r"cannot be read by orbax \("),
    (lambda folder: toy(folder, hidden=7), r"different: Dense_0/bias is \(7,\), must be \(128,\)"),
    (lambda folder: toy(folder, name="Other_0"), "missing Dense_0/bias, Dense_0/kernel, Dense_1/b"),
  ],
)
def test_what_is_no_such_weights_is_refused_in_a_line(make, message, tmp_path):
  place = make(tmp_path)
  with pytest.raises(flags.ConfigError, match=message) as refused:
    build(read(f"--init_from={place}"))
  text = str(refused.value)
  assert text.startswith(f"--init_from={place}: ") and "\n" not in text


def test_damaged_safetensors_are_refused(tmp_path):
  pytest.importorskip("safetensors")
  place = write(tmp_path / "w.safetensors", b"\x00" * 20)
  with pytest.raises(flags.ConfigError, match=r"w.safetensors: is no safetensors file, or damaged"):
    build(read(f"--init_from={place}"))


def write(path, content):
  path.write_bytes(content)
  return path


def toy(folder, name="Dense_0", hidden=128):
  params = {name: {"bias": np.zeros(hidden, np.float32)}}
  model_file.write(folder / "toy.sfed", {}, {"params": params})
  return folder / "toy.sfed"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--freeze=Dense"], "^--freeze=Dense: must leave a parameter to be trained"),
    (["--freeze=kern$"], "^--freeze=kern.: must find a parameter: Dense_0/bias, Dense_0/kernel, "),
    (["--init_exclude=head"], "^--init_exclude=head: must find a parameter: Dense_0/bias, "),
    (
      ["--freeze=kernel", "--init_exclude=Dense_2"],
      "^--freeze=kernel: must find none of what --init_exclude='Dense_2' leaves as it is drawn,",
    ),
    (["--freeze=Dense_["], r"^--freeze=Dense_\[: must be a regular expression"),
  ],
)
def test_patterns_that_do_not_fit_are_named_by_their_flags(arguments, message, source):
  with pytest.raises(flags.ConfigError, match=message):
    build(read(f"--init_from={source}", *arguments))


@pytest.mark.parametrize("flag", ["freeze", "init_exclude"])
def test_patterns_need_weights(flag):
  with pytest.raises(flags.ConfigError, match=f"^--{flag}=Dense_0: must be given with --init_from"):
    read(f"--{flag}=Dense_0")


def test_frozen_layers_stay_and_cost_less(source, tmp_path):
  arguments = ["--sparsity=0.5", f"--init_from={source}"]
  whole = build(read(*arguments))
  held = run(tmp_path / "held", *arguments, "--freeze=Dense_[01]")
  before, after = load_model(source), load_model(tmp_path / "held")  # the file has all of it
  for name in ("Dense_0", "Dense_1"):
    cases.assert_same_bits(after.variables["params"][name], before.variables["params"][name])
  head = [one.variables["params"]["Dense_2"]["kernel"] for one in (before, after)]
  assert np.any(np.asarray(head[0]) != np.asarray(head[1]))
  row = read_metrics(tmp_path / "held" / "metrics.jsonl")[-1]
  assert row["downlink_bytes"] < 4 * (64 * 10 + 10) + 150 and len(row["layer_density"]) == 1
  assert held.layers == ("Dense_2",)
  # Forward all that it was; backward the weights of the head alone.
  assert [cost.forward for cost in held.costs] == [cost.forward for cost in whole.costs]
  assert [cost[2:] for cost in held.costs] == [(0, 0), (0, 0), (0, whole.costs[2].weight_gradient)]
  middle = build(read(*arguments, "--freeze=Dense_1")).costs
  assert [cost[2:] for cost in middle] == [
    whole.costs[0][2:], (whole.costs[1].input_gradient, 0), whole.costs[2][2:],
  ]  # fmt: skip
  # Whether or not what is frozen could be pruned; a layer that cannot is called by its parameter.
  arguments += ["--prunable=Dense_2"]
  chosen = build(read(*arguments, "--freeze=Dense_[01]")).costs
  assert [cost[1:] for cost in chosen] == [cost[1:] for cost in held.costs]
  assert [cost.name for cost in chosen] == ["Dense_0/kernel", "Dense_1/kernel", "Dense_2"]
  chosen = build(read(*arguments, "--freeze=Dense_1")).costs
  assert [cost[1:] for cost in chosen] == [cost[1:] for cost in middle]


def test_runs_share_programs_of_the_same_weights_alone(source, tmp_path):
  def key(place, *more):
    config = read(f"--init_from={place}", "--freeze=Dense_0", *more)
    return program_key(config, build(config))

  assert key(source) == key(source, "--seed=1")
  first = key(shutil.copy(source / "model.sfed", tmp_path / "w.sfed"))
  content = model_file.read(tmp_path / "w.sfed")
  content.variables["params"]["Dense_0"]["bias"][0] += 1
  model_file.write(tmp_path / "w.sfed", content.description, content.variables)
  assert key(tmp_path / "w.sfed") != first


@pytest.mark.parametrize("mode", ["sequential", "vmap"])
def test_seeds_of_a_sweep_keep_what_is_frozen(mode, source, tmp_path):
  weights = shutil.copy(source / "model.sfed", tmp_path / "w.sfed")
  where = [f"--init_from={weights}", "--init_exclude=Dense_2", "--freeze=Dense_0", "--seed=0,1"]
  where.append("--algorithm=topk")
  directory = tmp_path / "sweep"
  rows = sweeps.run(directory, *where, mode=mode)
  found = [load_model(sweeps.place(directory, f"seed={seed}")).variables for seed in (0, 1)]
  expected = load_model(source).variables["params"]["Dense_0"]
  for one in found:
    cases.assert_same_bits(one["params"]["Dense_0"], expected)
  kernels = [np.asarray(one["params"]["Dense_2"]["kernel"]) for one in found]
  assert np.any(kernels[0] != kernels[1])
  weights.unlink()  # runs that have ended need them no more
  assert sweeps.run(directory, *where, mode=mode) == rows


def test_a_run_goes_on_with_its_weights_or_without_them(source, tmp_path):
  place = shutil.copy(source / "model.sfed", tmp_path / "w.sfed")
  start = [f"--init_from={place}"]
  run(tmp_path / "whole", *start)
  recorded = json.loads((tmp_path / "whole/config.json").read_text())
  assert recorded["init_from"] == str(place)
  assert recorded["data"]["init_sha256"] == weight_files.read(str(source)).sha256
  stopped = tmp_path / "stopped"
  shutil.copytree(tmp_path / "whole", stopped)
  shutil.rmtree(stopped / "checkpoints" / "00000002")
  (stopped / "summary.json").unlink()
  fresh = tmp_path / "fresh"
  shutil.copytree(stopped, fresh)

  content = model_file.read(place)
  other = jax.tree.map(lambda leaf: leaf + 1, content.variables)
  model_file.write(place, content.description, other)
  with pytest.raises(flags.ConfigError, match=r"^--init_from=.*: its weights are not those"):
    run(stopped, *start, "--resume")
  place.unlink()
  experiment = run(stopped, *start, "--resume")
  assert any("is gone; the run goes on without it" in remark for remark in experiment.remarks)
  for name in ("metrics.jsonl", "model.sfed"):
    assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

  shutil.rmtree(fresh / "checkpoints")
  (fresh / "metrics.jsonl").unlink()
  with pytest.raises(flags.ConfigError, match=r"no such file or folder, but there is no check"):
    run(fresh, *start, "--resume")


def test_a_run_with_frozen_parameters_needs_them(source, tmp_path):
  place = shutil.copy(source / "model.sfed", tmp_path / "w.sfed")
  arguments = [f"--init_from={place}", "--freeze=Dense_0", "--rounds=1"]
  run(tmp_path / "run", *arguments)
  place.unlink()
  with pytest.raises(flags.ConfigError, match=r"no such file or folder, but what --freeze keeps"):
    run(tmp_path / "run", *arguments, "--resume")


SMALL = """
from sparsyfed_jax.models import ViT


def vit(num_outputs):
  return ViT(num_outputs, dim=12, depth=1)


def nnx_model(num_outputs, input_shape, key):
  from flax import nnx

  class Model(nnx.Module):
    def __init__(self, rngs):
      self.body = nnx.Linear(64, 8, rngs=rngs)
      self.head = nnx.Linear(8, num_outputs, rngs=rngs)

    def __call__(self, x):
      return self.head(nnx.relu(self.body(x.reshape(x.shape[0], -1))))

  return Model(nnx.Rngs(key))
"""


def test_a_transformer_is_tuned_to_other_classes(tmp_path):
  file = write(tmp_path / "small.py", SMALL.encode())
  run(tmp_path / "first", f"--model={file}:vit", "--rounds=1", "--algorithm=fedavg")
  rng = np.random.default_rng(0)
  y = np.arange(60) % 3
  x = (rng.normal(size=(60, 8, 8, 1)) + y[:, None, None, None]).astype(np.float32)
  np.savez(tmp_path / "new.npz", x_train=x, y_train=y, x_test=x, y_test=y)
  arguments = [f"--init_from={tmp_path / 'first'}", f"--dataset=npz:{tmp_path / 'new.npz'}"]
  model = f"--model={file}:vit"
  with pytest.raises(flags.ConfigError, match=r"head/kernel is \(12, 10\), must be \(12, 3\)"):
    build(read("--preset=finetune", *COMMON, model, *arguments))
  tuned = ["--preset=finetune", *COMMON, model, *arguments, "--init_exclude=head", "--rounds=2"]
  with jax.numpy_dtype_promotion("standard"):  # which optax's AdamW needs
    experiment = run(tmp_path / "second", *tuned)
  state = experiment.simulation.init(experiment.hyper, experiment.keys.init)
  found = experiment.algorithm.model(state.server)["params"]
  expected = model_file.read(tmp_path / "first" / "model.sfed").variables["params"]
  assert found["head"]["kernel"].shape == (12, 3)
  for name in set(expected) - {"head"}:
    cases.assert_same_bits(found[name], expected[name])
  rows = read_metrics(tmp_path / "second" / "metrics.jsonl")
  assert [row["client_lr"] for row in rows] == pytest.approx([0.01, 0.01])
  assert all(row["target_sparsity"] == 0.5 for row in rows) and rows[-1]["prunable_sparsity"] > 0
  assert all(np.isfinite(row["test_loss"]) for row in rows)


def test_a_model_of_another_library_starts_from_its_own_checkpoint(tmp_path):
  from flax import nnx

  file = write(tmp_path / "mine.py", SMALL.encode())
  scope = {}
  exec(SMALL, scope)
  learned = scope["nnx_model"](10, None, key=jax.random.key(5))
  place = save_orbax(tmp_path / "saved", nnx.state(learned, nnx.Param))
  experiment = build(read(f"--model={file}:nnx_model", f"--init_from={place}"))
  state = experiment.simulation.init(experiment.hyper, experiment.keys.init)
  params = experiment.algorithm.model(state.server)["params"]
  cases.assert_close(params["body"]["kernel"], learned.body.kernel[...], 1e-5)
  cases.assert_close(params["head"]["kernel"], learned.head.kernel[...], 1e-5)
