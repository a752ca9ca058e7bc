"""A report over files that are damaged, or lead elsewhere: a marked row, and never a trap."""

import json
import os
import random

import pytest
from absl.flags import FlagValues

from experiments import flags
from experiments.report import __main__ as command
from experiments.report import page, runs
from experiments.run import files as run_files
from sparsyfed_jax.io.writers import MetricsWriter
from tests.experiments import test_report as made

FILES = ("config.json", "metrics.jsonl", "summary.json", "mask_similarity.json")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
  monkeypatch.setattr(page.pictures, "draw", lambda settings: [])


def write(root, algorithms=("topk", "sparsyfed")):
  rng = made.np.random.default_rng(0)
  for name in algorithms:
    rows = made.make_rows(rng)
    similarity = {"rounds": [2, 4], "iou": [[1, 0.7], [0.7, 1]]}
    config = made.make_config(algorithm=name)
    made.write(root / name, config, rows, made.make_summary(rng, rows), similarity)


def run_command(*arguments):
  table = FlagValues()
  command.define(table)
  command.main(flags.parse_with_names(["report", *map(str, arguments)], table), table)


def set_in(path, **changes):
  lines = path.read_text().splitlines()
  lines[-1] = json.dumps(json.loads(lines[-1]) | changes)
  path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
  ("name", "damage", "message"),
  [
    ("config.json", "[]", "config.json: must be a JSON object, is []"),
    ("config.json", "null", "config.json: must be a JSON object, is null"),
    ("config.json", "{}", "config.json: algorithm is missing"),
    ("config.json", b'{"algorithm": "top\xff"}', "config.json: must be JSON ('utf-8' codec"),
    ("config.json", {"rounds": "6"}, 'config.json: rounds is "6", not a value of this flag'),
    ("config.json", {"data": 7}, "config.json: data must be an object, is 7"),
    ("summary.json", "7", "summary.json: must be a JSON object, is 7"),
    ("summary.json", "{}", "summary.json: it must not be empty"),
    ("summary.json", "[" * 10**5, "summary.json: must be JSON ("),
    ("summary.json", {"test_accuracy": "0.5"}, 'must be a number from 0 to 1 or null, is "0.5"'),
    ("summary.json", {"test_accuracy": 0.125}, "summary.json: test_accuracy is 0.125, but 0."),
    ("summary.json", {"layers": [1]}, "summary.json: layers must be a list of names, is [1]"),
    ("metrics.jsonl", {"round": 7}, "metrics.jsonl: line 6: round must be 6, is 7"),
    ("metrics.jsonl", {"test_loss": {}}, "line 6: test_loss must be a number or null, is {}"),
    ("metrics.jsonl", {"layer_density": 1}, "line 6: layer_density must be a list of numbers"),
    ("metrics.jsonl", "\0", "metrics.jsonl, line 1: not JSON"),
    ("mask_similarity.json", '{"rounds": [1], "iou": [1]}', "iou must be a table of each round"),
  ],
)
def test_a_damaged_file_is_a_marked_row_that_names_it_and_the_other_runs_are_shown(
  tmp_path, capsys, name, damage, message
):
  write(tmp_path)
  path = tmp_path / "topk" / name
  if isinstance(damage, dict) and name == "metrics.jsonl":
    set_in(path, **damage)
  elif isinstance(damage, dict):
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
  elif damage == "\0":
    path.write_text("\0\n" + path.read_text())
  else:
    path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
  run_command(tmp_path, f"--out={tmp_path / 'page.html'}")
  captured = capsys.readouterr()
  assert message in captured.err and captured.err.count("\n") == 1
  assert "2 runs" in captured.out
  reader = made.Reader((tmp_path / "page.html").read_text())
  heads, *lines = reader.tables[0]
  (ended,) = (line for line in lines if line[-1] == "1")
  (marked,) = (line for line in lines if line[0] == "topk" and line[1].startswith("damaged "))
  assert message in marked[1]
  accuracy = json.loads((tmp_path / "sparsyfed" / "summary.json").read_text())["test_accuracy"]
  assert f"{100 * accuracy:.2f}" in ended
  assert "2 (1 ended, 1 damaged)" in "".join(reader.words)


