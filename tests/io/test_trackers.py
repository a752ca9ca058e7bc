"""Trackers get every row once, and never end a run."""

import contextlib
import math
import pathlib
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.io import trackers
from sparsyfed_jax.io.trackers import Tracker, TrackerError, TrackerWarning, open_trackers

CONFIG = {
  "client_lr": 0.5,
  "algorithm": "topk",
  "resume": False,
  "data": {"clients": 3},
  "no": None,
}


def make_rows(first, last, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {
      "round": i,
      "train_loss": rng.normal(),
      "test_loss": rng.normal() if i % 2 else None,
      "uplink_bytes": int(rng.integers(1 << 20)),
      "numpy": np.float32(rng.normal()),
      "jax": jnp.int32(i * i),
      "layer_density": rng.random(3).tolist(),
      "partly_known": [None, 1.0],
    }
    for i in range(first, last + 1)
  ]


def expected_series(rows):
  """What each name of a series has: a list of (step, value)."""
  series = {}
  for row in rows:
    for column, value in row.items():
      entries = enumerate(value) if isinstance(value, list) else [(None, value)]
      for i, entry in entries:
        name = column if i is None else f"{column}/{i}"
        if column != "round" and entry is not None:
          series.setdefault(name, []).append((row["round"], float(entry)))
  return series


# TensorBoard, read as it reads itself, which drops what a run that went on has again.


def read_tensorboard(directory):
  name = "tensorboard.backend.event_processing.plugin_event_accumulator"
  reader = pytest.importorskip(name)
  return reader.EventAccumulator(
    str(directory / "tensorboard"), size_guidance={reader.TENSORS: 0}
  ).Reload()


def scalars_of(events):
  return {
    tag: [(event.step, *event.tensor_proto.float_val) for event in events.Tensors(tag)]
    for tag in events.PluginTagToContent("scalars")
  }


def as_float32(series):
  return {
    tag: [(step, float(np.float32(value))) for step, value in pairs]
    for tag, pairs in series.items()
  }


def send(names, directory, rows, **options):
  with open_trackers(names, directory, CONFIG, **options) as write:
    for row in rows:
      write(row)


def test_tensorboard_has_the_values_of_the_rows_while_the_run_goes_on(tmp_path):
  rows = make_rows(1, 5)
  with open_trackers(["tensorboard"], tmp_path, CONFIG) as write:
    for i, row in enumerate(rows, start=1):
      write(row)
      found = scalars_of(read_tensorboard(tmp_path))
      assert found == as_float32(expected_series(rows[:i]))


def test_tensorboard_shows_nan_and_text(tmp_path):
  send(["tensorboard"], str(tmp_path), [{"round": 1, "loss": math.nan, "state": "diverged"}])
  events = read_tensorboard(tmp_path)
  assert math.isnan(scalars_of(events)["loss"][0][1])
  assert [event.tensor_proto.string_val[0] for event in events.Tensors("state")] == [b"diverged"]


def test_tensorboard_has_the_config(tmp_path):
  plugin_data = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
  send(["tensorboard"], tmp_path, [])
  events = read_tensorboard(tmp_path)
  (event,) = events.Tensors("config")
  text = event.tensor_proto.string_val[0].decode()
  assert '"client_lr": 0.5' in text and '"clients": 3' in text
  content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
  told = plugin_data.HParamsPluginData.FromString(content).session_start_info.hparams
  assert told["client_lr"].number_value == 0.5 and told["algorithm"].string_value == "topk"
  assert set(told) == {"client_lr", "algorithm", "resume"}


