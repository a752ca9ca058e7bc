"""Runs that are stopped, killed or damaged, and go on."""

import json
import shutil
import signal

import jax
import pytest

from experiments import flags, train
from experiments.run import begun
from experiments.run.build import build
from sparsyfed_jax.io import checkpoint
from sparsyfed_jax.io.writers import read_metrics, write_json
from tests import cases
from tests.experiments import kill_runs
from tests.programs import Program

SMALL = flags.DEFAULTS._replace(
  model="mlp",
  rounds=8,
  eval_every=3,
  checkpoint_every=2,
  num_clients=20,
  clients_per_round=4,
  local_epochs=1,
)
NUM_KILLS = 5


def run(directory, config=SMALL):
  directory.mkdir(exist_ok=True)
  config = flags.resolve(config._replace(output_dir=str(directory)))
  if not config.resume:
    return train.run(config, build(config), directory)
  before = train.check_resumable(config, directory)
  config = begun.with_recorded_chunk(config, begun.recorded_chunk(before))
  experiment = build(config)
  begun.check_data(before, config, experiment.facts, directory)
  return train.run(config, experiment, directory)


def final_state(directory, config=SMALL):
  experiment = build(flags.resolve(config))
  like = jax.eval_shape(experiment.simulation.init, experiment.hyper, experiment.keys.init)
  return checkpoint.restore(directory, like)


def assert_same_run(one, other, config=SMALL):
  assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
  assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
  cases.assert_same_bits(final_state(one, config), final_state(other, config))


def keep_rounds(directory, last):
  """Makes a run look as if it had been killed, later than its checkpoint of a round."""
  for place in (directory / "checkpoints").iterdir():
    if int(place.name) > last:
      shutil.rmtree(place)
  if not any((directory / "checkpoints").iterdir()):
    keep_lines(directory, SMALL.checkpoint_every)  # or the checkpoints would be missed
  (directory / "summary.json").unlink()


def record_of(directory):
  return (directory / "metrics.jsonl").read_bytes()


def keep_lines(directory, *numbers):
  """Keeps some lines of a record, by their ranges: the first 2, or (1, 2, 5, 8)."""
  lines = record_of(directory).splitlines(keepends=True)
  chosen = range(1, numbers[0] + 1) if len(numbers) == 1 else numbers
  (directory / "metrics.jsonl").write_bytes(b"".join(lines[number - 1] for number in chosen))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("whole") / "run"
  run(directory)
  return directory


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, whole, capsys):
  shutil.copytree(whole, tmp_path / "run")
  keep_rounds(tmp_path / "run", 6)
  with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
    file.write('{"round": 9, "train_')  # torn
  summary = run(tmp_path / "run", SMALL._replace(resume=True))
  assert "going on after round 6" in capsys.readouterr().out
  assert_same_run(tmp_path / "run", whole)
  assert summary["test_loss"] == json.loads((whole / "summary.json").read_text())["test_loss"]


def test_a_finished_run_can_be_resumed(tmp_path, whole):
  shutil.copytree(whole, tmp_path / "run")
  assert run(tmp_path / "run", SMALL._replace(resume=True))["seconds_per_round"] is None
  assert_same_run(tmp_path / "run", whole)


