"""The machine that a run has."""

import os
from types import SimpleNamespace

import jax
import pytest

from experiments.run import environment


@pytest.fixture
def asked(monkeypatch):
  """A process without devices on a machine of four cores; lists what it asks jax for."""
  found = []
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
  config = SimpleNamespace(
    values={"jax_num_cpu_devices": -1}, update=lambda *pair: found.append(pair)
  )
  monkeypatch.setattr(environment.jax, "config", config)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  return found


@pytest.mark.parametrize(
  ("num_devices", "expected"), [(None, None), (1, None), (2, 2), (4, 4), (9, 4)]
)
def test_a_cpu_is_as_many_devices_as_it_has_cores_at_most(asked, num_devices, expected):
  environment.split_cpu(num_devices)
  assert asked == ([("jax_num_cpu_devices", expected)] if expected else [])


def test_a_number_in_the_environment_is_kept(asked, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
  environment.split_cpu(2)
  monkeypatch.delenv("XLA_FLAGS")
  monkeypatch.setitem(jax.config.values, "jax_num_cpu_devices", 3)
  environment.split_cpu(2)
  assert not asked


def test_a_process_that_has_devices_keeps_them():
  before = jax.devices()
  environment.split_cpu(2)
  assert jax.devices() == before