@pytest.mark.parametrize("last_round", [0, 2, 4])
@pytest.mark.parametrize("torn", [0, 7])
def test_tensorboard_has_each_step_once_after_going_on(tmp_path, last_round, torn):
  before, after = make_rows(1, 4, seed=1), make_rows(last_round + 1, 6, seed=2)
  send(["tensorboard"], tmp_path, before)
  (file,) = (tmp_path / "tensorboard").iterdir()
  file.write_bytes(file.read_bytes()[: -torn or None])
  send(["tensorboard"], tmp_path, after, last_round=last_round)
  kept = before[:last_round]
  if torn and last_round == 4:
    kept = kept[:-1]  # the row was torn
  events = read_tensorboard(tmp_path)
  assert scalars_of(events) == as_float32(expected_series(kept + after))
  steps = [event.step for event in events.Tensors("config")]
  assert steps == sorted({1, last_round + 1})


def test_tensorboard_purges_however_often_a_run_goes_on(tmp_path):
  for seed in range(12):  # more than nine files: their names are in order all the same
    send(["tensorboard"], tmp_path, make_rows(3, 4, seed), last_round=2)
  expected = as_float32(expected_series(make_rows(3, 4, seed=11)))
  assert scalars_of(read_tensorboard(tmp_path)) == expected


# Weights & Biases, through a module with the signatures of the real one.


class FakeRun:
  def __init__(self, service, id):
    self.history = service.histories.setdefault(id, [])
    self.exit_code = None
    self.is_finished = False

  def log(self, data, step=None, commit=None):
    assert commit and not self.is_finished
    if not self.history or step > self.history[-1][0]:  # as the service does
      self.history.append((step, dict(data)))

  def finish(self, exit_code=None):
    self.exit_code = exit_code
    self.is_finished = True


@pytest.fixture
def wandb(monkeypatch):
  module = types.ModuleType("wandb")
  module.histories, module.calls, module.runs = {}, [], []

  def init(*, project=None, dir=None, id=None, name=None, config=None, reinit=None, resume=None):
    assert resume == "allow" and reinit == "create_new"
    module.calls.append({"dir": dir, "id": id, "name": name, "config": config})
    module.runs.append(FakeRun(module, id))
    return module.runs[-1]

  module.init = init
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def series_of(history):
  series = {}
  for step, values in history:
    for name, value in values.items():
      series.setdefault(name, []).append((step, value))
  return series


def test_wandb_has_the_values_of_the_rows(tmp_path, monkeypatch, wandb):
  monkeypatch.chdir(tmp_path)
  directory = tmp_path / "seed=0"
  directory.mkdir()
  rows = make_rows(1, 3)
  send(["wandb"], directory.relative_to(tmp_path), rows)
  (history,) = wandb.histories.values()
  assert series_of(history) == expected_series(rows)
  (call,) = wandb.calls
  assert (call["dir"], call["name"], call["config"]) == (str(directory), "seed=0", CONFIG)
  (run,) = wandb.runs
  assert run.is_finished and not run.exit_code


def test_wandb_goes_on_with_the_run_of_the_directory(tmp_path, wandb):
  places = [tmp_path / "a", tmp_path / "b"]
  rows = make_rows(1, 6)
  for place in places:
    place.mkdir()
    send(["wandb"], place, rows[:4])
    send(["wandb"], place, rows[2:], last_round=2)
  assert len(wandb.histories) == 2
  for history in wandb.histories.values():
    assert [step for step, _ in history] == [1, 2, 3, 4, 5, 6]


def test_wandb_marks_a_run_that_failed(tmp_path, wandb):
  with pytest.raises(KeyboardInterrupt):
    with open_trackers(["wandb"], tmp_path, CONFIG):
      raise KeyboardInterrupt
  (run,) = wandb.runs
  assert run.is_finished and run.exit_code == 1


# Trackers that cannot be had, or that fail.


def test_unknown_trackers_are_named():
  with pytest.raises(TrackerError, match=r"^--trackers=mlflow: .*tensorboard, wandb$"):
    trackers.check_installed(["tensorboard", "mlflow"])


