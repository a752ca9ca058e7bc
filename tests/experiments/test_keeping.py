"""The models that a run keeps, and runs that end early."""

import shutil
import types

import jax
import numpy as np
import pytest

import sparsyfed_jax as sf
from experiments import flags, sweep, train
from experiments.run import build as building
from experiments.run import keeping, loop
from experiments.run.data import load
from sparsyfed_jax.io import checkpoint, model_places
from sparsyfed_jax.io.writers import read_metrics
from tests import cases
from tests.experiments import exported, test_sweep
from tests.experiments.test_resume import assert_same_run, final_state, keep_rounds, run

CONFIG = flags.DEFAULTS._replace(
  model="mlp",
  rounds=8,
  eval_every=1,
  checkpoint_every=3,
  num_clients=20,
  clients_per_round=4,
  local_epochs=1,
  keep_best="test_loss",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("kept") / "run"
  run(directory, CONFIG)
  return directory


def rows_of(directory):
  return read_metrics(directory / "metrics.jsonl")


def assert_predicts_as_recorded(model, row):
  """Compares with what the run itself measured on its test examples."""
  data = load(flags.resolve(CONFIG))
  logits = np.asarray(model.predict(data.x_test), np.float64)
  shifted = logits - logits.max(axis=1, keepdims=True)
  log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
  loss = -log_shares[np.arange(len(logits)), data.y_test].mean()
  assert model.round == row["round"]
  assert loss == pytest.approx(row["test_loss"], abs=1e-5)
  hits = np.mean(logits.argmax(axis=1) == data.y_test)
  assert hits == pytest.approx(row["test_accuracy"], abs=1e-6)


def test_a_run_is_loaded_without_its_data_or_its_checkpoints(tmp_path, whole):
  (tmp_path / "run").mkdir()
  shutil.copy(whole / "model.sfed", tmp_path / "run")
  model = sf.load_model(tmp_path / "run")
  assert_predicts_as_recorded(model, rows_of(whole)[-1])
  assert type(model.model) is sf.models.MLP and model.classes == tuple(range(10))
  assert model.input_range == (0, 16) and model.seen_range == (0, 16)
  told = model.description
  assert (told["dataset"], told["algorithm"], told["task"]) == ("digits", "sparsyfed", model.task)


def test_its_weights_are_those_that_the_method_predicts_with(whole):
  experiment = building.build(flags.resolve(CONFIG))
  server = final_state(whole, CONFIG).server
  expected = experiment.algorithm.model(jax.tree.map(jax.numpy.asarray, server))
  found = sf.load_model(whole).trained
  zeros = rows_of(whole)[-1]["prunable_sparsity"]
  assert (
    np.mean(cases.flat_kernels(found["params"]) == 0) == pytest.approx(zeros, abs=1e-6) and zeros
  )
  for mine, its in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(mine, its, rtol=1e-6)


def test_the_best_evaluation_is_kept(whole):
  losses = [row["test_loss"] for row in rows_of(whole)]
  best = int(np.argmin(losses)) + 1
  assert best < 8 or sorted(losses, reverse=True) == losses  # the last is the best only by descent
  assert_predicts_as_recorded(sf.load_model(whole, which="best"), rows_of(whole)[best - 1])


def kept(directory):
  return {path.name: path.read_bytes() for path in (directory / "best").iterdir()} | {
    "model.sfed": (directory / "model.sfed").read_bytes()
  }


@pytest.mark.parametrize("last", [3, 6])
def test_a_resumed_run_keeps_the_same_models(tmp_path, whole, last):
  place = tmp_path / "run"
  shutil.copytree(whole, place)
  keep_rounds(place, last)
  best = model_places.best_rounds(place)[-1]
  for stale in set(range(last + 1, 9)) - set(model_places.best_rounds(place)):
    shutil.copy(model_places.best_path(place, best), model_places.best_path(place, stale))
  run(place, CONFIG._replace(resume=True))
  assert_same_run(place, whole, CONFIG)
  assert model_places.best_rounds(place)[-1] == model_places.best_rounds(whole)[-1]
  for name, content in kept(place).items():
    if name in kept(whole):
      assert content == kept(whole)[name]
    else:  # an earlier one, which another version might go on from
      assert int(name[:8]) < best


def test_a_run_that_was_stopped_is_loaded_as_of_its_checkpoint(tmp_path, monkeypatch, whole):
  save, calls = checkpoint.save, []

  def save_once(*given):
    if calls:
      raise KeyboardInterrupt
    calls.append(given)
    return save(*given)

  monkeypatch.setattr(checkpoint, "save", save_once)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / "run", CONFIG)
  assert_predicts_as_recorded(sf.load_model(tmp_path / "run"), rows_of(whole)[2])


