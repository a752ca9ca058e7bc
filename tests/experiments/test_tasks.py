"""Runs of tasks besides classification: their columns, tables, pictures, and what is refused."""

import json

import numpy as np
import pytest

import sparsyfed_jax as sf
from experiments import flags, predict, train
from experiments.pictures import plots
from experiments.report import runs as report_runs
from experiments.run import files, keeping
from experiments.run.build import build, program_key
from experiments.run.checks import check
from experiments.run.data import load
from experiments.run.learning import recorded_judgement
from experiments.run.tasks import describe_data
from experiments.sweeps import results
from experiments.sweeps.grid import Run, place_of
from experiments.terminal import closing_table
from sparsyfed_jax.data.sources import DataError
from sparsyfed_jax.fed.tasks import TASKS
from sparsyfed_jax.io.writers import read_metrics
from tests.experiments.test_resume import assert_same_run, keep_rounds

NUM_CLIENTS = 6
PLAIN = flags.DEFAULTS._replace(
  algorithm="fedavg",
  model="mlp",
  partition="iid",
  num_clients=NUM_CLIENTS,
  clients_per_round=3,
  local_epochs=1,
  rounds=4,
  eval_every=2,
  checkpoint_every=2,
  num_devices=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp("data")
  rng = np.random.default_rng(0)
  lines = ["to be or not to be\n", "that is the question\n", "or is it?\n"]
  (place / "words.txt").write_text("".join(rng.choice(lines, 60)))
  x = rng.normal(size=(90, 4)).astype(np.float32)
  y = x @ rng.normal(size=(4, 3)) + 7
  np.savez(place / "numbers.npz", x=x, y=y, client=np.arange(90) % NUM_CLIENTS)
  np.savez(place / "labels.npz", x=x, y=(y > 7).astype(int))
  return place


def config_of(task, folder):
  if task == "next_token":
    own = dict(model="lstm", partition="natural", sequence_length=8, target=1.0, client_eval=True)
    own |= dict(keep_best="test_perplexity")
    return PLAIN._replace(dataset=f"text:{folder}/words.txt", **own)
  if task == "regression":
    own = dict(partition="natural", client_eval=True, target=1e6, keep_best="test_mse")
    return PLAIN._replace(dataset=f"npz:{folder}/numbers.npz", task=task, **own)
  own = dict(target=0.0, keep_best="test_f1")
  return PLAIN._replace(dataset=f"npz:{folder}/labels.npz", task=task, **own)


def run(directory, config):
  directory.mkdir(exist_ok=True)
  config = flags.resolve(config._replace(output_dir=str(directory)))
  check(config)
  return train.run(config, build(config), directory)


TASK_NAMES = [name for name in TASKS if name != "classification"]


@pytest.fixture(scope="module", params=TASK_NAMES)
def done(request, folder, tmp_path_factory):
  directory = tmp_path_factory.mktemp(request.param) / "run"
  return request.param, directory, run(directory, config_of(request.param, folder))


def test_what_a_run_leaves(done, capsys):
  task, directory, summary = done
  judgement = TASKS[task]
  rows = read_metrics(directory / "metrics.jsonl")
  names = [metric.name for metric in judgement.metrics]
  assert list(rows[0])[:2] == ["round", "train_loss"]
  assert {f"train_{name}" for name in names} <= set(rows[0])
  others = {m.name for one in TASKS.values() for m in one.metrics} - set(names)
  assert not {f"{part}_{name}" for part in ("train", "test") for name in others} & set(rows[0])
  for name in names:
    assert summary[f"test_{name}"] == rows[-1][f"test_{name}"] and rows[0][f"test_{name}"] is None
  config = json.loads((directory / "config.json").read_text())
  assert config["task"] == summary["task"] == task
  assert summary["target"] == config["target"] and "target_accuracy" not in summary
  assert recorded_judgement(config) == recorded_judgement(summary) == judgement
  assert {f"chance_{names[0]}", "is_chance"} <= set(summary)
  assert files.read_rows(directory) == rows
  assert files.read_summary(directory) == json.loads(json.dumps(summary))
  files.check_agreement(summary, rows, directory)
  assert (directory / "partition.png").stat().st_size > 1000
  closing_table(summary)
  printed = capsys.readouterr().out
  assert f"test {judgement.main.title}" in printed
  assert ("test accuracy" in printed) == ("accuracy" in names)


def test_the_target_is_reached_from_the_right_side(done):
  task, directory, summary = done
  # A perplexity of 1 never, an error of a million and an F1 of 0 at once.
  expected = {"next_token": None, "regression": 2, "multi_label": 2}[task]
  assert summary["rounds_to_target"] == expected
  rows = read_metrics(directory / "metrics.jsonl")
  assert summary["bytes_to_target"] == (expected and rows[1]["cumulative_bytes"])


def test_the_model_is_read_back(done, folder):
  task, directory, summary = done
  data = load(flags.resolve(config_of(task, folder)))
  loaded = sf.load_model(directory)
  outputs, y = np.asarray(loaded.predict(data.x_test), np.float64), data.y_test
  assert loaded.task == task
  if task == "next_token":
    losses = np.log(np.exp(outputs).sum(-1))
    losses = losses - np.take_along_axis(outputs, np.maximum(y, 0)[..., None], -1)[..., 0]
    assert np.exp(losses[y >= 0].mean()) == pytest.approx(summary["test_perplexity"], rel=1e-5)
    with pytest.raises(ValueError, match="x is of float32, must be tokens"):
      loaded.predict(data.x_test.astype(np.float32))
    return
  found = predict.predictions(loaded, data.x_test)
  if task == "regression":
    assert np.mean((found["numbers"] - y) ** 2) == pytest.approx(summary["test_mse"], rel=1e-4)
  else:
    assert np.mean(found["classes"] == y) == pytest.approx(summary["test_accuracy"])
    np.testing.assert_array_equal(found["probabilities"] > 0.5, outputs > 0)


def test_the_best_is_kept_by_the_metric_of_the_task(done):
  task, directory, _ = done
  main = TASKS[task].main
  rows = [row for row in read_metrics(directory / "metrics.jsonl") if row["test_loss"] is not None]
  values = [row[f"test_{main.name}"] for row in rows]
  best = rows[values.index((max if main.is_higher_better else min)(values))]
  assert sf.load_model(directory, "best").round == best["round"]
  config = flags.DEFAULTS._replace(task=task, early_stop_patience=1)
  worse = max(values) + 1 if not main.is_higher_better else min(values) - 1
  later = [{"round": 9, "test_loss": 1.0, f"test_{main.name}": worse}]
  assert keeping.reason_to_stop(config, [best, *later]).startswith(f"test_{main.name} was best")
  at_target = flags.DEFAULTS._replace(task=task, stop_at_target=True, target=values[-1])
  assert (
    keeping.reason_to_stop(at_target, rows) == f"test_{main.name} reached --target={values[-1]}"
  )
  assert not keeping.reason_to_stop(at_target._replace(target=None), rows)


def test_clients_are_compared(done):
  task, directory, summary = done
  last = read_metrics(directory / "metrics.jsonl")[-1]
  if task == "multi_label":
    assert "client_scores" not in summary and last["client_accuracy_mean"] is None
    return
  name, worst, scores = {
    "next_token": ("accuracy", "min", summary.get("client_accuracies")),
    "regression": ("mse", "max", summary.get("client_scores")),
  }[task]
  assert len(scores) == NUM_CLIENTS
  assert last[f"client_{name}_mean"] == pytest.approx(np.mean(scores))
  assert last[f"client_{name}_{worst}"] == (min if worst == "min" else max)(scores)


def test_a_run_resumes_to_the_bit(done, folder, tmp_path):
  task, directory, _ = done
  place = tmp_path / "run"
  config = config_of(task, folder)
  run(place, config)
  keep_rounds(place, 2)
  run(place, config._replace(resume=True))
  assert_same_run(place, directory, config)


def test_sweep_and_report_say_what_the_task_is_judged_by(done, folder, tmp_path):
  task, directory, summary = done
  metric = TASKS[task].main
  member = Run({"seed": "0"}, flags.resolve(config_of(task, folder)))
  place_of(member, tmp_path).symlink_to(directory)
  table = results.write_results([member], tmp_path)
  assert (tmp_path / "sweep.png").stat().st_size > 1000
  head = f"test {metric.title}" + ", %" * metric.is_share
  assert table.startswith(f"| {head} | sparsity of the model, %")
  value = f"{metric.factor * summary[f'test_{metric.name}']:.{metric.decimals}f}"
  assert table.splitlines()[2].startswith(f"| {value} |")
  report = report_runs.read(directory.parent)
  measures = {m.title: m for m in report_runs.known_measures(report.runs)}
  assert f"Test {metric.title}" in measures and "Traffic to the target accuracy" not in measures
  assert ("Test accuracy" in measures) == (task != "regression")


@pytest.mark.parametrize("task", TASKS)
def test_the_picture_shows_the_main_metric(task):
  metric = TASKS[task].main
  rows = [{"round": i, f"test_{metric.name}": 0.5 / i} for i in (1, 2, 3)]
  panel = plots._score(rows, metric)
  assert panel.title.lower() == metric.title.lower() and panel.unit == metric.unit
  assert panel.lines[0].y[0] == pytest.approx(0.5 * metric.factor)


def test_programs_of_other_targets_are_others(folder):
  path = folder / "shifted.npz"
  with np.load(folder / "numbers.npz") as arrays:
    np.savez(path, **{**arrays, "y": arrays["y"] + 5})
  config = config_of("regression", folder)
  pair = [flags.resolve(c) for c in (config, config._replace(dataset=f"npz:{path}"))]
  keys = [program_key(flags.DEFAULTS, build(one)) for one in pair]
  assert keys[0] != keys[1] and keys[0] == program_key(flags.DEFAULTS, build(pair[0]))


TEXT = dict(dataset="text:words.txt", model="lstm", partition="natural")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(task="ranking"), "--task=ranking: must be one of classification, next_token"),
    (dict(task="regression"), "--task=regression: must be classification with --dataset=digits"),
    (dict(TEXT, task="classification"), "--task=classification: must be next_token with"),
    (dict(dataset="npz:a.npz", task="next_token"), "--task=next_token: must be another with"),
    (dict(TEXT, partition="dirichlet"), "--partition=dirichlet: must be natural, iid or power_law"),
    (dict(TEXT, shift_round=5), "--shift_round=5: must be given without --task=next_token"),
    (dict(TEXT, keep_best="test_f1"), "--keep_best=test_f1: must be one of none, test_perplexity"),
    (dict(TEXT, stop_at_target=True), "--stop_at_target=True: must be given with --target$"),
    (dict(TEXT, target=0.5), "--target=0.5: must be a value of perplexity"),
    (dict(target=0.5), "--target=0.5: must be left out with classification"),
    (dict(TEXT, input_range=("0", "1")), "--input_range=.*: must be left out with --dataset=text"),
    (dict(TEXT, text_clients="verses"), "--text_clients=verses: must be one of blocks, chapters"),
    (dict(TEXT, text_pattern="("), r"--text_pattern=\(: must be a regular expression"),
    (dict(TEXT, text_columns=("text",)), "--text_columns=.*: must be two names, TEXT,CLIENT"),
    (dict(TEXT, sequence_length=0), "--sequence_length=0: must be at least 1"),
  ],
)
def test_flags_that_cannot_be_obeyed(changes, message):
  with pytest.raises(flags.ConfigError, match=message) as caught:
    check(flags.DEFAULTS._replace(**changes))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("task", "changes", "message"),
  [
    ("next_token", dict(model="mlp"), "--model=mlp: must be transformer or lstm with --task=next"),
    ("regression", dict(model="lstm"), "--model=lstm: must be a model of numbers"),
    ("regression", dict(task=None), "numbers.npz: y: .* needs one class; .* --task=regression"),
    ("multi_label", dict(task=None), "labels.npz: y: .* multi-label .* need --task=multi_label"),
    ("multi_label", dict(client_eval=True), "--client_eval: needs --partition=natural"),
    ("next_token", dict(num_clients=1000), "words.txt: num_clients=1000: must be between 1 and 60"),
  ],
)
def test_data_that_does_not_fit(task, changes, message, folder):
  config = flags.resolve(config_of(task, folder)._replace(**changes))
  with pytest.raises((flags.ConfigError, DataError), match=message) as caught:
    build(config)
  assert "\n" not in str(caught.value)