def test_a_missing_column_and_a_flipped_digit_are_found(tmp_path):
  write(tmp_path, ["topk"])
  path = tmp_path / "topk" / "metrics.jsonl"
  first, second, *rest = path.read_text().splitlines(keepends=True)
  row = json.loads(second)
  del row["test_accuracy"]
  path.write_text("".join([first, json.dumps(row) + "\n", *rest]))
  with pytest.raises(run_files.DamagedError, match="line 2: test_accuracy is missing"):
    run_files.read_rows(tmp_path / "topk")
  place = tmp_path / "written"
  place.mkdir()
  with MetricsWriter(place) as writer:
    for number in (1, 2):
      writer.write({"round": number, "test_accuracy": 0.25})
  text = (place / "metrics.jsonl").read_text()
  assert len(run_files.read_rows(place)) == 2
  (place / "metrics.jsonl").write_text(text[::-1].replace("52.0", "72.0", 1)[::-1])
  with pytest.raises(run_files.DamagedError, match="line 2 does not fit its checksum"):
    run_files.read_rows(place)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("grid.json", "[]", "grid.json: must hold the flags of a sweep, is []"),
    ("grid.json", "null", "grid.json: must hold the flags of a sweep, is null"),
    ("grid.json", '{"seed": 3}', "grid.json: must hold the flags of a sweep, is"),
    ("grid.json", "{", "grid.json: must be JSON ("),
    ("runs.json", "7", "runs.json: must list the runs of the sweep"),
  ],
)
def test_a_damaged_grid_costs_no_report(tmp_path, name, content, message):
  write(tmp_path / "sweep")
  (tmp_path / "sweep" / "grid.json").write_text('{"algorithm": ["topk", "sparsyfed"]}')
  (tmp_path / "sweep" / name).write_text(content)
  report = runs.read(tmp_path)
  assert message in report.skipped["sweep/grid.json"] and len(report.runs) == 2
  assert message in "".join(made.Reader(page.make(report, "")).words)


def test_runs_that_could_not_start_are_not_missing(tmp_path):
  write(tmp_path / "sweep")
  (tmp_path / "sweep" / "grid.json").write_text('{"algorithm": ["topk", "sparsyfed", "zerofl"]}')
  listed = [{"directory": name, "point": {}} for name in ("topk", "sparsyfed")]
  listed.append({"directory": "zerofl", "point": {}, "refused": "--model=cnn: needs <images>"})
  (tmp_path / "sweep" / "runs.json").write_text(json.dumps(listed))
  report = runs.read(tmp_path)
  assert report.incomplete == {} and report.refused == {
    "sweep/zerofl": "--model=cnn: needs <images>"
  }
  said = "".join(made.Reader(page.make(report, "")).words)
  assert "refused sweep/zerofl: --model=cnn: needs <images>" in said
  (tmp_path / "sweep" / "runs.json").write_text(json.dumps([*listed, {"directory": "flash"}]))
  assert runs.read(tmp_path).incomplete == {"sweep": (2, 3)}


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path):
  root = tmp_path / "runs"
  write(root)
  (tmp_path / "secret.md").write_text("my password")
  write(tmp_path / "elsewhere", ["zerofl"])
  (root / "notes.md").symlink_to(tmp_path / "secret.md")
  (root / "picture.png").symlink_to(tmp_path / "secret.md")
  (root / "linked").symlink_to(tmp_path / "elsewhere")
  (root / "nowhere.md").symlink_to(root / "none")
  (root / "own.md").symlink_to(root / "real.md")
  (root / "real.md").write_text("shown")
  summary = root / "topk" / "summary.json"
  summary.rename(tmp_path / "summary.json")
  summary.symlink_to(tmp_path / "summary.json")
  report = runs.read(root)
  leads_out = "is a link that leads out of the folder"
  assert report.skipped == {
    "notes.md": leads_out,
    "picture.png": leads_out,
    "linked": leads_out,
    "nowhere.md": "cannot be read (No such file or directory)",
  }
  assert {run.path: run.state for run in report.runs} == {"sparsyfed": "ended", "topk": "damaged"}
  assert report.runs[1].note == f"{summary}: {leads_out}"
  assert report.tables == ["own.md", "real.md"] and report.pictures == []
  assert "my password" not in page.make(report, "")


