"""Which options programs are compiled with."""

import jax

from experiments import compiling


def test_a_cpu_compiles_at_level_2(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
  options = compiling.compiler_options()
  assert options == {"xla_backend_optimization_level": "2"}
  assert compiling.compile_program(jax.jit(lambda x: 2 * x).lower(3))(3) == 6


def test_a_level_in_the_environment_is_kept(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
  assert compiling.compiler_options() is None


def test_other_backends_have_none(monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert compiling.compiler_options() is None