def test_without_its_checkpoints_a_run_starts_anew_only_if_it_is_told_to(tmp_path, whole, capsys):
  shutil.copytree(whole, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  with pytest.raises(flags.ConfigError, match="holds no checkpoint, and rounds 1 to 8 are record"):
    run(tmp_path / "run", SMALL._replace(resume=True))
  assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == record_of(whole)
  run(tmp_path / "run", SMALL._replace(resume=True, discard_rounds=True))
  assert "going on from round 1" in capsys.readouterr().err
  assert_same_run(tmp_path / "run", whole)
  assert (tmp_path / "run" / "metrics.discarded-1.jsonl").read_bytes() == record_of(whole)


def test_killed_before_its_first_checkpoint_a_run_starts_anew(tmp_path, whole):
  shutil.copytree(whole, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  keep_lines(tmp_path / "run", 2)  # as many as were run before the first one was due
  run(tmp_path / "run", SMALL._replace(resume=True))
  assert_same_run(tmp_path / "run", whole)
  assert not list((tmp_path / "run").glob("*discarded*"))


def damage(place, how):
  largest = max(place.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
  content = bytearray(largest.read_bytes())
  if how == "cut":
    largest.write_bytes(content[: len(content) // 2])
  elif how == "flipped":
    content[len(content) // 2] ^= 0xFF
    largest.write_bytes(content)
  else:
    shutil.rmtree(place)
    place.mkdir()


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, whole, capsys, how):
  shutil.copytree(whole, tmp_path / "run")
  newest, before = sorted((tmp_path / "run" / "checkpoints").iterdir())[::-1]
  damage(newest, how)
  run(tmp_path / "run", SMALL._replace(resume=True))
  captured = capsys.readouterr()
  assert f"{newest}: is damaged" in captured.err
  assert f"going on after round {int(before.name)}" in captured.out
  assert_same_run(tmp_path / "run", whole)


def test_another_chunk_goes_on_as_far_as_float_order_allows(tmp_path, whole):
  shutil.copytree(whole, tmp_path / "run")
  keep_rounds(tmp_path / "run", 6)
  run(tmp_path / "run", SMALL._replace(resume=True, clients_per_chunk="3"))
  cases.assert_close(final_state(tmp_path / "run"), final_state(whole), 1e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(beta=1.5), "--beta=1.5: must be 1.25"),
    (dict(rounds=9), "--rounds=9: must be 8"),
    (dict(algorithm="topk"), "--algorithm=topk: must be sparsyfed"),
  ],
)
def test_other_flags_are_refused_by_name(whole, change, message):
  with pytest.raises(flags.ConfigError, match=message):
    run(whole, SMALL._replace(resume=True, **change))


def test_a_directory_without_a_run_is_refused(tmp_path):
  with pytest.raises(flags.ConfigError, match="holds no run"):
    run(tmp_path, SMALL._replace(resume=True))


def test_only_the_newest_checkpoints_are_kept(whole):
  names = sorted(place.name for place in (whole / "checkpoints").iterdir())
  assert names == ["00000006", "00000008"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, whole, monkeypatch):
  import orbax.checkpoint as ocp

  shutil.copytree(whole, tmp_path / "run")
  keep_rounds(tmp_path / "run", 6)

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(ocp.StandardCheckpointer, "save", full)
    with pytest.raises(OSError, match=r"00000008: cannot be written.*No space left"):
      run(tmp_path / "run", SMALL._replace(resume=True))
  run(tmp_path / "run", SMALL._replace(resume=True))
  assert_same_run(tmp_path / "run", whole)


def start_program(directory, *arguments):
  return Program(
    "experiments.train",
    *("--model=mlp", "--eval_every=4", "--checkpoint_every=10", "--num_clients=20"),
    *("--clients_per_round=2", "--local_epochs=1", f"--output_dir={directory}", *arguments),
  )


def test_killed_at_any_moment_it_goes_on_to_the_bit():
  counts = kill_runs.run(["memories"], NUM_KILLS, 0)
  assert counts["killed starting"] + counts["killed training"] == NUM_KILLS
  assert counts["ended"] >= 1 and len(set(counts) & set(kill_runs.TROUBLES)) >= 3


@pytest.mark.slow
def test_killed_amid_every_trouble_it_goes_on_to_the_bit():
  counts = kill_runs.run(["memories"], 2 * NUM_KILLS, 0)
  assert counts["killed starting"] + counts["killed training"] == 2 * NUM_KILLS
  assert counts["ended"] >= 1 and set(counts) >= set(kill_runs.TROUBLES)


@pytest.mark.parametrize(
  "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path, number):
  directory = tmp_path / "run"
  with start_program(directory, "--rounds=1000000") as process:
    while "train_loss" not in process.stdout.readline():
      assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert "stopping after the rounds under way" in errors in errors
  assert f"--output_dir={directory} --resume go on" in errors
  rows = read_metrics(directory / "metrics.jsonl")
  newest = sorted(place.name for place in (directory / "checkpoints").iterdir())[-1]
  assert int(newest) == len(rows) == rows[-1]["round"]


def test_interrupted_before_the_first_round_nothing_is_kept(tmp_path):
  with start_program(tmp_path / "run", "--rounds=100") as process:
    while "compiling" not in process.stdout.readline():
      assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
  assert process.returncode == 130
  assert errors.split("\n")[1].startswith("interrupted")
  assert not (tmp_path / "run").exists()


def test_interrupted_while_it_compiles_a_resumed_run_keeps_all_that_was_there(tmp_path):
  directory = tmp_path / "run"
  directory.mkdir()
  config = flags.DEFAULTS._replace(
    **dict(model="mlp", eval_every=4, checkpoint_every=10, num_clients=20, clients_per_round=2),
    **dict(local_epochs=1, output_dir=str(directory)),
  )
  config = flags.resolve(config)
  write_json(directory / "config.json", begun.describe(config, build(config).facts))
  (directory / "notes.txt").write_text("mine")
  with start_program(directory, "--resume") as process:
    while "compiling" not in process.stdout.readline():
      assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
  assert process.returncode == 143
  assert f"interrupted; what is recorded is in {directory}" in errors
  assert (directory / "notes.txt").read_text() == "mine" and (directory / "config.json").exists()
