"""A run of two processes on this machine, which find each other through a port."""

import json
import os
import socket
import subprocess
import sys

import jax
import pytest

from experiments import flags
from experiments.build import build
from sparsyfed_jax.io import checkpoint
from sparsyfed_jax.io.writers import read_metrics
from tests import cases

ARGUMENTS = (
  "--model=mlp",
  "--num_clients=20",
  "--clients_per_round=5",
  "--local_epochs=1",
  "--rounds=10",
  "--eval_every=4",
  "--checkpoint_every=5",
  "--clients_per_chunk=2",
)
CONFIG = flags.DEFAULTS._replace(
  model="mlp", num_clients=20, clients_per_round=5, local_epochs=1, rounds=10, eval_every=4
)


def free_port():
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def train(root, directory, *arguments, num_processes=2):
  """Runs as many processes; returns their exit codes and outputs."""
  environment = {
    "PYTHONPATH": str(root),
    "PATH": "/usr/bin:/bin",
    "XLA_FLAGS": os.environ["XLA_FLAGS"],
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  address = f"--coordinator=localhost:{free_port()}"
  processes = []
  for number in range(num_processes):
    # Only the first process writes; the directory of the others would not be there.
    own = directory if number == 0 else directory.with_name("nobody-writes-here")
    command = [
      *(sys.executable, "-m", "experiments.train", *ARGUMENTS, f"--output_dir={own}"),
      *arguments,
    ]
    if num_processes > 1:
      command += [address, f"--num_processes={num_processes}", f"--process_id={number}"]
    processes.append(
      subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
      )
    )
  outputs = [process.communicate(timeout=240) for process in processes]
  return [process.returncode for process in processes], outputs


def final_state(directory):
  experiment = build(flags.resolve(CONFIG))
  like = jax.eval_shape(experiment.simulation.init, experiment.hyper, experiment.keys.init)
  return checkpoint.restore(directory, like)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, request):
  directory = tmp_path_factory.mktemp("alone") / "run"
  codes, outputs = train(request.config.rootpath, directory, num_processes=1)
  assert codes == [0], outputs
  return directory


def assert_same_run(directory, alone):
  cases.assert_close(final_state(directory), final_state(alone), 1e-5)
  rows = [read_metrics(place / "metrics.jsonl") for place in (directory, alone)]
  assert len(rows[0]) == len(rows[1]) == 10
  for row, expected in zip(*rows, strict=True):
    assert row.keys() == expected.keys()
    known = [name for name in row if expected[name] is not None]
    for name in known:
      assert row[name] == pytest.approx(expected[name], rel=1e-5), name


def test_two_processes_do_what_one_does(tmp_path, request, alone):
  root, directory = request.config.rootpath, tmp_path / "run"
  codes, outputs = train(root, directory)
  assert codes == [0, 0], outputs
  assert_same_run(directory, alone)
  assert not (tmp_path / "nobody-writes-here").exists()
  assert json.loads((directory / "config.json").read_text())["data"]["processes"] == 2
  assert "files in" in outputs[0][0] and "run" not in outputs[1][0]

  # Both go on from the checkpoint of round 5, which only the first can read, each with a half of
  # the clients now.
  for place in (directory / "checkpoints").iterdir():
    if place.name != "00000005":
      place.rename(tmp_path / place.name)
  (directory / "summary.json").unlink()
  codes, outputs = train(root, directory, "--resume", "--data_placement=sharded")
  assert codes == [0, 0], outputs
  assert "going on after round 5" in outputs[0][0]
  assert_same_run(directory, alone)


def test_when_one_process_refuses_all_end(tmp_path, request):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "kept").touch()
  codes, outputs = train(request.config.rootpath, tmp_path / "run")
  assert codes == [2, 2]
  assert "exists and is not empty" in outputs[0][1]
  assert "another process refused" in outputs[1][1]
