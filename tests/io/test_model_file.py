"""Files of models: what is damaged or not ours is refused in a line."""

import json
import zlib

import numpy as np
import pytest

import sparsyfed_jax as sf
from sparsyfed_jax.io import model_file
from sparsyfed_jax.io.model_file import ModelFileError
from tests.experiments import exported


def rewrite(path, **changes):
  """Changes the header of a file, whose checksum fits again; None leaves an entry out."""
  content = path.read_bytes()
  end = 9 + int.from_bytes(content[5:9], "little")
  header = json.loads(content[9:end]) | changes
  text = json.dumps({name: value for name, value in header.items() if value is not None}).encode()
  seal(path, content[:5] + len(text).to_bytes(4, "little") + text + content[end:-4])


def seal(path, content):
  path.write_bytes(content + zlib.crc32(content).to_bytes(4, "little"))


@pytest.fixture
def path(tmp_path):
  return exported.write(tmp_path / "model.sfed", "mlp")


def test_what_is_written_is_read(path):
  found = model_file.read(path)
  expected = exported.variables_of("mlp")["params"]
  for layer, leaves in expected.items():
    for name, leaf in leaves.items():
      np.testing.assert_array_equal(found.variables["params"][layer][name], leaf)
  assert found.description["model"] == {
    "class": "MLP",
    "arguments": {"num_classes": 3, "hidden": [16, 8]},
  }


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_any_damage_is_found(tmp_path, compression):
  if compression:
    pytest.importorskip("zstandard")
  path = tmp_path / "model.sfed"
  model_file.write(path, {"round": 1}, exported.variables_of("mlp-flat"), None, compression)
  content = path.read_bytes()
  assert model_file.read(path).description == {"round": 1}
  damaged = [content[:n] for n in range(0, len(content), 41)]
  for place in range(0, len(content), 17):
    damaged.append(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
  for each in damaged:
    path.write_bytes(each)
    with pytest.raises(ModelFileError, match=f"^{path}: "):
      model_file.read(path)


def test_too_much_is_not_unpacked(path):
  with pytest.raises(ModelFileError, match="max_bytes=1000"):
    model_file.read(path, max_bytes=1000)


def test_a_frame_that_unpacks_to_too_much_is_refused(tmp_path):
  zstandard = pytest.importorskip("zstandard")
  path = exported.write(tmp_path / "model.sfed", "mlp")
  frame = zstandard.ZstdCompressor().compress(bytes(10**8))
  seal(path, b"SFED\x02" + len(frame).to_bytes(4, "little") + frame)
  with pytest.raises(ModelFileError, match="has a header of 100000000 bytes, may have 16777216"):
    model_file.read(path)
  variables = {"params": {"kernel": np.zeros(10**6)}}
  model_file.write(path, {}, variables, None, "zstd")
  with pytest.raises(ModelFileError, match="more than max_bytes=1000"):
    model_file.read(path, max_bytes=1000)


REFUSED = {
  "was compressed by an early version; export the model again": {"compression": "zstd"},
  "class 'os.system', which is not one of sparsyfed_jax.models; pass": {
    "model": {"class": "os.system", "arguments": {"command": "true"}}
  },
  "class 'SpeechResNet18'": {"model": {"class": "SpeechResNet18", "arguments": {}}},
  "arguments of MLP must be among hidden, num_classes": {
    "model": {"class": "MLP", "arguments": {"ops": None, "num_classes": 3}}
  },
  r"params/Dense_2/bias is \(3,\), must be \(4,\) in MLP": {
    "model": {"class": "MLP", "arguments": {"num_classes": 4, "hidden": [16, 8]}},
    "num_classes": 4,
  },
  "MLP does not fit its data": {
    "model": {"class": "MLP", "arguments": {"num_classes": "3", "hidden": [16, 8]}}
  },
  "model must be an object": {"model": "MLP"},
  "input_shape must be a list of sides": {"input_shape": [4, "6"]},
  "mean must be a number, is True": {"mean": True},
  "std must be above 0, is 0.0": {"std": 0.0},
  "task must be one of classification, .*, is 'ranking'": {"task": "ranking"},
  "MLP does not fit its data .*makes outputs of shape": {"task": "regression"},
  "num_classes must be a number": {"num_classes": None},
  "target_means must be a list of numbers": {"target_means": ["a"]},
  "classes must be a list": {"classes": 3},
  "input_range must be two numbers": {"input_range": ["a", 1]},
  "round must be a number": {"round": "x"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_header_that_says_something_else_is_refused(path, message):
  rewrite(path, **REFUSED[message])
  with pytest.raises(ModelFileError, match=message) as refused:
    sf.load_model(path)
  assert "\n" not in str(refused.value) and str(refused.value).startswith(str(path))


def test_another_compression_is_refused(tmp_path):
  with pytest.raises(ModelFileError, match="^compression='zip': must be None or 'zstd'"):
    model_file.write(tmp_path / "x.sfed", {}, exported.variables_of("mlp"), compression="zip")


def test_a_model_of_others_is_given_by_the_caller(path):
  rewrite(path, model={"class": "their.module.Network", "arguments": {}})
  loaded = sf.load_model(path, model=sf.models.MLP(3, hidden=(16, 8)))
  assert loaded.predict(np.zeros((5, 4, 6, 2))).shape == (5, 3)


def test_predictions_do_not_depend_on_the_dtype_or_the_number(path):
  loaded = sf.load_model(path)
  x = np.random.default_rng(0).integers(0, 20, (300, 4, 6, 2))
  expected = loaded.predict(x.astype(np.uint8))
  model = sf.models.MLP(3, hidden=(16, 8))
  scaled = (x.astype(np.float32) - exported.MEAN) / exported.STD
  np.testing.assert_allclose(expected, model.apply(loaded.variables, scaled), atol=1e-5)
  for dtype in (np.int64, np.float64, np.int16):
    np.testing.assert_array_equal(loaded.predict(x.astype(dtype)), expected)
  np.testing.assert_allclose(loaded.predict(x[:1]), expected[:1], atol=1e-6)


@pytest.mark.parametrize("shape", [(), (0, 4, 6, 2), (4, 6, 2), (2, 4, 6, 1)])
def test_examples_of_another_shape_are_refused(path, shape):
  with pytest.raises(ValueError, match=r"must be \(n, 4, 6, 2\)"):
    sf.load_model(path).predict(np.zeros(shape))


def test_what_is_no_number_is_refused(path):
  with pytest.raises(ValueError, match="must be numbers"):
    sf.load_model(path).predict(np.full((1, 4, 6, 2), "a"))
