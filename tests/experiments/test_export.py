"""Models in the formats of others: equal logits in their own libraries, and zeros kept."""

import importlib.util
import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from absl.flags import FlagValues
from flax import linen as nn

import sparsyfed_jax as sf
from experiments import export as command
from experiments import flags, predict
from experiments.exports import (
  formats,
  loading,
  onnx_file,
  safetensors_file,
  table,
  torch_file,
  weights,
)
from experiments.exports.network import ExportError
from experiments.exports.table import make_table
from sparsyfed_jax.io import model_file
from sparsyfed_jax.loaded import describe
from sparsyfed_jax.models import CNN, ResNet18
from sparsyfed_jax.types import Batch
from tests.experiments import exported

NEEDED = {"safetensors": ["safetensors"], "torch": ["torch"], "onnx": ["jax2onnx", "onnxruntime"]}


def need(format_name):
  for package in NEEDED.get(format_name, []):
    pytest.importorskip(package)


@pytest.fixture
def loaded(tmp_path):
  return exported.load(tmp_path, "mlp")


@pytest.mark.parametrize("format_name", ["csr", "torch"])
@pytest.mark.parametrize("name", exported.MODELS)
def test_other_libraries_compute_the_same_logits(tmp_path, name, format_name):
  need(format_name)
  loaded = exported.load(tmp_path, name)
  done = formats.export(loaded, format_name, tmp_path / "out", "float32", None)
  logits = np.asarray(loaded.predict(formats.examples(loaded)))
  assert 0 < done.difference < 1e-5 * max(1, np.abs(logits).max())
  assert np.ptp(logits) > 0.1  # or all would be equal


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_pytorch_convolves_in_full_precision_without_onednn(tmp_path):
  torch = pytest.importorskip("torch")
  loaded = exported.load(tmp_path, "resnet")
  with torch.backends.mkldnn.flags(enabled=False):
    done = formats.export(loaded, "torch", tmp_path / "out", "float32", None)
  assert done.difference < 2e-6


@pytest.mark.parametrize("name", ["cnn", "resnet-group", "vit"])
def test_onnx_computes_the_same_logits_of_any_number_of_examples(tmp_path, name):
  need("onnx")
  loaded = exported.load(tmp_path, name)
  formats.export(loaded, "onnx", tmp_path / "out.onnx", "float32", None)
  x = formats.examples(loaded, 3)
  found = formats.FORMATS["onnx"].run(loaded, tmp_path / "out.onnx", x)
  logits = np.asarray(loaded.predict(x))
  np.testing.assert_allclose(found, logits, atol=1e-5 * max(1, np.abs(logits).max()))


@pytest.mark.parametrize("dtype", formats.DTYPES)
@pytest.mark.parametrize("format_name", ["safetensors", "sfed"])
def test_fewer_bits_keep_zeros_and_say_what_rounding_does(tmp_path, format_name, dtype):
  need(format_name)
  loaded = exported.load(tmp_path, "cnn")
  done = formats.export(loaded, format_name, tmp_path / "out", dtype, None)
  assert done.difference < 1e-6
  assert (done.rounding > 0) == (dtype != "float32")
  read = safetensors_file.read if format_name == "safetensors" else sfed_table
  found = read(tmp_path / "out")
  for path, leaf in weights.flat(loaded.trained).items():
    np.testing.assert_array_equal(found[path] != 0, leaf != 0)
    relative = 2e-2 if dtype != "float32" else 0
    np.testing.assert_allclose(found[path], leaf, rtol=relative, err_msg=path)


def sfed_table(path):
  return weights.flat(model_file.read(path).variables)


def test_safetensors_holds_what_its_own_library_reads(tmp_path, loaded):
  numpy = pytest.importorskip("safetensors.numpy")
  formats.export(loaded, "safetensors", tmp_path / "out", "float32", None)
  found = numpy.load_file(tmp_path / "out")
  assert {name: leaf.shape for name, leaf in found.items()} == {
    path: leaf.shape for path, leaf in weights.flat(loaded.trained).items()
  }
  kernel = loaded.trained["params"]["Dense_0"]["kernel"]
  np.testing.assert_array_equal(found["params/Dense_0/kernel"], kernel)


