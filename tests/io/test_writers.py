"""The files of a run: nothing lost in a crash, nothing overwritten, strict JSON throughout."""

import csv
import json
import pathlib
import stat
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.io import writers


def read_csv(directory):
  with open(directory / "metrics.csv", newline="") as file:
    return list(csv.DictReader(file))


def write_rows(directory, *rows, **options):
  with writers.MetricsWriter(directory, **options) as writer:
    for row in rows:
      writer.write(row)


@pytest.mark.parametrize("exists", [True, False])
def test_create_run_dir_makes_or_takes_an_empty_one(tmp_path, exists):
  path = tmp_path / "runs" / "a"
  if exists:
    path.mkdir(parents=True)
  assert writers.create_run_dir(str(path)) == path
  assert list(path.iterdir()) == []


def test_create_run_dir_leaves_a_full_one_untouched(tmp_path):
  (tmp_path / "summary.json").write_text("mine")
  with pytest.raises(FileExistsError) as caught:
    writers.create_run_dir(tmp_path)
  message = str(caught.value)
  assert "--output_dir" in message and str(tmp_path) in message and "new or empty" in message
  assert "\n" not in message
  assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"summary.json": "mine"}


@pytest.mark.parametrize("below", ["", "run"])
def test_create_run_dir_refuses_a_file_in_the_way(tmp_path, below):
  file = tmp_path / "file"
  file.write_text("mine")
  with pytest.raises(FileExistsError, match="--output_dir.*not a directory"):
    writers.create_run_dir(file / below)
  assert file.read_text() == "mine"


class Pair(NamedTuple):
  left: int
  right: float


def test_write_json_converts_to_strict_json(tmp_path):
  path = tmp_path / "summary.json"
  writers.write_json(
    path,
    {
      "nan": float("nan"),
      "infinite": -np.float32(np.inf),
      "numpy": np.int64(3),
      "jax": jnp.float32(0.5),
      "bfloat16": jnp.bfloat16(1.5),
      "array": np.array([1.0, np.nan]),
      "path": pathlib.Path("runs/a"),
      "nested": ({"b": True}, None, "ü"),
      "pair": Pair(1, 2.0),
      7: "key",
    },
  )

  def refuse(constant):
    raise AssertionError(constant)

  assert json.loads(path.read_text(), parse_constant=refuse) == {
    "nan": None,
    "infinite": None,
    "numpy": 3,
    "jax": 0.5,
    "bfloat16": 1.5,
    "array": [1.0, None],
    "path": "runs/a",
    "nested": [{"b": True}, None, "ü"],
    "pair": {"left": 1, "right": 2.0},
    "7": "key",
  }


def test_write_json_keeps_order_and_leaves_only_its_file(tmp_path):
  path = tmp_path / "config.json"
  writers.write_json(path, {"z": 1})
  writers.write_json(path, {"z": 1, "a": 2})
  assert path.read_text() == '{\n  "z": 1,\n  "a": 2\n}\n'
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_write_json_has_the_permissions_of_any_new_file(tmp_path):
  (tmp_path / "plain").touch()
  writers.write_json(tmp_path / "a.json", {})
  modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
  assert len(modes) == 1


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  writers.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    writers.write_json(path, {"a": object()})

  def fail(descriptor):
    raise OSError("no space left")

  monkeypatch.setattr(writers.os, "fsync", fail)
  with pytest.raises(OSError, match="no space"):
    writers.write_json(path, {"a": 2})
  assert json.loads(path.read_text()) == {"a": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_rows_are_readable_before_close(tmp_path):
  with writers.MetricsWriter(tmp_path) as writer:
    writer.write({"round": 1, "loss": np.float32(0.5), "note": 'a,"b"'})
    writer.write({"round": 2, "loss": float("nan"), "note": None})
    rows = writers.read_metrics(tmp_path / "metrics.jsonl")
    assert rows == [
      {"round": 1, "loss": 0.5, "note": 'a,"b"'},
      {"round": 2, "loss": None, "note": None},
    ]
    assert read_csv(tmp_path) == [
      {"round": "1", "loss": "0.5", "note": 'a,"b"'},
      {"round": "2", "loss": "", "note": ""},
    ]
  with pytest.raises(ValueError, match="closed"):
    writer.write({"round": 3})


def test_new_columns_widen_the_csv(tmp_path):
  write_rows(
    tmp_path,
    {"round": 1, "loss": 2.0},
    {"round": 2, "accuracy": 0.5, "loss": 1.0},
    {"round": 3},
  )
  assert (tmp_path / "metrics.csv").read_text() == "round,loss,accuracy\n1,2.0,\n2,1.0,0.5\n3,,\n"


def test_reopening_continues_the_record(tmp_path):
  write_rows(tmp_path, {"round": 1, "a": 1}, {"round": 2, "a": 2})
  write_rows(tmp_path, {"round": 3, "b": 3})
  assert [row["round"] for row in writers.read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
  assert read_csv(tmp_path)[2] == {"round": "3", "a": "", "b": "3"}


def test_resuming_leaves_the_record_of_an_uninterrupted_run(tmp_path):
  rows = [{"round": i, "loss": 1 / i} for i in range(1, 6)]
  for name in ("whole", "resumed"):
    (tmp_path / name).mkdir()
  write_rows(tmp_path / "whole", *rows)
  write_rows(tmp_path / "resumed", *rows[:4])
  with open(tmp_path / "resumed" / "metrics.jsonl", "a") as file:
    file.write('{"round": 5, "lo')
  write_rows(tmp_path / "resumed", *rows[2:], last_round=2)
  for name in ("metrics.jsonl", "metrics.csv"):
    assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


WHOLE = b'{"round": 1}\n{"round": 2, "note": "\xc3\xbc"}\n'


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_a_record_cut_anywhere_keeps_its_whole_lines(tmp_path, cut):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(WHOLE[:cut])
  rounds = [row["round"] for row in writers.read_metrics(path)]
  assert rounds in ([1, 2][: WHOLE[:cut].count(b"\n")], [1, 2][: WHOLE[: cut + 1].count(b"\n")])
  write_rows(tmp_path, {"round": 9})
  assert [row["round"] for row in writers.read_metrics(path)] == [*rounds, 9]


@pytest.mark.parametrize("line", ['{"round": 2', "[2]", "", "\x00\x00"])
def test_a_broken_line_within_is_named(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"round": 1}}\n{line}\n{{"round": 3}}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
    writers.read_metrics(path)


def test_an_empty_record_has_no_rows(tmp_path):
  write_rows(tmp_path)
  assert writers.read_metrics(tmp_path / "metrics.jsonl") == []
