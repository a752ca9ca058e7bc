"""`experiments.scaling`: points are measured once, and drawn."""

import json

import pytest
from absl import flags as absl_flags

from experiments import flags, scaling
from experiments.bench import apart


def parse(*arguments):
  table = absl_flags.FlagValues()
  scaling.define(table)
  table(["scaling", *arguments])
  return table


@pytest.fixture
def run(monkeypatch, tmp_path):
  """Runs the program without measuring; returns the points that it asked for."""
  asked = []

  def measure_apart(names, algorithms, settings):
    (workload,), (algorithm,) = names, algorithms
    asked.append((algorithm, settings.clients_per_round))
    return [
      {
        "workload": workload,
        "algorithm": algorithm,
        "clients_per_round": settings.clients_per_round,
        "seconds_per_round": 0.5 + 0.01 * settings.clients_per_round,
        "peak_memory_bytes": 500_000_000,
        "program_memory_bytes": None,
      }
    ]

  monkeypatch.setattr(apart, "measure_apart", measure_apart)
  monkeypatch.setattr(apart, "default_backend", lambda: "cpu")

  def main(*arguments):
    asked.clear()
    table = parse(f"--output_dir={tmp_path / 'out'}", *arguments)
    monkeypatch.setattr(scaling.absl_flags, "FLAGS", table)
    scaling.main([])
    return list(asked)

  return main


def test_a_point_is_measured_once(run, tmp_path, capsys):
  first = run("--clients_per_round=10,100")
  assert first == [(a, n) for n in (10, 100) for a in ("fedavg", "sparsyfed")]
  path = tmp_path / "out" / "scaling.jsonl"
  *whole, last = path.read_text().splitlines(keepends=True)
  path.write_text("".join(whole) + last[:20])  # stopped while writing
  assert run("--clients_per_round=10,100,1000", "--algorithm=sparsyfed") == [
    ("sparsyfed", 100),
    ("sparsyfed", 1000),
  ]
  assert len(path.read_text().splitlines()) == 5
  assert all(map(json.loads, path.read_text().splitlines()))
  assert "1/3  sparsyfed, 10 clients a round: measured before" in capsys.readouterr().err
  assert (tmp_path / "out" / "scaling.png").stat().st_size > 10_000
  assert (
    "| sparsyfed | 100 to 1000 | x 7 | x 0.7 |  | x 1 |"
    in (tmp_path / "out" / "table.md").read_text().splitlines()
  )


def test_points_of_other_flags_are_not_mixed(run, capsys):
  run("--clients_per_round=10")
  with pytest.raises(SystemExit):
    run("--clients_per_round=10", "--clients_per_chunk=5")
  assert "holds points of other flags" in capsys.readouterr().err


def test_more_clients_than_the_federation_has_are_refused(run, tmp_path, capsys):
  with pytest.raises(SystemExit):
    run("--clients_per_round=10,200", "--num_clients=100")
  assert "=200: must be between 1 and the 100 clients" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "0,10", "1e3", "-1"])
def test_a_bad_list_is_refused(text):
  with pytest.raises(flags.ConfigError, match="--clients_per_round="):
    scaling.read(parse(f"--clients_per_round={text}"))


def test_the_directory_must_be_given(monkeypatch, capsys):
  monkeypatch.setattr(scaling.absl_flags, "FLAGS", parse())
  monkeypatch.setattr(apart, "default_backend", lambda: "cpu")
  with pytest.raises(SystemExit):
    scaling.main([])
  assert "--output_dir: must be given" in capsys.readouterr().err
