"""`experiments.bench.compiled`: what compilers say of workloads."""

import pytest
from absl import flags as absl_flags

from experiments.bench import compiled, options
from experiments.plan import targets

PROGRAM = """HloModule jit_run

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %fusion.1 = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"2000"}
}

%condition (p: f32[8]) -> pred[] {
  %p = f32[8]{0} parameter(0)
  ROOT %lt = pred[] compare(%p, %p)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %copy.1 = f32[8]{0} copy(%p), backend_config={"estimated_cycles":"1000"}
  ROOT %while.1 = f32[8]{0} while(%copy.1), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501


@pytest.mark.parametrize(("hertz", "expected"), [(1e6, 7.0), (0.0, None)])
def test_loops_count_as_often_as_they_run(hertz, expected):
  found = compiled.count(PROGRAM, {}, hertz)
  assert found["copies"] == 1 and found["estimated_ms"] == expected
  # The comparison of the loop is no operation of a round.
  assert found["operations"] == 4


def test_an_unknown_chip_is_refused(monkeypatch, capsys):
  table = absl_flags.FlagValues()
  options.define(table)
  absl_flags.DEFINE_string("target", "v9z:1x1", "", flag_values=table)
  table(["compiled"])
  monkeypatch.setattr(compiled.absl_flags, "FLAGS", table)
  with pytest.raises(SystemExit):
    compiled.main([])
  assert "--target=v9z:1x1: must be" in capsys.readouterr().err


@pytest.mark.skipif(not targets._is_installed("libtpu"), reason="needs the extra plan-tpu")
def test_a_workload_compiles(monkeypatch):
  target = targets.parse("v5e:1x1")
  for name, value in targets.environment(target).items():
    monkeypatch.setenv(name, value)
  (row,) = compiled.measure(["mlp64"], ["fedavg"], options.Settings(), target)
  assert row["clients_per_chunk"] == 100 and row["estimated_ms"] > 0.1