def test_torchvision_loads_a_resnet_by_its_names(tmp_path):
  torch = pytest.importorskip("torch")
  try:
    import torchvision
  except (ImportError, RuntimeError):  # of another build than torch
    pytest.skip("needs torchvision")
  model = ResNet18(3)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), np.zeros((1, 8, 8, 3)))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: np.abs(rng.normal(0, 0.1, leaf.shape)), shapes)
  variables = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)
  told = exported.load(tmp_path, "resnet")._replace(
    model=model, variables=variables, trained=variables
  )
  network = torchvision.models.resnet18(num_classes=3)
  network.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
  network.maxpool = torch.nn.Identity()
  state = {name: torch.from_numpy(leaf) for name, leaf in torch_file.state_dict(told).items()}
  missing, unexpected = network.load_state_dict(state, strict=False)
  assert unexpected == []
  assert all(name.endswith("num_batches_tracked") for name in missing)
  x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
  found = network.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy()
  expected = model.apply(variables, x)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_names_of_torch():
  names = {
    (CNN(3), "Conv_1"): "conv2",
    (ResNet18(3), "Conv_0"): "conv1",
    (ResNet18(3), "BasicBlock_2/shortcut"): "layer2.0.downsample.0",
    (ResNet18(3), "BasicBlock_2/BatchNorm_2"): "layer2.0.downsample.1",
    (ResNet18(3), "BasicBlock_7/GroupNorm_1"): "layer4.1.bn2",
    (ResNet18(3), "Dense_0"): "fc",
    (exported.MODELS["vit"][0], "EncoderBlock_1/qkv"): "blocks.1.attn.qkv",
    (exported.MODELS["vit"][0], "embed"): "patch_embed.proj",
  }
  assert {key: torch_file.module_name(*key) for key in names} == names


def test_what_is_wrong_is_kept_beside_and_replaces_nothing(tmp_path, loaded, monkeypatch):
  output = tmp_path / "out.sfed"
  output.write_text("before")
  right = formats.FORMATS["sfed"]
  zeros = {name: k == 2 for name, k in weights.prunable(loaded.trained).items()}
  wrong = {
    "its logits differ by": right._replace(run=lambda *given: right.run(*given) + 1e-3),
    "its logits differ by nan": right._replace(run=lambda *given: right.run(*given) * np.nan),
    "its logits have shape": right._replace(run=lambda *given: right.run(*given)[:1]),
    "of the zeros of Dense_0 are not": right._replace(masks=lambda *given: zeros),
  }
  for message, form in wrong.items():
    monkeypatch.setitem(formats.FORMATS, "sfed", form)
    with pytest.raises(ExportError, match=f"^--format=sfed: .*{message}.*out.sfed.wrong"):
      formats.export(loaded, "sfed", output, "float32", None)
    assert output.read_text() == "before"
    assert model_file.read(tmp_path / "out.sfed.wrong").description["dataset"] == "toys"
    assert not list(tmp_path.glob(".*tmp"))


