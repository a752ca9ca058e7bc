"""Presets and files of flags, read from any folder."""

import ast
import io
import pathlib
import sys

import pytest
from absl import flags as absl_flags

from experiments import flag_files, flags, sweep, table1
from experiments.studies import study
from experiments.sweeps import grid


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def read(*arguments):
  table = absl_flags.FlagValues()
  flags.define(table)
  flags.parse(["train", *arguments], table)
  return flags.read(table)


def test_each_preset_is_read_from_any_folder():
  assert len(flag_files.presets()) == 16
  known = {
    "cifar10": "tfds:cifar10",
    "cifar100": "tfds:cifar100",
    "genesis": "text:runs/genesis.txt",
    "ssfl": "tfds:cifar10",
    "speech": "speech:~/speech_commands_v0.02",
  }
  for name in flag_files.presets():
    config = read(f"--preset={name}")
    data, _, alpha = name.partition("-lda")
    assert config.dataset == known.get(data, "digits")
    skews = {"digits-skewed": 0.1, "digits-drift": 0.05, "finetune": 1000, "ssfl": 0.3}
    assert config.dirichlet_alpha == float(alpha or skews.get(name, 1))


def test_a_preset_that_names_another_overrides_it_and_later_flags_override_both():
  skewed = read("--preset=digits-skewed")
  assert (skewed.dirichlet_alpha, skewed.rounds, skewed.local_epochs) == (0.1, 200, 5)
  assert read("--preset=digits-skewed", "--rounds=7").rounds == 7
  assert read("--rounds=7", "--preset", "digits-skewed").rounds == 200
  assert read("--rounds=7", "-preset=digits-skewed").rounds == 200


def test_a_preset_named_by_its_path_in_the_repository_is_found_from_elsewhere():
  path = "experiments/presets/digits-skewed.flags"
  assert not pathlib.Path(path).exists()
  assert read(f"--flagfile={path}") == read("--preset=digits-skewed")


def test_a_file_of_ones_own_may_name_presets_and_files(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "more.flags").write_text("--seed=3\n// a comment\n\n  --beta=2  \n")
  (tmp_path / "own.flags").write_text(
    "# mine\n--preset=digits-skewed\n--flagfile=~/more.flags\n--rounds=9\n", encoding="utf-8"
  )
  config = read("--flagfile=own.flags", "--beta=3")
  assert (config.seed, config.beta, config.rounds, config.dirichlet_alpha) == (3, 3, 9, 0.1)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--preset=nope"], "--preset=nope: must be one of cifar10-lda0.1, cifar10-lda1, "),
    (["--preset=../presets/digits"], "--preset=../presets/digits: must be one of"),
    (["--preset"], "--preset: must be given a value"),
    (["--flagfile=none.flags"], "--flagfile=none.flags: No such file or directory; must be a"),
    (["--flagfile=."], "--flagfile=.: Is a directory; must be a file"),
    (["--flagfile=circle.flags"], "circle.flags: must not include itself"),
    (["--flagfile=bytes.flags"], "--flagfile=bytes.flags: must be text in UTF-8"),
    (["--preset=digits", "--", "--preset=nope"], "'--preset=nope' is not a flag"),
  ],
)
def test_what_cannot_be_read_is_a_line(tmp_path, capsys, arguments, message):
  (tmp_path / "circle.flags").write_text("--flagfile=circle.flags\n")
  (tmp_path / "bytes.flags").write_bytes(b"--seed=\xff\n")
  with pytest.raises(SystemExit) as exit:
    read(*arguments)
  error = capsys.readouterr().err
  assert exit.value.code == 2 and error.count("\n") == 1 and message in error


def test_sweeps_and_studies_take_presets():
  table = absl_flags.FlagValues()
  sweep.define(table)
  flags.parse(["sweep", "--preset=digits-skewed", "--algorithm=topk,flash", "--seed=0,1"], table)
  _, runs = grid.read_grid(table)
  assert {(run.config.rounds, run.config.dirichlet_alpha) for run in runs} == {(200, 0.1)}
  assert len(runs) == 4
  _, runs = study.read(table1.STUDY, ["--preset=digits", "--algorithm=fedavg", "--seed=0"])
  assert {(run.config.dataset, run.config.rounds) for run in runs} == {("digits", 100)}
  _, runs = study.read(table1.STUDY, ["--algorithm=fedavg", "--seed=0"])
  assert {(run.config.dataset, run.config.rounds) for run in runs} == {("tfds:cifar10", 700)}


@pytest.mark.parametrize(
  ("encoding", "written"), [("ascii", b"1 ? 2 ?"), ("cp1252", b"1 \xb1 2 ?"), ("utf-8", None)]
)
def test_signs_beyond_the_encoding_of_the_terminal_do_not_end_a_program(
  monkeypatch, encoding, written
):
  buffer = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
  read("--preset=digits")
  print("1 ± 2 ∞", end="", flush=True)
  assert buffer.getvalue() == (written or "1 ± 2 ∞".encode())


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale(request):
  found = []
  for folder in ("experiments", "sparsyfed_jax"):
    for path in (request.config.rootpath / folder).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
          continue
        is_open = isinstance(node.func, ast.Name) and node.func.id == "open"
        is_text = getattr(node.func, "attr", "") in ("read_text", "write_text")
        modes = [ast.literal_eval(arg) for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
        is_bytes = is_open and "b" in "".join(modes)
        if (is_open or is_text) and not is_bytes:
          if "encoding" not in [keyword.arg for keyword in node.keywords]:
            found.append(f"{path.name}, line {node.lineno}")
  assert found == []
