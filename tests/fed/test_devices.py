"""A cohort on four devices, in a process of its own because it has to start with them."""

import os
import subprocess
import sys

import jax

PROGRAM = """
import sys
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from sparsyfed_jax.fed.cohort import AXIS, sum_over_clients, sum_over_devices
from sparsyfed_jax.fed.simulation import simulate
from tests import cases

assert len(jax.devices()) == 4
for method in sys.argv[1:]:
  ends = {}
  for num_devices in (1, 4):
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))
    several = partial(sum_over_devices, mesh)
    simulation = simulate(
      cases.algorithm(method, "mlp"),
      cases.problem("mlp").task,
      clients_per_round=5,
      clients_per_chunk=2,
      rounds_per_call=10,
      eval_batch_size=4,
      sum_cohort=sum_over_clients if num_devices == 1 else several,
    )
    state = cases.start(method, "mlp")
    ends[num_devices] = jax.device_get(
      simulation.run(state, cases.problem("mlp").federation, jax.random.key(3), 10)
    )
  start = jax.device_get(cases.start(method, "mlp").variables)
  assert not cases.same_bits(ends[1][0].variables, start)
  (state, rows), (expected, expected_rows) = ends[4], ends[1]
  cases.assert_close(state.variables, expected.variables, 1e-5)
  cases.assert_close(rows, expected_rows, 1e-5)
print("equal")
"""


def test_several_devices_give_what_one_gives(request):
  flags = "--xla_force_host_platform_device_count=4 " + os.environ["XLA_FLAGS"]
  environment = os.environ | {
    "XLA_FLAGS": flags,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(request.config.rootpath),
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  command = [sys.executable, "-c", PROGRAM, "sparsyfed", "feddst"]
  result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
  assert result.stdout.strip() == "equal", result.stderr
