"""A method in a file of its own, beside the checkout: no other file knows of it."""

import contextlib
import json
from types import SimpleNamespace

import pytest
from absl import flags as absl_flags

from experiments import flags, sweep, table1, train
from experiments.run.build import build
from experiments.run.settings import method_of, source_digest
from experiments.studies import study
from experiments.sweeps import grid, results
from sparsyfed_jax import algorithms
from sparsyfed_jax.algorithms import METHODS, find
from sparsyfed_jax.fed.method import Choice, Knob, Method, Pattern, refusal
from sparsyfed_jax.io.writers import read_metrics

# Top-K of every n-th upload, the others dense.
SOURCE = """
from functools import partial
from typing import Annotated, NamedTuple

import jax.numpy as jnp

from sparsyfed_jax.fed import averaging
from sparsyfed_jax.fed.algorithm import Algorithm
from sparsyfed_jax.fed.method import Choice, Knob, Method
from sparsyfed_jax.fed.rule import LocalRule


class Hyper(NamedTuple):
  every: Annotated[int, Knob("rounds from one sparse upload to the next", low=1)] = 2
  until: Annotated[
    int | None, Knob("last of them", low=1, default=lambda settings: settings.rounds)
  ] = None


class Options(NamedTuple):
  when: Annotated[str, Choice("which of them", ("last", "never"))] = "last"


def nth(setup, options):
  def init(variables, hyper, key):
    return averaging.init(setup, variables, hyper)

  def client(download, memory, data, key):
    is_nth = download.extra.astype("float32") % download.hyper.own.every == 0
    is_sparse = is_nth & (options.when == "last")

    def select(received, trained, density):
      return averaging.largest_trained(received, trained, jnp.where(is_sparse, density, 1))

    return averaging.client(setup, LocalRule(), {}, select, download, memory, data, key)

  return Algorithm(
    init=init,
    broadcast=lambda state: averaging.broadcast(setup, state)._replace(extra=state.round + 1),
    client=client,
    server=partial(averaging.server, setup),
    model=lambda state: state.variables,
  )


METHOD = Method("nth", "Every n-th", nth, Hyper, Options, reads=("density",))
"""
COMMON = ["--model=mlp", "--num_clients=10", "--clients_per_round=2", "--local_epochs=1"]
COMMON += ["--eval_every=2", "--sparsity=0.8", "--sparsity_schedule=constant"]


@pytest.fixture
def name(tmp_path):
  path = tmp_path / "nth.py"
  path.write_text(SOURCE)
  return f"{path}:METHOD"


def read(name, *arguments):
  argv = ["train", *COMMON, f"--algorithm={name}", *arguments]
  table = absl_flags.FlagValues()
  flags.define(table, flags.strangers_in(argv))
  flags.parse(argv, table)
  return flags.resolve(flags.read(table)), table


def test_its_knobs_are_flags_with_help_ranges_and_defaults(name):
  config, table = read(name, "--rounds=4", "--nth_every=3")
  assert (config.nth_every, config.nth_until, config.nth_when) == (3, 4, "last")
  assert "of nth: rounds from one sparse upload to the next" in table.main_module_help() + str(
    table["nth_every"].help
  )
  with pytest.raises(flags.ConfigError, match="^--nth_every=0: must be at least 1$"):
    read(name, "--nth_every=0")
  with pytest.raises(flags.ConfigError, match="^--nth_when=x: must be one of last, never$"):
    read(name, "--nth_when=x")
  with pytest.raises(SystemExit):  # a flag of no method that the command line names
    flags.parse(["train", "--nth_every=3"], table_of_built_ins())


def table_of_built_ins():
  table = absl_flags.FlagValues()
  flags.define(table)
  return table


def test_it_runs_is_titled_and_goes_on_with_its_own_code_alone(name, tmp_path, capsys):
  config, _ = read(name, "--rounds=4", f"--output_dir={tmp_path / 'run'}")
  directory = tmp_path / "run"
  directory.mkdir()
  train.run(config, build(config), directory)
  assert method_of(config).title == "Every n-th"
  rows = read_metrics(directory / "metrics.jsonl")
  dense, sparse = rows[0], rows[1]
  assert dense["uplink_bytes"] > 2 * sparse["uplink_bytes"]
  content = json.loads((directory / "config.json").read_text())
  assert content["nth_every"] == 2 and len(content["method_sha256"]) == 64
  train.check_resumable(config._replace(resume=True), directory)
  path = tmp_path / "nth.py"
  path.write_text(SOURCE + "# changed\n")
  train.check_resumable(config._replace(resume=True), directory)  # what runs is as it was
  algorithms._load.cache_clear()  # as in another process
  with pytest.raises(flags.ConfigError, match="--algorithm=.*its file is not that which the run"):
    train.check_resumable(config._replace(resume=True), directory)