@pytest.mark.parametrize("name", ["notes.md", "picture.png", "grid.json", "runs.json"])
def test_a_fifo_beside_the_runs_is_not_waited_for(tmp_path, name):
  write(tmp_path)
  (tmp_path / "grid.json").write_text('{"algorithm": ["topk", "sparsyfed"]}')
  (tmp_path / name).unlink(missing_ok=True)
  os.mkfifo(tmp_path / name)
  report = runs.read(tmp_path)
  (reason,) = report.skipped.values()
  assert "is no regular file" in reason and len(report.runs) == 2
  page.make(report, "")


@pytest.mark.parametrize("name", [*FILES, ".metrics.crc32"])
def test_a_fifo_in_a_run_is_not_waited_for(tmp_path, name):
  write(tmp_path)
  path = tmp_path / "topk" / name
  path.unlink(missing_ok=True)
  os.mkfifo(path)
  (run,) = (run for run in runs.read(tmp_path).runs if run.path == "topk")
  assert (run.state, run.note) == ("damaged", f"{path}: is no regular file")


def test_where_all_runs_are_damaged_the_first_is_named(tmp_path):
  write(tmp_path)
  for name in ("topk", "sparsyfed"):
    (tmp_path / name / "summary.json").write_text("null")
  with pytest.raises(flags.ConfigError, match="sparsyfed/summary.json: must be a JSON object"):
    runs.read(tmp_path)


@pytest.mark.parametrize("times", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_bytes_flipped_at_random_never_end_a_report(tmp_path, times):
  write(tmp_path)
  rng = random.Random(0)
  states = []
  for _ in range(times):
    path = tmp_path / "topk" / rng.choice(FILES)
    kept = path.read_bytes()
    damaged = bytearray(kept)
    for _ in range(rng.choice((1, 1, 3))):
      place = rng.randrange(len(damaged))
      match rng.randrange(3):
        case 0:
          damaged[place] ^= 1 << rng.randrange(8)
        case 1:
          del damaged[place : place + rng.randrange(40)]
        case _:
          damaged[place:place] = rng.choice((b"\0", b"null", b"[]", b"1e999", b"-", b'"'))
    path.write_bytes(bytes(damaged))
    report = runs.read(tmp_path)
    states += [run.state for run in report.runs if run.path == "topk"]
    page.make(report, "")
    path.write_bytes(kept)
  assert states.count("damaged") > times / 2


def test_the_page_goes_where_the_home_directory_is(tmp_path, monkeypatch):
  write(tmp_path / "runs")
  monkeypatch.setenv("HOME", str(tmp_path))
  run_command("~/runs", "--out=~/page.html")
  assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_name_that_is_no_text_is_shown_as_far_as_it_is(tmp_path):
  write(tmp_path, ["topk"])
  path = tmp_path / "topk" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "npz:a\udcff.npz"}))
  (run,) = runs.read(tmp_path).runs
  assert (run.state, run.config["dataset"]) == ("ended", "npz:a?.npz")


def test_a_report_runs_no_code_that_a_run_names(tmp_path):
  write(tmp_path, ["topk"])
  (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nMETHOD = None\n")
  path = tmp_path / "topk" / "config.json"
  name = f"{tmp_path}/own.py:METHOD"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"algorithm": name}))
  report = runs.read(tmp_path)
  assert [run.state for run in report.runs] == ["ended"]
  assert name in "".join(made.Reader(page.make(report, "")).words)
  assert not (tmp_path / "ran").exists()