def test_a_finished_run_of_an_earlier_version_gets_its_model_when_gone_on_with(tmp_path, whole):
  place = tmp_path / "run"
  shutil.copytree(whole, place)
  (place / "model.sfed").unlink()
  with pytest.raises(ValueError, match=r"model.sfed: no such file; .* \(--resume\)"):
    sf.load_model(place)
  run(place, CONFIG._replace(resume=True))
  assert (place / "model.sfed").read_bytes() == (whole / "model.sfed").read_bytes()


def test_what_is_not_there_is_named(tmp_path, whole):
  with pytest.raises(ValueError, match="best: holds no model; a run with --keep_best"):
    (tmp_path / "run").mkdir()
    sf.load_model(tmp_path / "run", which="best")
  with pytest.raises(ValueError, match="which='first': must be one of last, best"):
    sf.load_model(whole, which="first")


def rows(*values, measure="test_accuracy"):
  return [
    {"round": i, "test_accuracy": None, "test_loss": None, measure: value}
    for i, value in enumerate(values, start=1)
  ]


def test_the_first_of_equal_evaluations_is_the_best():
  nan = float("nan")
  assert keeping.best_row(rows(None, 0.5, nan, 0.7, 0.7, 0.6), "test_accuracy")["round"] == 4
  losses = rows(None, 0.5, nan, 0.3, 0.3, float("-inf"), measure="test_loss")
  assert keeping.best_row(losses, "test_loss")["round"] == 4
  assert keeping.best_row(rows(None, nan), "test_accuracy") is None
  config = flags.DEFAULTS._replace(keep_best="test_accuracy")
  assert keeping.is_best(config, rows(0.5, 0.6)) and not keeping.is_best(config, rows(0.5, 0.5))
  assert not keeping.is_best(flags.DEFAULTS, rows(0.5, 0.6))


@pytest.mark.parametrize(
  ("given", "values", "reason"),
  [
    ({"stop_at_target": True, "target_accuracy": 0.7}, (0.6, 0.69), ""),
    ({"stop_at_target": True, "target_accuracy": 0.7}, (0.6, 0.7), "test_accuracy reached --targ"),
    ({"target_accuracy": 0.7}, (0.6, 0.7), ""),
    ({"early_stop_patience": 2}, (0.6, 0.5, None, 0.7, 0.7), ""),
    ({"early_stop_patience": 2}, (0.6, 0.5, None, 0.6), "test_accuracy was best after round 1, 2"),
    ({"early_stop_patience": 1}, (), ""),
    ({"early_stop_patience": 1}, (0.5, None), ""),
  ],
)
def test_when_a_run_may_end(given, values, reason):
  found = keeping.reason_to_stop(flags.DEFAULTS._replace(**given), rows(*values))
  assert found.startswith(reason) and bool(found) == bool(reason)


def test_patience_is_of_what_is_kept():
  config = flags.DEFAULTS._replace(early_stop_patience=1, keep_best="test_loss")
  both = [
    {"round": 1, "test_accuracy": 0.5, "test_loss": 1.0},
    {"round": 2, "test_accuracy": 0.4, "test_loss": 0.9},
  ]
  assert not keeping.reason_to_stop(config, both)
  assert keeping.reason_to_stop(config._replace(keep_best="none"), both)


def test_models_are_kept_from_which_a_run_may_go_on(tmp_path):
  model, shape = exported.MODELS["mlp"]
  facts = dict(input_range=None, seen_range=None, classes=())
  member = types.SimpleNamespace(
    directory=tmp_path,
    config=CONFIG,
    experiment=types.SimpleNamespace(model=model, facts=facts, signature=exported.signature(shape)),
  )
  for number, checkpoints in [(2, ()), (4, (3,)), (5, (3,)), (8, (3, 6)), (9, (3, 6))]:
    keeping.save_best(member, exported.variables_of("mlp"), {"round": number}, checkpoints)
  # Of round 2 for a start at 3, of 5 for one at 6.
  assert model_places.best_rounds(tmp_path) == [2, 5, 9]
  keeping.drop_stale(member, 9)
  keeping.drop_stale(member, 9)
  assert model_places.best_rounds(tmp_path) == [2, 5]