class Strange(nn.Module):
  """A network that is not ours, and does not take its operations."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3))(x)).reshape(x.shape[0], -1)
    return nn.Dense(3)(x)


@pytest.mark.parametrize("prunable", ["", "Dense"])
def test_what_is_not_ours_goes_where_no_layer_has_to_be_known(tmp_path, prunable):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(20, 6, 6, 2)).astype(np.float32), np.arange(20) % 3
  data = sf.data.from_arrays(x, y, x, y)
  task = sf.classification(Strange(), data, prunable=prunable)
  trained = task.init(jax.random.key(0))
  path = tmp_path / "model.sfed"
  sf.save_model(path, Strange(), trained, data, prunable=prunable)
  with pytest.raises(ValueError, match="is a model of the class '.*Strange', which is not one of"):
    sf.load_model(path)
  (tmp_path / "theirs.py").write_text(
    f"from {__name__} import Strange\nmake = lambda n: Strange()\n"
  )
  loaded = loading.load(path, "last", f"{tmp_path / 'theirs.py'}:make")
  with pytest.raises(flags.ConfigError, match="^--model=cnn: must be package.module:factory or"):
    loading.load(path, "last", "cnn")
  np.testing.assert_allclose(loaded.predict(x), Strange().apply(loaded.variables, x), atol=1e-5)
  with pytest.raises(ExportError, match="--format=torch: knows MLP, .* is a Strange"):
    torch_file.state_dict(loaded)
  for name in ("csr", "sfed", "safetensors", "onnx"):
    if all(map(importlib.util.find_spec, NEEDED.get(name, []))):
      assert formats.export(loaded, name, tmp_path / name, "float32", None).difference < 1e-5
  kept = {place.stem for place in (tmp_path / "csr").glob("*.npz")}
  assert kept == {"Dense_0", "others"} | (set() if prunable else {"Conv_0"})


@jax.numpy_dtype_promotion("standard")  # as haiku's batch norm needs it
def test_what_is_no_weight_and_names_with_slashes_are_exported(tmp_path):
  hk = pytest.importorskip("haiku")

  def run(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)  # counts in int32, of shape ()
    return hk.nets.MLP([5, 3])(x)  # called mlp/~/linear_0

  model = hk.transform_with_state(run)
  x, y = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32), np.arange(9) % 3
  data = sf.data.from_arrays(x, y, x, y)
  trained = sf.classification(model, data).init(jax.random.key(0))
  sf.save_model(tmp_path / "model.sfed", model, trained, data)
  loaded = sf.load_model(tmp_path / "model.sfed", model=model)
  expected = np.asarray(loaded.predict(x))
  for name in ("csr", "sfed", "safetensors"):
    if all(map(importlib.util.find_spec, NEEDED.get(name, []))):
      assert formats.export(loaded, name, tmp_path / f"out.{name}", "float32", None).size > 0
  again = sf.load_model(tmp_path / "out.sfed", model=model)
  np.testing.assert_array_equal(again.predict(x), expected)
  if importlib.util.find_spec("safetensors"):
    table = safetensors_file.read(tmp_path / "out.safetensors")
    counter = table["state/batch_norm/~/mean_ema/counter"]
    assert counter.shape == () and counter.dtype == np.int32


def test_what_cannot_be_checked_is_not_left_lying_about(tmp_path, loaded, monkeypatch):
  def fail(*given):
    raise ValueError("cannot be run")

  monkeypatch.setitem(formats.FORMATS, "sfed", formats.FORMATS["sfed"]._replace(run=fail))
  before = set(tmp_path.iterdir())
  with pytest.raises(ValueError, match="cannot be run"):
    formats.export(loaded, "sfed", tmp_path / "out.sfed", "float32", None)
  assert set(tmp_path.iterdir()) == before


def text_data():
  line = "To be, or not to be, that is the question: " * 20
  return sf.data.text(line, num_clients=1, sequence_length=8)


def number_data(task):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(30, 5)).astype(np.float32)
  y = x @ rng.normal(size=(5, 2)) * 9 + 100
  y = y if task == "regression" else (y > 100)
  return sf.data.from_arrays(x, y, x, y, task=task)


TASKS = {
  "next_token": (text_data, lambda n: sf.models.Transformer(n, dim=8, depth=1, heads=2)),
  "lstm": (text_data, lambda n: sf.models.LSTM(n)),
  "regression": (lambda: number_data("regression"), lambda n: sf.models.MLP(n, hidden=(8,))),
  "multi_label": (lambda: number_data("multi_label"), lambda n: sf.models.MLP(n, hidden=(8,))),
}


@pytest.mark.parametrize("name", TASKS)
def test_models_of_every_task_are_loaded_and_exported(tmp_path, name):
  make_data, make_model = TASKS[name]
  data = make_data()
  model = make_model(data.num_classes)
  make_task = {"next_token": sf.next_token, "lstm": sf.next_token}.get(name) or getattr(sf, name)
  task = make_task(model, data)
  trained = task.init(jax.random.key(0))
  sf.save_model(tmp_path / "model.sfed", model, trained, data)
  loaded = sf.load_model(tmp_path / "model.sfed")
  assert loaded.task == data.kind and loaded.signature.input_shape == data.x_train.shape[1:]
  batch = Batch(data.x_test, data.y_test, np.ones(len(data.y_test), bool))
  expected = np.asarray(task.predict(trained, batch))
  if data.kind == "regression":
    expected = expected * data.y_train.std(0) + data.y_train.mean(0)
  is_counted = data.y_test >= 0 if data.kind == "next_token" else np.ones(len(data.y_test), bool)
  found = np.asarray(loaded.predict(data.x_test))
  np.testing.assert_allclose(
    found[is_counted], np.asarray(expected)[is_counted], rtol=1e-4, atol=1e-4
  )
  for format_name in ("csr", "onnx", "torch"):
    is_there = all(map(importlib.util.find_spec, NEEDED.get(format_name, [])))
    if is_there and (format_name != "torch" or data.kind != "next_token"):
      done = formats.export(loaded, format_name, tmp_path / format_name, "float32", None)
      assert done.size > 0
  said = predict.predictions(loaded, data.x_test)
  if data.kind == "regression":
    np.testing.assert_array_equal(said["numbers"], found)
  else:
    shape = {"next_token": found.shape[:2], "multi_label": found.shape}[data.kind]
    assert said["classes"].shape == shape and said["probabilities"].shape == found.shape


def parse(*arguments):
  table = FlagValues()
  command.define(table)
  return table(["export", *arguments]), table


def run(*arguments):
  command.main(*parse(*map(str, arguments)))


def test_the_command_writes_and_says_what(tmp_path, capsys):
  path = exported.write(tmp_path / "model.sfed", round=7)
  run(path, "--format=csr", f"--output={tmp_path / 'folder'}")
  said = capsys.readouterr().out
  assert "folder: " in said and "after round 7; logits differ by" in said and "zeros kept" in said
  assert "scaled before as (x - 8) / 4" in said
  told = json.loads((tmp_path / "folder" / "description.json").read_text())
  assert told["mean"] == 8 and told["kernels"]["Dense_0"] == [48, 16]
  with pytest.raises(SystemExit):
    run(path, "--format=csr", f"--output={tmp_path / 'folder'}")
  assert "exists; must be another" in capsys.readouterr().err
  run(path, "--format=csr", f"--output={tmp_path / 'folder'}", "--overwrite")


REFUSED = {
  "--format=None: must be one of safetensors": [],
  "--format=pickle: must be one of": ["--format=pickle"],
  "--dtype=int8: must be one of float32": ["--format=sfed", "--dtype=int8"],
  "--dtype=bfloat16: must be float32 with": ["--format=csr", "--dtype=bfloat16"],
  "--compression=zip: must be none or zstd": ["--format=sfed", "--compression=zip"],
  "--compression=zstd: must be none with": ["--format=csr", "--compression=zstd"],
  "--which=first: must be one of last, best": ["--format=csr", "--which=first"],
  "--format=csr: must be left out with --table": ["--format=csr", "--table"],
  "must be in a folder that exists": ["--format=csr", "--output=nowhere/x"],
  "RUN (a b): must be one folder": ["b", "--format=csr"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_the_command_refuses_in_a_line(message):
  with pytest.raises(flags.ConfigError) as refused:
    command.check(*parse("a", *REFUSED[message]))
  assert message in str(refused.value) and "\n" not in str(refused.value)


def test_it_replaces_nothing_that_it_did_not_write(tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "file").touch()
  for given, message in {
    ("--format=csr", "mine"): "is no export of this command",
    ("--format=csr", "file"): "must be a folder",
    ("--format=sfed", "mine"): "must be a file",
  }.items():
    arguments = [given[0], f"--output={tmp_path / given[1]}", "--overwrite"]
    with pytest.raises(flags.ConfigError, match=message):
      command.check(*parse(str(tmp_path), *arguments))


def test_a_missing_package_is_named(tmp_path, loaded, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ExportError, match="--format=torch: needs the package torch, .* `export`"):
    formats.export(loaded, "torch", tmp_path / "out", "float32", None)
  assert not list(tmp_path.glob("*out*"))


def test_the_table_has_sizes_and_speeds(tmp_path, monkeypatch):
  monkeypatch.setattr(table, "_SECONDS", 0)
  for package in ("torch", "jax2onnx", "safetensors", "safetensors.numpy", "zstandard"):
    monkeypatch.setitem(sys.modules, package, None)
  loaded = exported.load(tmp_path, "mlp")
  lines = make_table(loaded).splitlines()
  cells = {line.split("|")[1].strip(): line.split("|") for line in lines if line.startswith("|")}
  size = int(cells["sfed"][2].replace(",", ""))
  told = {key: value for key, value in loaded.description.items()}
  assert size == model_file.write(tmp_path / "again.sfed", told, loaded.trained)
  dense = 4 * sum(leaf.size for leaf in weights.flat(loaded.trained).values())
  assert cells["sfed"][3].strip() == f"{dense / size:.1f}"
  assert float(cells["SciPy"][3]) > 0 and float(cells["NumPy"][4]) > 0
  assert sum(line.startswith("Left out: --format=") for line in lines) >= 3


@pytest.fixture(scope="module")
def resnet18():
  """The weights of a ResNet-18, of each layer the largest 5 %, in random places."""
  model = ResNet18(10)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), np.zeros((1, 32, 32, 3)))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape, np.float32)
    return values * (np.abs(values) > 1.96) if leaf.ndim > 1 else values

  return model, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize(
  ("dtype", "compression", "least"), [(None, None, 15), ("bfloat16", None, 28)]
)
def test_a_sparse_resnet_is_small(tmp_path, resnet18, dtype, compression, least):
  model, variables = resnet18
  told = describe(model, exported.signature((32, 32, 3), 10))
  size = model_file.write(tmp_path / "out", told, variables, dtype, compression)
  dense = 4 * sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert dense > least * size


def test_entropy_coding_makes_it_smaller_still(tmp_path, resnet18):
  pytest.importorskip("zstandard")
  model, variables = resnet18
  size = model_file.write(
    tmp_path / "out",
    describe(model, exported.signature((32, 32, 3), 10)),
    variables,
    "bfloat16",
    "zstd",
  )
  dense = 4 * sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert dense > 33 * size
  found = model_file.read(tmp_path / "out").variables
  for leaf, kept in zip(jax.tree.leaves(variables), jax.tree.leaves(found), strict=True):
    np.testing.assert_array_equal(kept != 0, leaf != 0)


def test_the_program_says_what_it_is():
  ran = subprocess.run(
    [sys.executable, "-m", "experiments.export", "nowhere", "--format=csr"],
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 2
  assert ran.stderr == "error: nowhere: no such file or folder, must be that of a run or a .sfed\n"


def test_onnx_is_made_without_choices_by_platform(tmp_path, monkeypatch):
  # Where jax2onnx is absent: it knows no choice by platform.
  seen = []

  def to_onnx(fn, shapes, **names):
    seen.append(str(jax.make_jaxpr(fn)(*shapes)))
    raise NotImplementedError("nothing")

  monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=to_onnx))
  loaded = sf.load_model(exported.write(tmp_path / "model.sfed", "cnn"))
  with pytest.raises(ExportError, match="jax2onnx cannot convert CNN"):
    onnx_file.write(loaded, tmp_path / "model.onnx", "float32", None)
  assert "dot_general" in seen[0] and "platform_index" not in seen[0]
  x = np.zeros((1, *loaded.input_shape), np.float32)
  usual = jax.make_jaxpr(lambda x: loaded.compute(loaded.trained, x))(x)
  assert "platform_index" in str(usual)
