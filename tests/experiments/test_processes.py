"""A run of two processes on this machine, which find each other through a port."""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from experiments import flags
from experiments.run import links, processes
from experiments.run.build import build
from experiments.train import run
from sparsyfed_jax.io import checkpoint
from sparsyfed_jax.io.writers import read_metrics
from tests import cases
from tests.programs import Program

ARGUMENTS = (
  "--algorithm=topk",
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
  **dict(model="mlp", num_clients=20, clients_per_round=5, local_epochs=1, rounds=10),
  **dict(algorithm="topk", eval_every=4, checkpoint_every=5, clients_per_chunk="2"),
)


def free_port():
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def start(directory, *arguments, last=()):
  """Starts two processes, the last one with arguments of its own."""
  processes = []
  address = f"--coordinator=localhost:{free_port()}"
  # Only the first process writes; the directory of the other would not be there.
  for number, own in enumerate([directory, directory.with_name("nobody-writes-here")]):
    all_arguments = [*ARGUMENTS, f"--output_dir={own}", *arguments, *(last if number else ())]
    all_arguments += [address, "--num_processes=2", f"--process_id={number}"]
    processes.append(Program("experiments.train", *all_arguments))
  return processes


def train(*arguments, **options):
  """Runs processes to their end; returns their exit codes and outputs."""
  processes = start(*arguments, **options)
  outputs = [process.communicate(timeout=240) for process in processes]
  return [process.returncode for process in processes], outputs


def final_state(directory):
  experiment = build(flags.resolve(CONFIG))
  like = jax.eval_shape(experiment.simulation.init, experiment.hyper, experiment.keys.init)
  return checkpoint.restore(directory, like)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  directory = tmp_path_factory.mktemp("alone") / "run"
  directory.mkdir()
  config = flags.resolve(CONFIG._replace(output_dir=str(directory)))
  run(config, build(config), directory)
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


def test_two_processes_do_what_one_does(tmp_path, alone):
  directory = tmp_path / "run"
  codes, outputs = train(directory)
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
  codes, outputs = train(directory, "--resume", "--data_placement=sharded")
  assert codes == [0, 0], outputs
  assert "going on after round 5" in outputs[0][0]
  assert_same_run(directory, alone)


def test_when_one_process_refuses_all_end(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "kept").touch()
  codes, outputs = train(tmp_path / "run")
  assert codes == [2, 2]
  assert "exists and is not empty" in outputs[0][1]
  assert "error: process 0 refused: " in outputs[1][1]
  assert "exists and is not empty" in outputs[1][1]


def errors_of(outputs):
  """The last line of what each process says on stderr."""
  return [stderr.splitlines()[-1] for _, stderr in outputs]


def test_processes_with_different_flags_end_with_the_name_of_the_flag(tmp_path):
  directory = tmp_path / "run"
  codes, outputs = train(directory, last=["--seed=1", "--rounds=9"])
  assert codes == [2, 2], outputs
  assert len(set(errors_of(outputs))) == 1
  assert errors_of(outputs)[0].startswith("error: --rounds differs: process 0 has 10, process 1")
  assert "process 1 has 9; so do --seed" in errors_of(outputs)[0]
  assert not directory.exists()


def test_a_process_that_refuses_a_flag_tells_the_others(tmp_path):
  started = time.monotonic()
  codes, outputs = train(tmp_path / "run", last=["--client_lr=-1"])
  assert codes == [2, 2], outputs
  text = "--client_lr=-1.0: must be positive and finite"
  assert errors_of(outputs) == [f"error: process 1 refused: {text}", f"error: {text}"]
  assert time.monotonic() - started < 60


def test_when_a_process_is_killed_the_others_say_which(tmp_path):
  first, last = start(tmp_path / "run", "--rounds=100000")
  try:
    while "compiling" not in (line := first.stdout.readline()):
      assert line, first.stderr.read()
    last.kill()
    killed = time.monotonic()
    _, said = first.communicate(timeout=60)
  finally:
    first.kill()
    last.communicate()
  assert first.returncode == 1
  assert "\nerror: process 1 is gone, and process 0 cannot go on without it" in said
  assert "Traceback" not in said and time.monotonic() - killed < 10


def test_words_reach_all_processes():
  announced, results = queue.Queue(), {}

  def announce(text):
    if text:
      for _ in range(2):
        announced.put(text)
    return announced.get() if not text else text

  def run(rank):
    link = links.connect(rank, 3, ["no-such-host.invalid", "localhost"], announce)
    results[rank] = [link.exchange({"rank": rank, "turn": turn}) for turn in range(2)]
    link.leave()

  threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  expected = [[{"rank": rank, "turn": turn} for rank in range(3)] for turn in range(2)]
  assert results == {rank: expected for rank in range(3)}


def word(stage="flags", refused=None, **facts):
  return {"stage": stage, "refused": refused, "facts": facts}


@pytest.mark.parametrize(
  ("words", "problem"),
  [
    ([word(a=1), word(a=1)], None),
    ([word(a=1, b=2), word(a=1, b=2), word(a=1, b=3)], "b differs: process 0 has 2, process 2 has"),
    ([word(a=1), word()], "a differs: process 0 has 1, process 1 has None"),
    ([word(a=1), word("data", "no such file")], "process 1 refused: no such file"),
    ([word(), word("data")], "process 1 is at 'data' while process 0 is at 'flags'"),
  ],
)
def test_what_processes_find_when_they_compare(words, problem):
  found = processes._problem(words)
  assert found is None if problem is None else problem in found


def test_only_what_changes_no_result_may_differ_between_processes():
  shared = processes.shared(CONFIG)
  assert {"--seed", "--algorithm", "--rounds", "--resume", "jax", "jax_enable_x64"} < set(shared)
  assert not {f"--{name}" for name in processes.FREE} & set(shared)
  assert set(processes.FREE) <= set(CONFIG._fields)


def test_a_strangers_code_must_be_the_same_in_all_processes(tmp_path):
  digests = []
  for name in ("one", "other"):
    path = tmp_path / f"{name}.py"
    path.write_text(
      "from sparsyfed_jax.algorithms import fedavg\n"
      f"METHOD = fedavg.METHOD._replace(name='mine', title='{name}')\n"
    )
    config = CONFIG._replace(algorithm=f"{path}:METHOD")
    digests.append(processes.shared(config)["the code of --algorithm"])
  assert digests[0] != digests[1]


def test_a_process_whose_others_do_not_come_says_what_it_waits_for(request):
  program = (
    "from experiments import flags; from experiments.run import processes;"
    "processes.JOIN_SECONDS, processes._PATIENCE = 2, 1;"
    f"processes.join(flags.DEFAULTS._replace(coordinator='localhost:{free_port()}',"
    " num_processes=2, process_id=1))"
  )
  environment = os.environ | {"PYTHONPATH": str(request.config.rootpath), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60
  )
  assert done.returncode == 2
  waits, gives_up = done.stderr.splitlines()
  assert waits.startswith("process 1 waits for the other processes of --coordinator=localhost:")
  assert gives_up.startswith("error: process 1 waited 2 s for the other processes of")


def test_what_clients_keep_must_be_on_every_device_of_several_processes(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  config = CONFIG._replace(algorithm="scaffold", data_placement="sharded")
  with pytest.raises(flags.ConfigError, match="must be replicated in several processes"):
    build(flags.resolve(config))
