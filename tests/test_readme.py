import re
import shlex

import pytest
from absl.flags import FlagValues

from experiments import flag_files, flags
from tests import cases


@pytest.fixture
def readme(request):
  return (request.config.rootpath / "README.md").read_text()


def blocks(readme, language):
  return re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL)


def test_the_snippets_train_and_send_a_sparse_layer(readme):
  names = {}
  for snippet in blocks(readme, "python"):
    exec(compile(snippet, "README.md", "exec"), names)
  kernel = names["theta"]["kernel"]
  assert (kernel == 0).mean() == 0.75
  accuracy = (names["logits"].argmax(axis=1) == names["y"]).mean()
  assert accuracy > 0.95
  assert len(names["short"]) < len(names["update"]) < len(names["whole"])
  cases.assert_same_bits(names["again"], names["theta"])


def test_commands_name_presets_and_flags_that_exist(readme, request, monkeypatch):
  monkeypatch.chdir(request.config.rootpath)
  commands = [
    line for block in blocks(readme, "sh") for line in block.splitlines() if "experiments" in line
  ]
  assert len(commands) >= 4
  for command in commands:
    arguments = shlex.split(command.partition("-m experiments.train")[2])
    values = FlagValues()
    flags.define(values)
    own = [argument for argument in arguments if argument != "--help"]
    values(["train", *flag_files.expand(own)])
    flags.read(values)


def test_the_files_it_names_exist(readme, request):
  for path in re.findall(r"`((?:sparsyfed_jax|experiments)/[^`]*)`|\]\((?!http)([^)]+)\)", readme):
    (name,) = filter(None, path)
    assert (request.config.rootpath / name).exists(), name