def test_where_it_cannot_be_traced_nothing_is_left_and_the_same_command_runs(
  tmp_path, monkeypatch, capsys
):
  path, directory = tmp_path / "nth.py", tmp_path / "run"
  path.write_text(SOURCE.replace("(received, trained, jnp.where", "(trained, jnp.where"))
  config, _ = read(f"{path}:METHOD", "--rounds=2", f"--output_dir={directory}")
  monkeypatch.setattr(flags, "read", lambda: config)
  monkeypatch.setattr(flags, "notes", lambda config: [])  # of the command line, which is not read
  monkeypatch.setattr(train, "leave_on_signal", lambda leave: None)
  with pytest.raises(TypeError):
    train.main([])
  assert not directory.exists()
  path.write_text(SOURCE)
  algorithms._load.cache_clear()
  capsys.readouterr()
  train.main([])
  assert capsys.readouterr().out.startswith("nth on digits")
  assert len(read_metrics(directory / "metrics.jsonl")) == 2


def test_two_of_one_name_are_refused(name, tmp_path):
  (tmp_path / "other.py").write_text(SOURCE)
  with pytest.raises(flags.ConfigError, match="other.py:METHOD: another .* is called nth, too$"):
    flags.strangers_in(["sweep", f"--algorithm={name},{tmp_path}/other.py:METHOD"])


def test_it_is_swept_beside_others(name, tmp_path):
  argv = ["sweep", *COMMON, "--rounds=2", f"--algorithm={name},topk", "--nth_every=1,2"]
  table = absl_flags.FlagValues()
  sweep.define(table, flags.strangers_in(argv))
  table(argv)
  values, runs = grid.read_grid(table)
  assert [run.point["nth_every"] for run in runs] == ["1", "2", ""]  # top-k once
  directory = tmp_path / "sweep"
  with contextlib.ExitStack() as stack:
    runs = sweep.prepare(values, runs, directory, "sequential", stack)
    sweep.run_all(runs, directory, "sequential")
    table = results.write_results(runs, directory)
  assert "| nth | 1 |" in table and (directory / "sweep.png").exists()
  assert name in (directory / "sweep.csv").read_text()


def test_it_is_studied_with_its_own_flags(name):
  argv = ["--smoke", f"--algorithm={name},topk", "--nth_every=1,2", "--sparsity=0.9", "--seed=0"]
  _, runs = study.read(table1.STUDY, [*argv, "--dirichlet_alpha=1"])
  assert [run.point["nth_every"] for run in runs] == ["1", "2", ""]


@pytest.mark.parametrize(
  ("changed", "reason"),
  [
    (("METHOD = Method", "OTHER = Method"), "AttributeError"),
    (("import jax.numpy as jnp", "import nosuch"), "No module named 'nosuch'"),
    (("METHOD = Method", "METHOD = 3\nOTHER = Method"), "is a int"),
    (('Method("nth"', 'Method("topk"'), "a name of its own, but it is called 'topk'"),
    (("Options, reads", 'Options, prefix="zerofl_", reads'), None),
    (('Annotated[str, Choice("which of them", ("last", "never"))] = "last"', "str = ''"), "Annot"),
    (('Annotated[str, Choice("which', 'Annotated[tuple[int], Choice("which'), "but is tuple.int."),
    (("every: Annotated[int,", "every: Annotated[str,"), "Hyper.every: must be float, int, bool"),
    ((", default=lambda settings: settings.rounds", ""), "Hyper.until: must have a number"),
    (("Annotated[int, ", "Annotated[nosuch, "), "name 'nosuch' is not defined"),
    (('reads=("density",)', 'reads=("densty",)'), "a tuple of some of rounds"),
    (('reads=("density",)', 'reads=["density"]'), "must be a tuple"),
    (("Options, reads", 'Options, prefix="my-", reads'), "--my-every is none"),
    (("Options, reads", 'Options, prefix="_", reads'), "--_every is none"),
  ],
)
def test_a_file_that_is_no_method_is_one_line(tmp_path, changed, reason):
  before, after = changed
  assert before in SOURCE
  path = tmp_path / "broken.py"
  path.write_text(SOURCE.replace(before, after))
  if reason is None:  # no knob of another method has such a name
    assert find(f"{path}:METHOD").name == "nth"
    return
  with pytest.raises(flags.ConfigError, match=f"^--algorithm=.*: must be .*{reason}") as caught:
    flags.strangers_in(["train", f"--algorithm={path}:METHOD"])
  assert "\n" not in str(caught.value)


def test_a_flag_that_two_methods_want_is_refused(tmp_path):
  path = tmp_path / "taken.py"
  path.write_text(SOURCE.replace("Options, reads", 'Options, prefix="flash_drop_", reads'))
  path.write_text(path.read_text().replace("  every:", "  rate:").replace("own.every", "own.rate"))
  with pytest.raises(ValueError, match="other methods have --flash_drop_rate"):
    find(f"{path}:METHOD")


