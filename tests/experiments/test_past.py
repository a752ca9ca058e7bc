"""Runs that go on over a damaged past, with other data, or beside another process."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import flags, train
from experiments.run import begun, build, resuming
from experiments.run import directory as run_directory
from sparsyfed_jax.io import checkpoint
from sparsyfed_jax.io.writers import read_metrics, write_json
from tests.experiments.test_resume import (
  SMALL,
  assert_same_run,
  keep_lines,
  keep_rounds,
  record_of,
  run,
)

RESUMED = SMALL._replace(resume=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("whole") / "run"
  run(directory)
  return directory


@pytest.fixture
def begun_run(tmp_path, whole):
  """A run of 8 rounds that was killed, with checkpoints of rounds 4 and 6."""
  shutil.copytree(whole, tmp_path / "run")
  place = tmp_path / "run" / "checkpoints"
  keep_rounds(tmp_path / "run", 6)
  experiment = build.build(flags.resolve(SMALL))
  like = jax.eval_shape(experiment.simulation.init, experiment.hyper, experiment.keys.init)
  state = checkpoint.restore(tmp_path / "run", like)
  assert [entry.name for entry in place.iterdir()] == ["00000006"]
  earlier = state._replace(server=state.server._replace(round=np.int32(4)))
  checkpoint.save(tmp_path / "run", 4, earlier, (6,))
  return tmp_path / "run"


def files_of(directory):
  return {
    path.relative_to(directory): path.read_bytes()
    for path in directory.rglob("*")
    if path.is_file() and path.name != run_directory.LOCK_NAME
  }


def refused(directory, config=RESUMED):
  """Returns the one line with which a run is refused; nothing is changed."""
  before = files_of(directory)
  with pytest.raises(flags.ConfigError) as caught:
    run(directory, config)
  assert files_of(directory) == before
  assert "\n" not in str(caught.value)
  return str(caught.value)


def write_data(path, turn=0, shade=0, keep=1, num_classes=3):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 200, (240, 8, 8, 1), dtype=np.uint8) + np.uint8(shade)
  y = (np.arange(240) % num_classes + turn) % num_classes
  np.savez(path, x=x[::keep], y=y[::keep])


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (dict(turn=1), "examples_sha256"),
    (dict(shade=1), "examples_sha256"),
    (dict(keep=2), "train_examples is 96, not the 192"),
    (dict(num_classes=4), "num_classes is 4, not the 3"),
  ],
)
def test_other_data_is_refused_before_anything_is_compiled(tmp_path, monkeypatch, change, named):
  data = tmp_path / "data.npz"
  config = SMALL._replace(dataset=f"npz:{data}", rounds=2, num_clients=4)
  write_data(data)
  facts = build.build(flags.resolve(config)).facts
  (tmp_path / "run").mkdir()
  write_json(tmp_path / "run" / "config.json", begun.describe(flags.resolve(config), facts))
  write_data(data, **change)

  def compiled(*_):
    raise AssertionError("compiled")

  monkeypatch.setattr(train, "compile_programs", compiled)
  message = refused(tmp_path / "run", config._replace(resume=True))
  assert f"--dataset=npz:{data}: " in message and named in message
  write_data(data)
  with pytest.raises(AssertionError, match="compiled"):
    run(tmp_path / "run", config._replace(resume=True))


def test_another_split_of_the_same_data_is_refused(whole):
  config = flags.resolve(SMALL)
  facts = build.build(config).facts | {"split_sha256": "0"}
  with pytest.raises(flags.ConfigError, match="--partition=dirichlet: the clients' examples"):
    begun.check_data(begun.read(whole), config, facts, whole)


def test_a_run_recorded_without_digests_goes_on_with_a_note(begun_run, whole, capsys):
  path = begun_run / "config.json"
  content = json.loads(path.read_text())
  for name in ("examples_sha256", "split_sha256"):
    del content["data"][name]
  path.write_text(json.dumps(content))
  run(begun_run, RESUMED)
  assert "without a digest of the data" in capsys.readouterr().out
  assert_same_run(begun_run, whole)


def test_another_environment_is_named_and_recorded_beside_the_first(begun_run, monkeypatch, capsys):
  first = json.loads((begun_run / "config.json").read_text())
  now = begun.describe_environment()
  now["versions"] = now["versions"] | {"jax": "9.9.9"}
  monkeypatch.setattr(begun, "describe_environment", lambda: now)
  run(begun_run, RESUMED._replace(target_accuracy=0.5))
  jax_version = first["versions"]["jax"]
  assert f"warning: jax is 9.9.9, was {jax_version} when the run" in capsys.readouterr().err
  content = json.loads((begun_run / "config.json").read_text())
  changes = content.pop("resumed")
  assert content == first
  assert changes == [{"after_round": 6, "now": {"target_accuracy": 0.5, "jax": "9.9.9"}}]
  run(begun_run, RESUMED._replace(target_accuracy=0.5))  # known by now
  assert json.loads((begun_run / "config.json").read_text())["resumed"] == changes


def test_the_first_choice_of_side_by_side_clients_is_kept(begun_run):
  content = json.loads((begun_run / "config.json").read_text())
  assert content["clients_per_chunk"] == "auto" and content["data"]["clients_per_chunk"] == 4
  content["data"]["clients_per_chunk"] = 3  # as if there had been less memory
  before = content
  config = begun.with_recorded_chunk(flags.resolve(RESUMED), begun.recorded_chunk(before))
  assert build.build(config).facts["clients_per_chunk"] == 3
  explicit = RESUMED._replace(clients_per_chunk="2")
  assert begun.with_recorded_chunk(explicit, 3) == explicit


def test_a_hole_in_the_record_is_refused_and_nothing_dropped(begun_run, whole, capsys):
  keep_lines(begun_run, 1, 2, 3, 6, 7, 8)
  recorded = record_of(begun_run)
  message = refused(begun_run)
  assert "metrics.jsonl, line 4: rounds 4 to 5 are missing" in message
  assert "--discard_rounds goes on from round 1" in message
  run(begun_run, RESUMED._replace(discard_rounds=True))
  assert "going on from round 1" in capsys.readouterr().err
  assert_same_run(begun_run, whole)
  assert (begun_run / "metrics.discarded-1.jsonl").read_bytes() == recorded


def test_rows_that_end_before_the_checkpoint_are_refused(begun_run):
  keep_lines(begun_run, 5)
  message = refused(begun_run)
  assert "ends after round 5, but the checkpoint is of round 6" in message
  assert "--discard_rounds goes on after round 4" in message


def test_a_lost_record_is_refused(begun_run):
  (begun_run / "metrics.jsonl").unlink()
  assert "ends after round 0, but the checkpoint is of round 6" in refused(begun_run)


def test_told_to_discard_it_goes_on_from_the_checkpoint_whose_rows_are_there(begun_run):
  keep_lines(begun_run, 5)
  config = flags.resolve(RESUMED._replace(discard_rounds=True))
  member = train.Member(config, build.build(config), begun_run)
  keys = member.experiment.keys
  shapes = jax.eval_shape(member.experiment.simulation.init, member.experiment.hyper, keys.init)
  assert resuming.rounds_of(resuming.restore([member], shapes, begun_run)) == 4
  names = sorted(place.name for place in (begun_run / "checkpoints").iterdir())
  assert names == ["00000004", "00000006.discarded-1"]
  # Killed now, it goes on without the flag.
  again = member._replace(config=config._replace(discard_rounds=False))
  assert resuming.rounds_of(resuming.restore([again], shapes, begun_run)) == 4


def test_rows_that_come_out_differently_are_kept_beside(begun_run, capsys):
  (begun_run / ".metrics.crc32").unlink()  # or the change would be refused
  lines = record_of(begun_run).splitlines(keepends=True)
  changed = lines[7].replace(b'"clients": 4.0', b'"clients": 3.0')
  assert changed != lines[7]
  (begun_run / "metrics.jsonl").write_bytes(b"".join([*lines[:7], changed]))
  run(begun_run, RESUMED)
  assert "round 8 does not come out as it was recorded" in capsys.readouterr().err
  assert record_of(begun_run).splitlines(keepends=True) == lines
  aside = (begun_run / "metrics.discarded-1.jsonl").read_bytes()
  assert aside.splitlines(keepends=True) == [*lines[:7], changed]


def with_row(number, **changes):
  def damage(lines):
    row = {**json.loads(lines[number - 1]), **changes}
    kept = {name: value for name, value in row.items() if value != "absent"}
    lines[number - 1] = json.dumps(kept).encode() + b"\n"

  return damage


def with_line(number, line):
  def damage(lines):
    lines[number - 1] = line

  return damage


@pytest.mark.parametrize(
  ("damage", "reason"),
  [
    (with_line(3, b"\0" * 80 + b"\n"), "line 3: not JSON"),
    (with_line(3, b'{"round": \xff3}\n'), "line 3: not JSON"),
    (with_line(3, b"[" * 100_000 + b"\n"), "line 3: not JSON"),
    (with_line(3, b"null\n"), "line 3: expected a JSON object, found None"),
    (with_line(7, b"{}\n"), "line 7: must be round 7, is None"),
    (with_row(2, round=3), "line 2: round 2 is missing"),
    (with_row(2, round=1), "line 2: must be round 2, is 1"),
    (with_row(2, round="2"), "line 2: must be round 2, is '2'"),
    (with_row(2, train_loss="absent"), "line 2: the column train_loss is missing"),
    (with_row(5, cumulative_bytes="absent"), "line 5: the column cumulative_bytes is missing"),
    (with_row(5, cumulative_bytes=None), "line 5: cumulative_bytes must be a number, is None"),
    (with_row(5, clients="4"), "line 5: clients must be a number, is '4'"),
    (with_row(5, layer_density=[0.1, {}]), "line 5: layer_density must be a number"),
  ],
)
def test_a_damaged_record_is_named_with_its_place(tmp_path, whole, damage, reason):
  lines = record_of(whole).splitlines(keepends=True)
  damage(lines)
  (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
  found = resuming.read_recorded(tmp_path, has_metrics=True)
  assert found.fault.startswith(f"{tmp_path / 'metrics.jsonl'}, {reason}")
  assert "\n" not in found.fault
  assert [row["round"] for row in found.rows] == list(range(1, len(found.rows) + 1))


def test_a_digit_that_flipped_is_named_with_its_place(begun_run):
  content = bytearray(record_of(begun_run))
  third = sum(map(len, content.splitlines(keepends=True)[:2]))
  digit = content.index(b'"train_loss": ', third) + len(b'"train_loss": ')
  content[digit] ^= 0x01
  (begun_run / "metrics.jsonl").write_bytes(content)
  message = refused(begun_run)
  assert "metrics.jsonl, line 3: is not as it was written" in message
  assert "--discard_rounds goes on from round 1" in message


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    ("[]", r"config\.json: must be a JSON object, is \[\]"),
    ("null", r"config\.json: must be a JSON object, is null"),
    ("{}", r"config\.json: dataset is missing"),
    ('{"dataset": "digits", \0', r"holds no run to go on with \(.*config\.json: not JSON"),
    (dict(data=[]), r"config\.json: data must be an object, is \[\]"),
    (dict(versions="1"), r"config\.json: versions must be an object, is \"1\""),
    (dict(rounds="8"), r"config\.json: rounds is \"8\""),
    (dict(rounds=None), r"--rounds=8: must be None"),
    (dict(resumed={}), r"config\.json: resumed must be a list of changes"),
  ],
)
def test_a_damaged_first_record_is_named(tmp_path, whole, content, reason):
  path = tmp_path / "config.json"
  if isinstance(content, dict):
    content = json.dumps({**json.loads((whole / "config.json").read_text()), **content})
  path.write_text(content)
  with pytest.raises(flags.ConfigError, match=reason) as caught:
    train.check_resumable(flags.resolve(RESUMED), tmp_path)
  assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def spoil(place):
  largest = max(place.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
  largest.write_bytes(b"spoilt")


def test_without_a_whole_checkpoint_the_run_is_refused_and_kept(begun_run, whole):
  for place in (begun_run / "checkpoints").iterdir():
    spoil(place)
  assert "no checkpoint can be used, and rounds 1 to 8 are recorded" in refused(begun_run)
  run(begun_run, RESUMED._replace(discard_rounds=True))
  assert_same_run(begun_run, whole)
  assert len(list((begun_run / "checkpoints").glob("*.discarded-1"))) == 2


def test_a_checkpoint_that_may_not_be_read_is_said(begun_run, monkeypatch, capsys):
  def forbidden(place):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(checkpoint, "_check_readable", forbidden)
  assert "no checkpoint can be used" in refused(begun_run)
  assert "00000006: cannot be read (PermissionError" in capsys.readouterr().err


def test_a_folder_of_checkpoints_that_may_not_be_read_is_said(begun_run, monkeypatch):
  listdir = os.listdir

  def forbidden(path):
    if pathlib.Path(path).name == "checkpoints":
      raise PermissionError(13, "Permission denied")
    return listdir(path)

  monkeypatch.setattr(os, "listdir", forbidden)
  with pytest.raises(checkpoint.CheckpointError, match=r"checkpoints: cannot be read: Permission"):
    run(begun_run, RESUMED)


STATE = {"a": np.arange(5, dtype=np.float32)}


def names_of(directory):
  return sorted(place.name for place in (directory / "checkpoints").iterdir())


def test_damaged_checkpoints_never_push_out_good_ones(tmp_path):
  for number in (18, 19):
    checkpoint.save(tmp_path, number, STATE)
    spoil(tmp_path / "checkpoints" / f"{number:08d}")
  intact = ()
  for number in (5, 10, 15):
    intact = checkpoint.save(tmp_path, number, STATE, intact)
  assert names_of(tmp_path) == ["00000010", "00000015", "00000018", "00000019"]
  with pytest.warns(checkpoint.DamagedWarning):
    assert checkpoint.restore(tmp_path, STATE) is not None
  intact = checkpoint.save(tmp_path, 18, STATE, intact)
  assert intact == (15, 18) and names_of(tmp_path) == ["00000015", "00000018", "00000019"]


def test_what_others_put_beside_the_checkpoints_stays(tmp_path):
  checkpoint.save(tmp_path, 1, STATE)
  folder = tmp_path / "checkpoints"
  foreign = ["best", "7", "00000001.copy", "notes.txt", "best.orbax-checkpoint-tmp"]
  for name in foreign:
    (folder / name).mkdir()
  (folder / "00000002.orbax-checkpoint-tmp").mkdir()  # of a process that was killed
  intact = checkpoint.save(tmp_path, 2, STATE, (1,))
  checkpoint.save(tmp_path, 3, STATE, intact)
  assert names_of(tmp_path) == sorted([*foreign, "00000002", "00000003"])


def test_empty_leaves_and_python_numbers_come_back(tmp_path):
  state = {"empty": np.zeros((0, 3), np.float32), "int": 2**40, "float": 0.1, "bool": True}
  checkpoint.save(tmp_path, 1, state)
  restored = checkpoint.restore(tmp_path, state)
  assert restored["empty"].shape == (0, 3) and restored["empty"].dtype == np.float32
  assert [restored[name] for name in ("int", "float", "bool")] == [2**40, 0.1, True]
  assert [type(restored[name]) for name in ("int", "float", "bool")] == [int, float, bool]


def test_what_is_no_array_is_named(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match=r"\['name'\]: must be an array or a number"):
    checkpoint.save(tmp_path, 1, {"name": "a text"})


def test_rows_are_on_the_disk_before_the_checkpoint_after_them(tmp_path, monkeypatch):
  synced, saved = [], []
  fsync, save = os.fsync, checkpoint.save

  def noted(file):
    synced.append(os.readlink(f"/proc/self/fd/{file}"))
    fsync(file)

  def save_after(directory, number, *rest):
    rows = read_metrics(directory / "metrics.jsonl")
    saved.append((len(rows), number, synced[-1]))
    return save(directory, number, *rest)

  monkeypatch.setattr(os, "fsync", noted)
  monkeypatch.setattr(checkpoint, "save", save_after)
  run(tmp_path / "run", SMALL._replace(rounds=4))
  record = str(tmp_path / "run" / "metrics.jsonl")
  assert saved == [(2, 2, record), (4, 4, record)]
  # Of a checkpoint all files are, and the names of them.
  place = str(tmp_path / "run" / "checkpoints")
  assert place in synced and sum(path.startswith(f"{place}/00000004") for path in synced) > 5


def test_a_full_disk_before_the_last_file_is_not_the_end(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr("experiments.run.loop.plot_curves", full)
    with pytest.raises(OSError, match="No space left"):
      run(tmp_path / "run", SMALL._replace(rounds=2))
  assert not (tmp_path / "run" / "summary.json").exists()
  run(tmp_path / "run", SMALL._replace(rounds=2, resume=True))
  assert (tmp_path / "run" / "summary.json").exists()


def dead_process():
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  return process.pid


def test_what_killed_processes_had_half_written_is_removed(tmp_path):
  dead = dead_process()
  (tmp_path / "masks").mkdir()
  for name in (f".metrics.csv.{dead}.tmp", f".summary.json.{dead}.tmp", f"masks/.{dead}.tmp"):
    (tmp_path / name).touch()
  kept = [f".metrics.csv.{os.getppid()}.tmp", ".mine.tmp", f".photo.png.{dead}.tmp", "a.tmp"]
  for name in kept:
    (tmp_path / name).touch()
  with run_directory.locked(tmp_path):
    assert {*os.listdir(tmp_path)} == {*kept, "masks", run_directory.LOCK_NAME}
  assert not list((tmp_path / "masks").iterdir())


def test_a_directory_in_use_is_refused_with_the_name_of_the_process(tmp_path):
  with run_directory.locked(tmp_path):
    with pytest.raises(flags.ConfigError) as caught, run_directory.locked(tmp_path):
      pass
  assert str(caught.value).startswith(
    f"--output_dir={tmp_path}: is in use by process {os.getpid()} on "
  )
  with run_directory.locked(tmp_path):
    pass


def test_without_locks_it_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
  def without(*_):
    raise OSError(37, "No locks available")

  monkeypatch.setattr(run_directory.fcntl, "flock", without)
  with run_directory.locked(tmp_path):
    pass
  assert f"the file system of {tmp_path} has no locks" in capsys.readouterr().err


def test_runs_that_start_in_one_second_have_directories_of_their_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = flags.resolve(SMALL)
  with run_directory.new(config) as one, run_directory.new(config) as two:
    with run_directory.new(config) as three:
      assert len({one.path, two.path, three.path}) == 3
      assert len(os.listdir(tmp_path / "runs")) == 3


def test_a_directory_that_another_run_has_just_taken_is_refused(tmp_path):
  config = flags.resolve(SMALL._replace(output_dir=str(tmp_path / "run")))
  with run_directory.new(config):
    with pytest.raises(flags.ConfigError, match=r"--output_dir=.*run: is in use by process"):
      with run_directory.new(config):
        pass


@pytest.mark.parametrize("is_there", [False, True])
def test_only_what_this_run_made_is_removed(tmp_path, is_there):
  place = tmp_path / "run"
  if is_there:
    place.mkdir()
  config = flags.resolve(SMALL._replace(output_dir=str(place)))
  with run_directory.new(config) as directory:
    (place / "config.json").touch()
    (place / "notes.txt").touch()
    assert not run_directory.remove_unused(directory)
    assert {*os.listdir(place)} == {"config.json", "notes.txt", run_directory.LOCK_NAME}
    (place / "notes.txt").unlink()
    (place / "metrics.jsonl").write_text("{}")
    assert not run_directory.remove_unused(directory)
    (place / "metrics.jsonl").unlink()
    assert run_directory.remove_unused(directory)
  assert place.exists() == is_there
  assert not is_there or not list(place.iterdir())


def test_nothing_of_a_resumed_run_is_removed(tmp_path):
  (tmp_path / "config.json").touch()
  resumed = run_directory.RunDirectory(tmp_path, is_new=False, is_made=False)
  assert not run_directory.remove_unused(resumed)
  assert os.listdir(tmp_path) == ["config.json"]


def test_the_home_directory_is_known_behind_the_equals_sign(monkeypatch):
  monkeypatch.setenv("HOME", "/home/somebody")
  assert flags.resolve(SMALL._replace(output_dir="~/x")).output_dir == "/home/somebody/x"
