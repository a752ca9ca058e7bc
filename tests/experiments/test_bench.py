"""`experiments.bench`: what it measures, what it says, what it refuses."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments import flags
from experiments.bench import measuring, options, workloads
from experiments.bench.options import Settings
from experiments.bench.rows import PeerTimes, compare, markdown, table_cells
from experiments.bench.workloads import WORKLOADS, Workload
from experiments.run.choices import COMPUTE_DTYPES
from sparsyfed_jax import trees
from sparsyfed_jax.fed.task import classification
from sparsyfed_jax.models import MLP
from tests import cases

REPOSITORY = pathlib.Path(__file__).parents[2]
KEYS = {
  "jax_enable_x64",
  "xla_flags",
  "metrics",
  "workload",
  "algorithm",
  "compute_dtype",
  "seconds_per_round",
  "fastest_seconds_per_round",
  "start_seconds",
  "compile_seconds",
  "seconds_of_50_rounds",
  "clients_per_second",
  "num_clients",
  "clients_per_round",
  "clients_per_chunk",
  "examples_per_round",
  "steps_per_round",
  "num_params",
  "flops_per_second",
  "share_of_matmul_peak",
  "program_memory_bytes",
  "peak_memory_bytes",
  "device",
  "versions",
}
# A peer that writes what it does to the file that it is given.
PEER = """
import sys
with open(sys.argv[1], 'a') as log:
  log.write('first ')
  print('first=5.5s', flush=True)
  for line in sys.stdin:
    log.write('round ')
    print('round=0.5s', flush=True)
  log.write('end')