@pytest.mark.parametrize("field", ["rounds", "data", "help", "preset", "sweep_mode"])
def test_a_flag_that_stands_for_something_else_is_refused(tmp_path, field):
  path = tmp_path / "taken.py"
  text = SOURCE.replace("  every:", f"  {field}:").replace("own.every", f"own.{field}")
  path.write_text(text.replace("Options, reads", 'Options, prefix="", reads'))
  with pytest.raises(flags.ConfigError, match=f"^--algorithm: .* have --{field}$"):
    flags.define(absl_flags.FlagValues(), [find(f"{path}:METHOD")])


def test_a_number_that_follows_from_others_is_checked_like_those_given(tmp_path):
  path = tmp_path / "nth.py"
  check = 'lambda hyper, sparsity: ("every", "at most --nth_until") if hyper.every > hyper.until'
  path.write_text(SOURCE.replace("Options, reads", f"Options, check={check} else None, reads"))
  name = f"{path}:METHOD"
  assert read(name, "--rounds=4", "--nth_every=3")[0].nth_until == 4
  with pytest.raises(flags.ConfigError, match="^--nth_every=5: must be at most --nth_until$"):
    read(name, "--rounds=4", "--nth_every=5")
  path.write_text(SOURCE.replace("settings.rounds", "settings.rounds // 2"))
  algorithms._load.cache_clear()
  with pytest.raises(flags.ConfigError, match="^--nth_until=0: must be at least 1"):
    read(name, "--rounds=1")
  with pytest.raises(ValueError, match="^until=0: must be at least 1"):
    find(name)().completed(SimpleNamespace(rounds=1, sparsity_schedule="cubic"))


def test_files_of_one_name_are_modules_of_their_own(tmp_path):
  names = []
  for folder, used in (("a", "Knob"), ("b", "K")):  # whose annotations mean different things
    path = tmp_path / folder / "nth.py"
    path.parent.mkdir()
    text = SOURCE.replace("Knob(", f"{used}(")
    text = text.replace("Choice, Knob, Method", f"Choice, Method, Knob as {used}")
    text = text.replace('"nth"', f'"nth_{folder}"')
    path.write_text(f"from __future__ import annotations\n{text}")
    names.append(f"{path}:METHOD")
  for method in [find(name) for name in names]:
    assert [one.name for one in method.arguments()] == ["sparsity", "every", "until", "when"]


def test_the_file_that_is_named_is_part_of_what_a_run_goes_on_with(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  path = tmp_path / "mine.py"
  text = "import functools\nimport nth_of\nMETHOD = nth_of.METHOD._replace(name='mine'"
  (tmp_path / "nth_of.py").write_text(SOURCE)
  digests = []
  for more in (")", ", title='Other')", ", make=functools.partial(nth_of.nth))"):
    path.write_text(text + more)
    algorithms._load.cache_clear()
    config, _ = read(f"{path}:METHOD")
    digests.append(source_digest(config))
  assert len(set(digests)) == 3
  (tmp_path / "nth_of.py").write_text(f"{SOURCE}# changed")
  path.write_text(text + ")")
  algorithms._load.cache_clear()
  assert source_digest(read(f"{path}:METHOD")[0]) not in digests


@pytest.mark.parametrize("record", METHODS.values(), ids=lambda record: record.name)
def test_every_knob_has_help_and_a_default_that_is_right(record):
  assert isinstance(record, Method) and record.title
  for setting in record.settings():
    assert setting.rule.help and not setting.rule.help.endswith(".")
    assert setting.default is None or not refusal(setting.rule, setting.default)
    assert setting.is_number == isinstance(setting.rule, Knob)


@pytest.mark.parametrize(
  ("rule", "value", "right"),
  [
    (Knob("", low=1), 0, "at least 1"),
    (Knob("", low=1), float("inf"), "at least 1 and finite"),
    (Knob("", low=1), 2, ""),
    (Knob("", low=0, high=1), 1.5, "between 0 and 1"),
    (Knob("", low=0, below=1), 1.0, "at least 0 and below 1"),
    (Knob("", above=0), 0.0, "positive and finite"),
    (Knob("", above=0, high=1), 2.0, "positive and at most 1"),
    (Knob("", above=0), float("nan"), "positive and finite"),
    (Knob("", low=1), None, ""),
    (Choice("", ("a", "b")), "c", "one of a, b"),
    (Choice("", ("a", "b")), "b", ""),
    (Pattern(""), "(", "a regular expression"),
    (Pattern(""), "a|b", ""),
  ],
)
def test_what_would_be_right_is_said(rule, value, right):
  assert refusal(rule, value) == right
