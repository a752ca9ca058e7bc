"""Predictions of new examples by a command."""

from types import SimpleNamespace

import numpy as np
import pytest
from absl.flags import FlagValues

from experiments import flags, predict
from sparsyfed_jax.loaded import load_model
from tests.experiments import exported


@pytest.fixture
def model(tmp_path):
  told = dict(classes=("cat", "dog", "eel"), round=4, algorithm="topk")
  return exported.write(tmp_path / "model.sfed", "mlp", **told)


@pytest.fixture
def x():
  return np.random.default_rng(0).uniform(4, 12, (7, 4, 6, 2)).astype(np.float32)


def run(tmp_path, model, *more, name="new", **arrays):
  np.savez(tmp_path / f"{name}.npz", **arrays)
  table = FlagValues()
  predict.define(table)
  given = [f"--input={tmp_path / name}.npz", f"--output={tmp_path / 'out.npz'}", *more]
  predict.main(table(["predict", str(model), *given]), table)
  with np.load(tmp_path / "out.npz") as file:
    return dict(file)


def test_classes_and_probabilities(tmp_path, model, x, capsys):
  found = run(tmp_path, model, x=x, other=np.zeros(3))
  logits = np.asarray(load_model(model).predict(x), np.float64)
  shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(found["probabilities"], shares, atol=1e-6)
  assert found["labels"].tolist() == ["cat", "dog", "eel"]
  best = [("cat", "dog", "eel")[i] for i in logits.argmax(axis=1)]
  assert found["classes"].tolist() == best and len(set(best)) > 1
  said = capsys.readouterr().out
  assert (
    "predictions of 7 examples; the model was trained on toys, examples of shape (4, 6, 2)" in said
  )
  assert "values 4 to 12, for 4 rounds of topk" in said
  again = run(tmp_path, model, "--overwrite", mine=x)  # the one array, whatever its name
  np.testing.assert_array_equal(again["probabilities"], found["probabilities"])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda x: x[:, :, :5], r"x has shape \(7, 4, 5, 2\), must be \(n, 4, 6, 2\); the model was"),
    (lambda x: x[0], r"must be \(n, 4, 6, 2\)"),
    (lambda x: x[:0], r"x has shape \(0, 4, 6, 2\)"),
    (lambda x: x / np.float32(256), "x has values from 0.01.* on the scale of 4 to 12, or --any_r"),
    (lambda x: x * 32, "on the scale of 4 to 12"),
    (lambda x: x - 40, "on the scale of 4 to 12"),
    (lambda x: np.full_like(x, 5), "on the scale of 4 to 12"),
    (lambda x: np.where(x > 11, np.nan, x), "must be of finite numbers"),
    (lambda x: x.astype(str), "must be of finite numbers"),
  ],
)
def test_other_examples_are_refused(tmp_path, model, x, change, message, capsys):
  with pytest.raises(SystemExit):
    run(tmp_path, model, x=change(x))
  assert not (tmp_path / "out.npz").exists()
  error = capsys.readouterr().err
  with pytest.raises(flags.ConfigError, match=message):
    predict.check_examples(load_model(model), change(x), "--input=new.npz", False)
  assert error.count("\n") == 1 and error.startswith("error: --input=")


def test_another_scale_is_taken_if_it_is_asked_for(tmp_path, model, x):
  assert len(run(tmp_path, model, "--any_range", x=x * 32)["classes"]) == 7


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY torn"])
def test_what_is_no_npz_is_refused(tmp_path, content):
  path = tmp_path / "x.npz"
  path.write_bytes(content)
  with pytest.raises(flags.ConfigError, match=f"^--input={path}: must be an npz"):
    predict.read_examples(path)


def test_an_npz_of_other_things_is_refused(tmp_path):
  path = tmp_path / "x.npz"
  np.savez(path, a=np.zeros(2), b=np.zeros(2))
  with pytest.raises(flags.ConfigError, match="must hold an array `x`, holds a, b"):
    predict.read_examples(path)
  with open(path, "wb") as file:
    np.save(file, np.zeros(3))
  with pytest.raises(flags.ConfigError, match="must be an npz, is a single array"):
    predict.read_examples(path)
  np.savez(path, x=np.array([object()]))
  with pytest.raises(flags.ConfigError, match="must be an npz of numbers"):
    predict.read_examples(path)
  path.write_text("a text")
  with pytest.raises(flags.ConfigError, match=r"numbers \(is another kind of file, or damaged\)$"):
    predict.read_examples(path)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["run"], "--input: must be given"),
    (["run", "--input=a.npz"], "--output: must be given"),
    (["--input=a.npz", "--output=b.npz"], r"RUN \(left out\): must be one folder"),
    (["run", "--input=a.npz", "--output=b.npz"], "--input=a.npz: must be a file that exists"),
    (["run", f"--input={__file__}", "--output=b.csv"], "--output=b.csv: must be an .npz"),
    (["run", f"--input={__file__}", "--output=b.npz", "--which=x"], "--which=x: must be one of"),
  ],
)
def test_the_command_refuses_in_a_line(arguments, message):
  table = FlagValues()
  predict.define(table)
  with pytest.raises(flags.ConfigError, match=f"^{message}"):
    predict.check(table(["predict", *arguments]), table)


def test_it_replaces_nothing_unasked(tmp_path, model, x, capsys):
  run(tmp_path, model, x=x)
  with pytest.raises(SystemExit):
    run(tmp_path, model, x=x)
  assert "exists; must be another file" in capsys.readouterr().err


def test_a_label_is_named_as_the_metrics_count_it():
  logits = np.float32([[1e-9, -1e-9, 0.0]])  # whose shares are all 0.5
  loaded = SimpleNamespace(task="multi_label", classes=(), predict=lambda x: logits)
  assert predict.predictions(loaded, None)["classes"].tolist() == [[1, 0, 0]]