@pytest.mark.parametrize(
  "name, module, content",
  [
    ("tensorboard", "tensorboard.compat.proto", None),
    ("wandb", "wandb", None),
    ("wandb", "wandb", types.ModuleType("wandb")),  # as of the folder that runs leave
  ],
)
def test_missing_packages_are_named_before_anything_is_opened(
  tmp_path, monkeypatch, name, module, content
):
  monkeypatch.setitem(sys.modules, module, content)
  for check in (trackers.check_installed, lambda names: send(names, tmp_path, [])):
    with pytest.raises(TrackerError) as caught:
      check([name])
    message = str(caught.value)
    assert f"--trackers={name}:" in message and f"pip install -e '.[{name}]'" in message
    assert "\n" not in message
  assert list(tmp_path.iterdir()) == []


def test_packages_are_imported_only_when_asked_for():
  code = """
import sys
from sparsyfed_jax.io.trackers import open_trackers
with open_trackers([], ".", {}) as write:
  write({"round": 1})
assert not {"tensorboard", "wandb"} & set(sys.modules)
"""
  root = pathlib.Path(__file__).parents[2]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.fixture
def sent(monkeypatch):
  """Trackers `good` and `bad`, which fails at the moment that `sent["fails_at"]` names."""
  sent = {"good": [], "bad": [], "closed": [], "fails_at": None}

  def tracker(name):
    def fail(moment):
      if name == "bad" and sent["fails_at"] == moment:
        raise ConnectionError(f"no network\nat {moment}")

    def write(row):
      if row["round"] == 2:
        fail("write")
      sent[name].append(row["round"])

    @contextlib.contextmanager
    def open_one(directory, config, last_round):
      fail("open")
      try:
        yield write
      except GeneratorExit:
        raise AssertionError("left to the garbage collector") from None
      finally:
        sent["closed"].append(name)
        fail("close")

    return Tracker(lambda: None, open_one)

  for name in ("good", "bad"):
    monkeypatch.setitem(trackers.TRACKERS, name, tracker(name))
  return sent


@pytest.mark.parametrize(
  "fails_at, received", [("open", []), ("write", [1]), ("close", [1, 2, 3]), (None, [1, 2, 3])]
)
def test_a_tracker_that_fails_is_told_once_and_dropped(tmp_path, sent, fails_at, received):
  sent["fails_at"] = fails_at
  told = []
  send(["bad", "good"], tmp_path, make_rows(1, 3), warn=told.append)
  assert sent["good"] == [1, 2, 3] and sent["bad"] == received
  assert sorted(sent["closed"]) == (["good"] if fails_at == "open" else ["bad", "good"])
  assert len(told) == (fails_at is not None)
  for text in told:
    assert "--trackers=bad" in text and str(tmp_path) in text and "\n" not in text
    assert f"ConnectionError: no network at {fails_at}" in text


@pytest.mark.parametrize("fails_at", [None, "write", "close"])
def test_the_error_of_a_run_closes_all_and_gets_out(tmp_path, sent, fails_at):
  sent["fails_at"] = fails_at
  told, error = [], RuntimeError("diverged")
  with pytest.raises(RuntimeError) as caught:
    with open_trackers(["bad", "good"], tmp_path, CONFIG, warn=told.append) as write:
      write({"round": 2})
      raise error
  assert caught.value is error
  assert sorted(sent["closed"]) == ["bad", "good"]
  assert len(told) == (fails_at is not None)


def test_tensorboard_without_a_place_is_a_warning(tmp_path):
  (tmp_path / "tensorboard").write_text("mine")
  with pytest.warns(TrackerWarning, match="--trackers=tensorboard.*FileExistsError") as warned:
    send(["tensorboard"], tmp_path, make_rows(1, 3))
  assert len(warned) == 1
  assert (tmp_path / "tensorboard").read_text() == "mine"


def test_tensorboard_keeps_what_it_has_when_a_row_cannot_be_sent(tmp_path):
  first, second, third = make_rows(1, 3)
  with pytest.warns(TrackerWarning, match="--trackers=tensorboard") as warned:
    send(["tensorboard"], tmp_path, [first, second | {"bad": object()}, third])
  assert len(warned) == 1
  assert scalars_of(read_tensorboard(tmp_path)) == as_float32(expected_series([first]))
