"""How programs are compiled."""

from types import SimpleNamespace

import jax
import pytest

from experiments.run import compiling


def test_a_cpu_compiles_at_level_2(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
  options = compiling.compiler_options("cpu")
  assert options == {"xla_backend_optimization_level": "2"}
  assert compiling.compile_program(jax.jit(lambda x: 2 * x).lower(3), "cpu")(3) == 6


def test_a_level_in_the_environment_is_kept(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
  assert compiling.compiler_options("cpu") is None


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_have_none(monkeypatch, platform):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  assert compiling.compiler_options(platform) is None


def test_programs_come_in_the_order_they_were_asked_for():
  seen = []

  def lower(number):
    seen.append(number)
    return jax.jit(lambda x: number * x).lower(1)

  lowered = [lambda: lower(3), lambda: lower(4), lambda: lower(5)]
  programs = compiling.compile_in_turn(*lowered, platform="cpu")
  assert [int(program(1)) for program in programs] == [3, 4, 5]
  assert seen == [3, 4, 5]


def test_what_cannot_be_lowered_or_compiled_is_raised():
  def refuse(*_):
    raise ValueError("no program")

  with pytest.raises(ValueError, match="no program"):
    compiling.compile_in_turn(lambda: jax.jit(lambda x: x).lower(1), refuse, platform="cpu")
  with pytest.raises(ValueError, match="no program"):
    compiling.compile_in_turn(lambda: SimpleNamespace(compile=refuse), refuse, platform="cpu")