"""


def parse(*arguments):
  table = absl_flags.FlagValues()
  options.define(table)
  table(["bench", *arguments])
  return table


@pytest.fixture
def tiny(monkeypatch):
  model = MLP(3, hidden=(4,))
  monkeypatch.setitem(WORKLOADS, "tiny-even", Workload(model, 3, (5,), (4, 4, 4), 3, 2))
  skewed = Workload(model, 3, (5,), (10, 1, 1), 3, 2, even="tiny-even")
  monkeypatch.setitem(WORKLOADS, "tiny-skewed", skewed)
  monkeypatch.setattr(measuring, "LEAST_CALL_SECONDS", 1e-9)
  monkeypatch.setattr(measuring, "_matmul_flops_per_second", lambda dtype, platform: 1e9)


def test_a_row_says_what_was_measured_and_beside_what(tiny):
  names = ["tiny-even", "tiny-skewed"]
  rows = measuring.measure(names, ["fedavg", "topk"], Settings(repeats=1))
  assert [(row["workload"], row["algorithm"]) for row in rows] == [
    (name, algorithm) for name in names for algorithm in ("fedavg", "topk")
  ]
  assert [set(row) - KEYS for row in rows] == [
    set(),
    {"overhead_over_fedavg"},
    {"ratio_to_even"},
    {"overhead_over_fedavg", "ratio_to_even"},
  ]
  for row in rows:
    assert set(row) >= KEYS
    assert row["num_params"] == 5 * 4 + 4 + 4 * 3 + 3
    assert row["examples_per_round"] == 12
    assert row["peak_memory_bytes"] > 0
    assert row["share_of_matmul_peak"] > 0
  assert [row["steps_per_round"] for row in rows] == [6, 6, 7, 7]
  assert json.loads(json.dumps(rows)) == rows


def test_fewer_clients_take_the_first_sizes_and_more_repeat_them(tiny):
  smaller = workloads.choose("tiny-skewed", "cpu", num_clients=2, clients_per_round=1)
  assert (smaller.sizes, smaller.clients_per_round) == ((10, 1), 1)
  assert workloads.choose("tiny-skewed", "cpu", num_clients=5).sizes == (10, 1, 1, 10, 1)


def test_overhead_is_of_the_time_of_fedavg_and_a_ratio_of_the_even_workload():
  times = {
    ("mlp64-even", "fedavg"): 2.0,
    ("mlp64-skewed", "fedavg"): 3.0,
    ("mlp64-skewed", "sparsyfed"): 4.5,
  }
  rows = [
    {"workload": name, "algorithm": algorithm, "metrics": "on", "seconds_per_round": seconds}
    for (name, algorithm), seconds in times.items()
  ]
  rows.append(rows[2] | {"metrics": "off", "seconds_per_round": 4.0})
  turns = [[1.0, 1.0], [1.5, 1.5], [2.25, 2.25], [2.0, 2.0]]
  even, fedavg, sparsyfed, without = compare(rows, turns)
  assert even == rows[0]
  assert fedavg["ratio_to_even"] == 1.5 and "overhead_over_fedavg" not in fedavg
  assert sparsyfed["overhead_over_fedavg"] == 0.5 and "ratio_to_even" not in sparsyfed
  assert sparsyfed["cost_of_metrics"] == 0.125 and without == rows[3]


def test_a_timer_warms_up_and_keeps_the_largest_memory(monkeypatch):
  calls = []
  peaks = iter([3, 7, 5])
  monkeypatch.setattr(measuring, "peak_memory_bytes", lambda: next(peaks))
  timer = measuring._warm_up(calls.append)
  assert calls == [1, 1]
  assert all(timer.run() > 0 for _ in range(3))
  assert calls[2:] == [measuring.MAX_ROUNDS_PER_CALL] * 3 and timer.peak() == 7


def test_the_table_shows_columns_that_have_values():
  rows = [
    {
      "workload": "mlp64",
      "algorithm": "sparsyfed",
      "seconds_per_round": 0.0123456,
      "clients_per_second": 8100.4,
      "compile_seconds": 1.25,
      "overhead_over_fedavg": 0.2,
      "share_of_matmul_peak": 0.312,
      "peak_memory_bytes": 5e8,
      "program_memory_bytes": None,
    },
    {"workload": "kth_magnitude", "seconds": 0.05, "speedup": 60.0},
  ]
  cells = table_cells(rows)
  assert markdown(cells).splitlines() == [
    "| workload | algorithm | s a round | over fedavg | over top_k | clients/s | compile s"
    " | of matmul peak | peak memory |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    "| mlp64 | sparsyfed | 0.0123 | +20% |  | 8,100 | 1.2 | 31.2% | 500 MB |",
    "| kth_magnitude |  | 0.05 |  | x 60 |  |  |  |  |",
  ]


def test_the_flags_are_read():
  arguments = ["--workload=cnn32,mlp64", "--algorithm=topk", "--clients_per_round=3", "--repeats=2"]
  peer = "--peer_command=cnn32=python 'a b.py' --x=1"
  names, algorithms, settings, peers = options.read(parse(*arguments, peer))
  assert (names, algorithms) == (["cnn32", "mlp64"], ["topk"])
  assert settings == Settings(repeats=2, clients_per_round=3)
  assert peers == {"cnn32": ["python", "a b.py", "--x=1"]}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--workload=mlp64,mlp"], "--workload=mlp: must be among mlp64"),
    (["--algorithm=sgd"], "--algorithm=sgd: must be among"),
    (["--algorithm="], "--algorithm: must name"),
    (["--repeats=0"], "--repeats=0"),
    (["--clients_per_chunk=0"], "--clients_per_chunk=0"),
    (["--peer_command=python pfl.py"], "must be WORKLOAD=COMMAND"),
    (["--peer_command=kth_magnitude=true"], "must be WORKLOAD=COMMAND"),
    (["--peer_command=mlp64="], "must name a command"),
    (["--peer_command=mlp64=it's"], "No closing quotation"),
    (["--peer_command=mlp64=a", "--peer_command=mlp64=b"], "at most one for each"),
  ],
)
def test_a_bad_flag_is_refused(arguments, message):
  with pytest.raises(flags.ConfigError, match=message):
    options.read(parse(*arguments))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (Settings(clients_per_round=1001), "=1001: must be between 1 and the 1000 clients of mlp64"),
    (Settings(clients_per_round=0), "--clients_per_round=0"),
    (Settings(num_clients=99), "=100: must be between 1 and the 99 clients"),
    (Settings(num_clients=0), "--num_clients=0"),
  ],
)
def test_more_clients_than_there_are_are_refused(settings, message):
  with pytest.raises(flags.ConfigError, match=message):
    options.check_sizes(["kth_magnitude", "mlp64"], "cpu", settings)


def test_a_ratio_to_a_peer_is_of_the_same_turn_and_a_start_counts_once():
  rows = [
    {
      "workload": name,
      "algorithm": "fedavg",
      "metrics": "on",
      "seconds_per_round": 0.4,
      "seconds_of_50_rounds": 30.0,
    }
    for name in ("mlp64", "cnn32")
  ]
  peers = {"mlp64": PeerTimes(first_seconds=1.0, seconds=[1.0, 2.0, 1.0])}
  beside, alone = compare(rows, [[0.4, 0.6, 0.4], [1.0, 1.0, 1.0]], peers)
  assert alone == rows[1]
  assert beside == rows[0] | {
    "peer_seconds_per_round": 1.0,
    "ratio_to_peer": 0.4,
    "quartiles_of_ratio_to_peer": [pytest.approx(0.35), 0.4],
    "peer_seconds_of_50_rounds": 50.0,
    "ratio_of_50_rounds": 0.6,
  }


def test_what_is_compared_shares_a_process():
  names = ["mlp64-skewed", "cnn32", "mlp64-even", "kth_magnitude"]
  assert workloads.group_names(names) == [
    ["mlp64-skewed", "mlp64-even"],
    ["cnn32"],
    ["kth_magnitude"],
  ]


def test_the_program_measures_without_opening_the_devices_itself(tmp_path):
  log = tmp_path / "calls"
  program = (
    "import sys, jax; from absl import flags; from experiments.bench import __main__ as bench;"
    # Whoever opens a device here fails; the processes that measure have settings of their own.
    "jax.config.update('jax_platforms', 'none_such');"
    "bench.options.define(); flags.FLAGS(sys.argv); bench.main([])"
  )
  arguments = [
    "--workload=mlp64",
    "--num_clients=3",
    "--clients_per_round=2",
    "--algorithm=fedavg",
    "--repeats=2",
    f"--output_dir={tmp_path / 'out'}",
    f'--peer_command=mlp64={sys.executable} -c "{PEER}" {log}',
  ]
  done = subprocess.run(
    [sys.executable, "-c", program, *arguments],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  row = json.loads(line)
  assert set(row) == KEYS | {
    "peer_seconds_per_round",
    "ratio_to_peer",
    "quartiles_of_ratio_to_peer",
    "peer_seconds_of_50_rounds",
    "ratio_of_50_rounds",
  }
  assert row["start_seconds"] > row["compile_seconds"] > 0
  assert row["seconds_of_50_rounds"] == row["start_seconds"] + 50 * row["seconds_per_round"]
  assert (row["num_clients"], row["clients_per_round"]) == (3, 2)
  assert (tmp_path / "out" / "bench.jsonl").read_text() == done.stdout
  assert (tmp_path / "out" / "table.md").read_text().startswith("| workload | algorithm |")
  assert "of the peer" in done.stderr
  assert log.read_text() == "first round round end"


@pytest.mark.parametrize(
  ("name", "num_params"),
  [("mlp64", 4_810), ("cnn32", 1_626_442), ("cnn28-1k", 1_690_046), ("resnet18-c10", 11_173_962)],
)
def test_networks_have_the_parameters_of_their_peers(name, num_params, key):
  workload = WORKLOADS[name]
  variables = jax.eval_shape(classification(workload.model, workload.shape).init, key)
  assert trees.size(variables["params"]) == num_params


def test_skewed_and_even_clients_have_as_many_examples():
  for name in ("mlp64", "cnn32"):
    skewed, even = (WORKLOADS[f"{name}-{kind}"].sizes for kind in ("skewed", "even"))
    assert (sum(skewed), len(skewed)) == (sum(even), len(even))
    assert min(skewed) == 1
    assert max(even) - min(even) <= 1
  assert max(WORKLOADS["mlp64-skewed"].sizes) == 500


def test_a_cpu_gets_what_it_can_do():
  assert "resnet18-c10" not in workloads.suiting("cpu")
  assert workloads.suiting("gpu") == list(WORKLOADS)
  on_cpu, on_gpu = (workloads.choose("cnn28-1k", backend) for backend in ("cpu", "gpu"))
  assert (len(on_cpu.sizes), on_cpu.clients_per_round) == (1000, 100)
  assert (len(on_gpu.sizes), on_gpu.clients_per_round) == (10_000, 1000)


def test_every_example_has_one_client(tiny):
  federation = workloads.random_federation(WORKLOADS["tiny-skewed"])
  sizes = np.asarray(federation.sizes)
  assert sizes.tolist() == [10, 1, 1]
  owned = [row for client in range(3) for row in cases.list_of(federation, client)]
  assert sorted(owned) == list(range(12)) and federation.x.shape == (12, 5)


@pytest.mark.parametrize("compute_dtype", COMPUTE_DTYPES)
def test_the_peak_is_of_products_in_the_type_that_is_measured(compute_dtype):
  matrix, precision = workloads.random_matrix(2, compute_dtype)
  dtypes = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"}
  assert str(matrix.dtype) == dtypes[compute_dtype]
  assert precision == ("tensorfloat32" if compute_dtype == "tf32" else "float32")


@pytest.mark.parametrize("program", ["torch_loop", "pfl_rounds", "fedjax_rounds"])
def test_peers_do_the_work_of_the_workload(program, monkeypatch):
  monkeypatch.syspath_prepend(REPOSITORY / "experiments" / "peers")  # as when it is run
  peer = importlib.import_module(program)
  for name, work in peer.WORKLOADS.items():
    workload = WORKLOADS[name]
    assert workload.sizes == (work.examples_per_client,) * work.num_clients
    assert workload.clients_per_round == work.clients_per_round
    assert workload.batch_size == work.batch_size
    assert sorted(workload.shape) == sorted(work.shape)