def test_a_run_ends_early_and_goes_on_when_it_is_told_to(tmp_path, whole, capsys):
  accuracies = [row["test_accuracy"] for row in rows_of(whole)]
  target = accuracies[4]
  first = next(i for i, value in enumerate(accuracies, start=1) if value >= target)
  place = tmp_path / "run"
  early = CONFIG._replace(stop_at_target=True, target_accuracy=target)
  summary = run(place, early)
  assert len(rows_of(place)) == first < 8
  assert summary["stopped_because"] == f"test_accuracy reached --target_accuracy={target}"
  assert summary["rounds_to_target"] == first and summary["rounds"] == 8
  assert "ended early: test_accuracy reached" in capsys.readouterr().out
  assert sf.load_model(place).round == first
  # Once more, nothing is left to do; without the flag, the rest is.
  again = run(place, early._replace(resume=True))
  assert again["stopped_because"] == summary["stopped_because"] and len(rows_of(place)) == first
  last = run(place, CONFIG._replace(resume=True))
  assert "stopped_because" not in last
  assert_same_run(place, whole, CONFIG)
  assert kept(place)["model.sfed"] == kept(whole)["model.sfed"]


def test_what_is_kept_is_chosen_in_the_beginning(tmp_path, whole):
  with pytest.raises(flags.ConfigError, match="^--keep_best=none: must be test_loss to go on"):
    train.check_resumable(flags.resolve(CONFIG._replace(keep_best="none", resume=True)), whole)


@pytest.mark.parametrize(
  ("name", "value", "right"),
  [
    ("keep_best", "accuracy", "one of none, test_accuracy, "),
    ("keep_best", "test_perplexity", "one of none, test_accuracy, test_loss"),
    ("early_stop_patience", -1, "at least 0"),
  ],
)
def test_wrong_values_are_refused(name, value, right):
  with pytest.raises(flags.ConfigError, match=f"^--{name}={value}: must be {right}"):
    flags.check(CONFIG._replace(**{name: value}))


@pytest.mark.parametrize("given", [{"stop_at_target": True}, {"early_stop_patience": 2}])
def test_runs_side_by_side_end_together(given):
  (name,) = given
  runs = [types.SimpleNamespace(config=CONFIG._replace(**given))]
  sweep.check_mode("sequential", runs)
  with pytest.raises(flags.ConfigError, match=f"^--{name}: must be left out with --sweep_mode"):
    sweep.check_mode("vmap", runs)


def test_only_the_first_process_knows_and_all_hear(monkeypatch):
  books = loop._Books([], {}, [])
  member = types.SimpleNamespace(config=CONFIG._replace(early_stop_patience=1))
  for word, is_over in ((0, False), (1, True)):
    monkeypatch.setattr(loop.processes, "largest", lambda number, word=word: max(number, word))
    assert bool(loop._stop_reason([member], books)) == is_over


def test_runs_side_by_side_leave_a_model_each(tmp_path):
  given = ["--algorithm=topk", "--seed=0,1", "--keep_best=test_accuracy", "--eval_every=1"]
  test_sweep.run(tmp_path, *given, mode="vmap")
  data = load(flags.resolve(CONFIG))  # of seed 0
  found = {}
  for seed in (0, 1):
    place = test_sweep.place(tmp_path, f"seed={seed}")
    rows = rows_of(place)
    best = max(rows, key=lambda row: row["test_accuracy"])["round"]
    for which, row in {"last": rows[-1], "best": rows[best - 1]}.items():
      found[seed, which] = sf.load_model(place, which)
      assert found[seed, which].round == row["round"]
      if seed == 0:
        hits = np.argmax(found[seed, which].predict(data.x_test), axis=1) == data.y_test
        assert np.mean(hits) == pytest.approx(row["test_accuracy"], abs=1e-6)
  first, second = (found[seed, "last"].variables["params"]["Dense_0"]["bias"] for seed in (0, 1))
  assert np.any(first != second)