def test_a_report_tells_runs_apart_by_what_a_text_needs():
  def given(**changes):
    config = flags.resolve(flags.DEFAULTS._replace(**{**TEXT, **changes}))._asdict()
    config |= dict.fromkeys(flags.ignored(flags.DEFAULTS._replace(**{**TEXT, **changes})))
    run = report_runs.Run("", json.loads(json.dumps(config)), [], {}, report_runs.ENDED, "", {})
    return report_runs.given_flags(run)

  short, chapters = given(sequence_length=8), given(text_clients="chapters", text_pattern="x")
  assert short["sequence_length"] == 8 and "text_pattern" not in short
  assert chapters["text_pattern"] == "x" and short["task"] is None
  assert "text_clients" not in given(dataset="digits", model="mlp", partition="iid")


def test_what_was_given_in_vain_is_noted():
  assert "text_clients" in flags.ignored(flags.DEFAULTS)
  config = flags.DEFAULTS._replace(**TEXT)
  assert "text_clients" not in flags.ignored(config) and "text_pattern" in flags.ignored(config)


@pytest.mark.parametrize(
  ("task", "outputs", "said"),
  [
    ("regression", 1, "90 examples of 1 number, inputs as they are"),
    ("multi_label", 3, "90 examples of 3 labels, inputs as they are"),
  ],
)
def test_the_first_line_says_what_is_predicted(task, outputs, said):
  facts = dict(train_examples=90, num_classes=outputs, input_shape=(4,), input_range=None)
  config = PLAIN._replace(dataset="npz:there.npz", task=task)
  assert describe_data(config, facts) == said
