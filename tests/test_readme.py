"""What the README and the pages of docs/ tell to run works, and what they name exists."""

import pathlib
import re
import shlex

import pytest
from absl.flags import FlagValues

from experiments import flag_files, flags
from tests import cases

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page, language):
  return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_library_program_of_the_readme_runs(capsys):
  (program,) = blocks(ROOT / "README.md", "python")
  assert len(program.splitlines()) <= 15
  short = program.replace(", 100)\n", ", 2)\n")
  assert short != program
  exec(compile(short, "README.md", "exec"), {})
  assert "test_accuracy" in capsys.readouterr().out


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_snippets_train_and_send_a_sparse_layer():
  names = {}
  for snippet in blocks(ROOT / "docs" / "own_loop.md", r"\{code-cell\} ipython3")[1:3]:
    exec(compile(snippet, "own_loop.md", "exec"), names)
  kernel = names["theta"]["kernel"]
  assert (kernel == 0).mean() == 0.75
  accuracy = (names["logits"].argmax(axis=1) == names["y"]).mean()
  assert accuracy > 0.95
  assert len(names["short"]) < len(names["update"]) < len(names["whole"])
  cases.assert_same_bits(names["again"], names["theta"])


@every_page
def test_commands_name_presets_and_flags_that_exist(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  commands = [
    line
    for block in blocks(page, "sh")
    for line in block.replace("\\\n", "").splitlines()
    if "experiments.train" in line
  ]
  assert commands or page.stem not in ("README", "first_run", "devices")
  for command in commands:
    arguments = shlex.split(command.partition("-m experiments.train")[2], comments=True)
    own = [argument for argument in arguments if argument not in ("--help", "FLAGS")]
    argv = ["train", *flag_files.expand(own)]
    values = FlagValues()
    flags.define(values, flags.strangers_in(argv))
    values(argv)
    flags.read(values)


@every_page
def test_the_files_it_names_exist(page):
  text = page.read_text(encoding="utf-8")
  named = re.findall(r"`((?:sparsyfed_jax|experiments|tests|findings)/[^`\s]*)`", text)
  linked = re.findall(r"\]\((?!http)([^)#]+)\)", text)
  for place, names in ((ROOT, named), (page.parent, linked)):
    for name in names:
      assert (place / name.replace("NAME", "fedavg")).exists(), name
