"""Plans of runs for chips that are not there; some of it needs their compilers."""

import json
import os
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import flag_files, flags
from experiments.plan import __main__ as plan
from experiments.plan import checking, examples, hlo, options, pages, targets, worker
from experiments.plan.asking import PlanError, Worker
from experiments.plan.outlining import trips_of
from experiments.plan.search import Largest, find_largest, fits, total_bytes
from experiments.plan.worker import Request
from sparsyfed_jax.data.dataset import DataError

TINY = ["--model=mlp", "--num_clients=6", "--clients_per_round=4", "--local_epochs=1"]

# A program of a round as a TPU's compiler writes it, shortened.
PROGRAM = """HloModule jit_run, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %ge = pred[8]{0} compare(%p, %p), metadata={op_name="jit(run)/while/body/thresholds/ge"}
}

%joined (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %all-reduce.2 = f32[8]{0} all-reduce(%p), to_apply=%sum
}

%step (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %dot = f32[8]{0} fusion(%x), kind=kOutput, calls=%sum, metadata={op_name="jit(run)/while/body/clients/local_training/while/body/vmap(local_steps)/while/body/jvp(x)/dot_general"}, backend_config={"estimated_cycles":"100"}
  %copy = f32[8]{0} copy(%dot), backend_config={"estimated_cycles":"3"}
  ROOT %r = (s32[]{:T(128)}, f32[8]{0}) tuple(%t, %copy)
}

%limit (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]) parameter(0)
  %c = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%t, %c), direction=LT
}

%unknown (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]) parameter(0)
  ROOT %lt = pred[] compare(%t, %t), direction=LT
}

%epoch (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]) parameter(0)
  %w1 = (s32[], f32[8]) while(%t), condition=%unknown, body=%step, metadata={op_name="jit(run)/while/body/clients/local_training/while/body/vmap(local_steps)/while"}
  %w2 = (s32[], f32[8]) while(%w1), condition=%unknown, body=%step, metadata={op_name="jit(run)/while/body/clients/local_training/while/body/vmap(local_steps)/while"}
  ROOT %gather = f32[8]{0} gather(%w2), metadata={op_name="jit(run)/while/body/clients/local_training/while/body/shuffling/gather"}
}

%round (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]) parameter(0)
  %epochs = (s32[], f32[8]) while(%t), condition=%limit, body=%epoch, metadata={op_name="jit(run)/while/body/clients/local_training/while"}
  %odd = (s32[], f32[8]) while(%t), condition=%unknown, body=%joined, metadata={op_name="jit(run)/while/body/server/while"}
  %marks = pred[8]{0} fusion(%epochs), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"7"}
  %both = f32[8]{0} conditional(%marks), branch_computations={%joined, %joined}
  %one = f32[8]{0} fusion(%both), kind=kCustom, calls=%joined
  ROOT %all-gather-start = (f32[2,3]{1,0}, bf16[4]{0}) all-gather-start(%one)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %known = f32[8]{0} while(%x), condition=%unknown, body=%marked, backend_config={"known_trip_count":{"n":"11"}}
  ROOT %rounds = f32[8]{0} while(%known), condition=%unknown, body=%round, metadata={op_name="jit(run)/while"}
}

%marked (x: f32[8]) -> f32[8] {
  %call = f32[8]{0} custom-call(%x), custom_call_target="__cublas$gemm"
}
"""  # noqa: E501


def counted(trips):
  return hlo.walk(hlo.parse(PROGRAM), trips)


def test_instructions_count_as_often_as_their_loops_run():
  found = counted({"local_steps": 6, "clients": 1})
  times = {each.instruction.name: each.times for each in found.counted}
  # Five epochs; two stages of a loop of 6 steps in all; the loop over rounds counts once.
  assert times["gather"] == 5
  assert times["marks"] == 1 and times["call"] == 11
  dots = [each.times for each in found.counted if each.instruction.name == "dot"]
  assert dots == [15, 15]
  assert found.assumed == ["jit(run)/while/body/server/while"]
  assert "x" not in times and "r" not in times and "rounds" not in times


def test_cycles_add_up_by_part_and_by_operation():
  found = counted({"local_steps": 6, "clients": 1})
  parts = hlo.by_part(found.counted)
  # The compiler's own copy has no path, and belongs to the loop that it is in.
  assert parts["local training"] == (60, 30 * 103)
  assert parts["thresholds"] == (1, 7)  # of a fusion without a path: that of its root
  assert parts["shuffling"] == (5, 0)
  assert list(parts)[0] == "local training"
  operations = hlo.by_operation(found.counted)
  assert operations["dot_general"] == (30, 3000)
  assert operations["__cublas$gemm"] == (11, 0)


def test_collectives_are_found_in_branches_and_fusions():
  found = counted({}).collectives
  # One in the loop of unknown length, one in each branch, one in a fusion.
  assert found["all-reduce"] == (4, 4 * 32)
  assert found["all-gather"] == (1, 24 + 8)


@pytest.mark.parametrize(
  ("result", "size"),
  [("f32[8,128]{1,0:T(8,128)}", 4096), ("(s32[], pred[3])", 7), ("bf16[2]", 4), ("f32[0]", 0)],
)
def test_bytes_of_types(result, size):
  assert hlo.num_bytes(result) == size


@pytest.mark.parametrize("text", ["v5e:2x4", "v5p:2x2x1", "v6e:1x1", "h100:8", "cpu:1"])
def test_targets_are_read_as_they_are_written(text):
  assert targets.parse(text).name == text


def test_a_target_knows_its_chips():
  assert targets.parse("v5e:2x4").num_chips == 8
  assert targets.parse("v5p:2x2x2").num_chips == 8


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("v5:1x1", "--target=v5:1x1: must be v5e, v5p"),
    ("v5e", "--target=v5e: must be v5e: and one of 1x1"),
    ("v5e:3x1", "--target=v5e:3x1: must be v5e: and one of 1x1"),
    ("h100:9", "--target=h100:9: must be h100: and one of 1, 2"),
  ],
)
def test_other_targets_are_refused(text, message):
  with pytest.raises(flags.ConfigError) as error:
    targets.parse(text)
  assert str(error.value).startswith(message)


@pytest.mark.parametrize(("target", "extra"), [("v5e:1x1", "plan-tpu"), ("h100:1", "plan-gpu")])
def test_a_missing_compiler_is_named_with_its_extra(monkeypatch, capsys, target, extra):
  monkeypatch.setattr(targets, "_is_installed", lambda module: False)
  with pytest.raises(SystemExit) as end:
    plan.main(["plan", f"--target={target}"])
  assert end.value.code == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and f".[{extra}]" in said


def test_flags_of_a_cpu_are_kept_from_the_compiler_of_a_tpu(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX")
  assert targets.environment(targets.parse("v5e:1x1"))["XLA_FLAGS"] == ""
  kept = targets.environment(targets.parse("cpu:3"))["XLA_FLAGS"]
  assert kept == "--xla_cpu_max_isa=AVX --xla_force_host_platform_device_count=3"


def test_the_memory_of_a_gpu_is_what_jax_takes_of_it(monkeypatch):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  usual, _ = targets.usable_bytes(targets.parse("h100:1"))
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
  more, source = targets.usable_bytes(targets.parse("h100:1"))
  assert usual == int(0.75 * 84942979072) and more == int(0.9 * 84942979072)
  assert "90%" in source


def test_flags_of_the_plan_are_told_from_those_of_the_run():
  chosen, rest = options.read(
    ["--preset=genesis", "--target", "v5e:1x1", "--model=mlp", "--chunks=1,10", "--rounds", "3"]
  )
  assert chosen.target == "v5e:1x1" and chosen.chunks == (1, 10)
  assert rest == ["--preset=genesis", "--model=mlp", "--rounds", "3"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--target: must be given"),
    (["--target=cpu:1", "--chunks=1,x"], "--chunks=1,x: must be numbers"),
    (["--target=cpu:1", "--chunks=0"], "--chunks=0: must be between 1 and 10"),
    (["--target=cpu:2", "--chunks=6"], "--chunks=6: must be between 1 and 5"),
    (
      ["--target=cpu:1", "--chunks=21", "--device_profiles=phones", "--over_selection=2"],
      "--chunks=21: must be between 1 and 20",
    ),
    (["--target=cpu:1", "--sparsity=2"], "--sparsity=2.0: must be"),
    (["--target=cpu:1", "--compare=fedavg,sgd"], "--algorithm=sgd: must be one of"),
    (["--target=cpu:1", "--search_seconds=soon"], "--search_seconds=soon"),
    (["--target=cpu:1", "--data_shape=50000"], "--data_shape=50000: must be the number of"),
    (["--target=cpu:1", "--data_shape=9,8", "--data_classes=1"], "--data_classes=1: must be"),
    (["--target=cpu:1", "--wrong=1"], "Unknown command line flag 'wrong'"),
  ],
)
def test_wrong_flags_are_one_line_before_anything_is_compiled(capsys, arguments, message):
  with pytest.raises(SystemExit) as end:
    plan.main(["plan", *arguments])
  said = capsys.readouterr().err
  assert end.value.code == 2 and said.count("\n") == 1
  assert message in said


def test_nothing_is_overwritten(tmp_path, capsys):
  (tmp_path / "plan.md").write_text("mine")
  with pytest.raises(SystemExit):
    plan.main(["plan", "--target=cpu:1", f"--plan_dir={tmp_path}"])
  assert capsys.readouterr().err.startswith(f"error: --plan_dir={tmp_path} exists and is not")
  assert (tmp_path / "plan.md").read_text() == "mine"


def config_of(*arguments):
  return worker.config_of(Request([*TINY, *arguments], "", ""))


def test_known_data_takes_no_memory():
  data, told = examples.take(config_of("--dataset=tfds:cifar10"), None)
  assert data.x_train.shape == (50_000, 32, 32, 3) and data.x_train.dtype == np.uint8
  assert not any(data.x_train.strides)
  assert np.bincount(data.y_train).tolist() == [5000] * 10
  assert "not read" in told


def test_shapes_may_be_told():
  shape = examples.told(["60", "8", "8", "1"], 3)
  data, _ = examples.take(config_of("--dataset=npz:nowhere.npz"), shape)
  assert data.x_train.shape == (60, 8, 8, 1) and data.x_test.shape == (12, 8, 8, 1)
  assert data.num_classes == 3 and data.signature.kind == "classification"


def test_digits_are_read():
  data, told = examples.take(config_of(), None)
  assert told == "digits, read" and any(data.x_train.strides)


def test_what_shapes_cannot_tell_is_refused():
  with pytest.raises(flags.ConfigError, match="--partition=natural: needs the data"):
    examples.take(config_of("--dataset=tfds:cifar10", "--partition=natural"), None)
  with pytest.raises(DataError, match="no such file.*--data_shape"):
    examples.take(config_of("--dataset=npz:nowhere.npz"), None)


SHAPES = """
import jax
from experiments.plan import examples, outlining, targets, worker
from experiments.run import build
from experiments.run.layout import layout_of
from sparsyfed_jax.fed.streaming import stage

target = targets.parse("cpu:2")
assert len(jax.devices()) == 2


def same(a, b, what):
  a, b = jax.tree.leaves(a), jax.tree.leaves(b)
  assert len(a) == len(b), what
  for one, other in zip(a, b):
    assert (one.shape, one.dtype) == (other.shape, other.dtype), (what, one, other)
    assert one.sharding.is_equivalent_to(other.sharding, one.ndim), (what, one, other)


for arguments in %s:
  config = worker.config_of(worker.Request(arguments, "", ""))
  real = build.build(config)
  data, _ = examples.take(config, None)
  known = build.outline(config, data, outlining.machine_of(target))
  lowering = outlining.lowering_of(known)
  if config.data_placement == "streamed":
    state = real.simulation.init(real.hyper, real.keys.init)._replace(memories=())
    sizes, key, fleet = real.federation.sizes, real.keys.rounds, real.federation.fleet
    cohorts = jax.device_get(real.simulation.draw(state, sizes, key, fleet))
    host = real.federation._replace(fleet=())
    staged = next(stage(host, real.mesh, cohorts, real.num_rows))
    same(lowering.data.federation, staged.federation, arguments)
  else:
    same(known.federation, real.federation, arguments)
    same(known.shifted, real.shifted, arguments)
  for field in ("x_test", "y_test", "hyper", "keys"):
    same(getattr(known, field), getattr(real, field), (arguments, field))
  assert known.num_rows == real.num_rows
  facts = {key: value for key, value in known.facts.items() if key in real.facts}
  assert {key: real.facts[key] for key in facts} == facts and len(facts) > 5
  made = real.simulation.init(real.hyper, real.keys.init)
  if config.data_placement != "streamed":
    placed = layout_of(real).place(made)
    same(lowering.memories, placed.memories, arguments)
    same(lowering.state, placed.server, arguments)
print("same")
"""


def test_an_outline_has_the_shapes_of_the_real_run(request):
  runs = [
    [*TINY, "--algorithm=scaffold", f"--data_placement={placement}"]
    for placement in ("replicated", "sharded", "streamed")
  ]
  runs[1].append("--shift_round=1")
  for run in runs[1:]:
    run += ["--device_profiles=phones", "--availability=daily", "--over_selection=1.2"]
  flags = "--xla_force_host_platform_device_count=2 " + os.environ["XLA_FLAGS"]
  environment = os.environ | {
    "XLA_FLAGS": flags,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(request.config.rootpath),
  }
  command = [sys.executable, "-c", SHAPES % runs]
  result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
  assert result.stdout.strip() == "same", result.stderr


def test_trips_are_those_of_drawn_cohorts():
  sizes = np.array([10, 20, 30, 40])
  one = trips_of(sizes, 10, 4, 1, 1, "replicated")
  assert one == {"local_steps": 2.5, "clients": 4}
  assert trips_of(sizes, 10, 4, 2, 1, "replicated") == {"local_steps": 3, "clients": 2}
  assert trips_of(sizes, 10, 4, 4, 1, "sharded") == {"local_steps": 4, "clients": 1}
  # Clients 0 and 2 are on one chip, 1 and 3 on the other.
  assert trips_of(sizes, 10, 4, 1, 2, "sharded") == {"local_steps": 2.5, "clients": 2}
  # Sorted by size and dealt in turn: 10 and 30, 20 and 40.
  assert trips_of(sizes, 10, 4, 2, 2, "replicated") == {"local_steps": 3.5, "clients": 1}


def point(size, total, most=100, **more):
  parts = {"data": 1, "state": 0, "memories": 0, "padding": 0, "results": 0, "code": 0}
  return {
    "algorithm": "fedavg",
    "clients_per_chunk": size,
    "most_per_chip": most,
    "client_bytes": 10,
    "bytes": {**parts, "temporaries": total - 1},
  } | more


def too_large(size, needed=None):
  failed = point(size, 1)
  del failed["bytes"]["temporaries"]
  failed["too_large"] = "RESOURCE_EXHAUSTED"
  return failed | ({"needed_bytes": needed} if needed else {})


@pytest.mark.parametrize("usable", [9, 10, 25, 434, 995, 1000, 5000])
@pytest.mark.parametrize("tells", [True, False])
def test_the_search_ends_at_the_largest_that_fits(usable, tells):
  asked = []

  def ask(size, seconds):
    asked.append(size)
    total = 10 * size + size**2 // 50
    if tells or total <= usable:
      return point(size, total)
    return too_large(size, 2 * total if size % 2 else None)

  first = ask(1, 1)
  found = find_largest(ask, [first], usable, 60)
  best = max((n for n in range(1, 101) if 10 * n + n**2 // 50 <= usable), default=0)
  assert found.fits == best
  assert found.is_exact and found.is_all == (best == 100)
  assert best == 100 or found.fails == best + 1
  assert len(asked) <= 9 and len(set(asked)) == len(asked)


def test_a_search_without_time_says_what_it_knows():
  known = [point(10, 100), point(20, 300)]
  assert find_largest(lambda *_: None, known, 250, 60) == Largest(10, 20, False)
  assert find_largest(lambda *_: None, known, 250, 0) == Largest(10, 20, False)
  assert not Largest(10, 20, False).is_exact


def test_an_evaluation_may_be_what_does_not_fit():
  small = point(
    1, 50, evaluation={"bytes": {"padding": 0, "temporaries": 99, "results": 0, "code": 1}}
  )
  assert total_bytes(small) == 101
  assert fits(small, 101) and not fits(small, 100)
  assert total_bytes(too_large(1)) is None and not fits(too_large(1), 10**9)


def test_what_a_compiler_says_of_a_program_that_is_too_large_is_read():
  said = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory"
    " required for HLO temporaries (32.00G) exceeds available HBM (15.75G). HLO module: jit_run.\n"
    "See https://openxla.org"
  )
  found = worker._too_large(said)
  assert found["needed_bytes"] == 32 * 2**30
  assert found["too_large"].endswith("jit_run.")


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"data": 900}, "data, with the test set, which --data_placement=sharded"),
    ({"memories": 900}, "memories of clients, which --data_placement=sharded"),
    ({"state": 900}, "state of the server, which a smaller --model"),
    ({"temporaries": 900}, "temporaries, which a --clients_per_chunk below 4, a smaller"),
  ],
)
def test_advice_names_the_largest_part_and_a_flag(sizes, message):
  large = point(4, 100)
  large["bytes"].update(sizes)
  assert message in pages.advice(large)


@pytest.mark.parametrize(
  ("found", "message"),
  [
    (Largest(100, None, True), "FedAvg: all 100 clients that a chip has in a round fit"),
    (Largest(7, 8, False), "FedAvg: --clients_per_chunk=7 is the largest that fits; 8 does not."),
    (Largest(0, 1, False), "FedAvg: not even one client at a time fits."),
    (Largest(4, None, False), "4 side by side fit; --search_seconds=9 did not suffice to compile"),
    (Largest(4, None, False), "up to 100. 24 would if each further client takes 10 B, as the"),
    (Largest(4, 9, False), "4 side by side fit and 9 do not; --search_seconds=9"),
    (Largest(4, 9, False), "up to 100. 8 would if each further"),
    (Largest(0, 50, False), "0 side by side fit and 50 do not"),
  ],
)
def test_verdicts_say_what_was_compiled_and_what_is_an_estimate(found, message):
  plan = {
    "points": [point(4, 100), point(4, 10, algorithm="topk")],
    "tried": [],
    "usable_bytes": 300,
    "most_per_chip": 100,
    "search_seconds": 9,
    "largest": {"fedavg": found._asdict() | {"is_exact": found.is_exact}},
  }
  (line,) = pages._verdicts(plan)
  assert message in line


def test_one_client_at_a_time_cannot_be_fewer():
  assert "clients_per_chunk" not in pages.advice(point(1, 10**6))
  assert "temporaries" in pages.advice(too_large(1))


def test_a_plan_is_made_compared_and_written(tmp_path, capsys):
  directory = tmp_path / "plan"
  plan.main(
    [
      *("plan", "--target=cpu:2", "--compare=fedavg,sparsyfed", "--chunks=1"),
      *("--data_placement=sharded", f"--plan_dir={directory}", *TINY),
      *("--dataset=npz:nowhere.npz", "--data_shape=60,8,8,1", "--data_classes=3"),
    ]
  )
  made = json.loads((directory / "plan.json").read_text())
  assert (directory / "plan.png").stat().st_size > 10_000
  text = (directory / "plan.md").read_text()
  said = capsys.readouterr()
  assert said.out == text and "files in" in said.err
  assert made["chips"] == 2 and made["most_per_chip"] == 2
  assert [each["clients_per_chunk"] for each in made["tried"]] == [2, 2]
  assert text.count("| FedAvg | 2 |") == text.count("| SparsyFed | 1 |") == 1
  assert [each["algorithm"] for each in made["points"]] == ["fedavg", "sparsyfed"]
  plain, sparse = made["points"]
  for each in made["points"]:
    assert each["placement"] == "sharded" and each["bytes"]["temporaries"] > 0
    assert each["round"]["collectives"]["all-reduce"]["count"] >= 1
    names = {row["name"] for row in each["round"]["by_part"]}
    assert names >= {"local training", "shuffling", "sampling", "aggregation", "server"}
    assert ("thresholds" in names) == (each["algorithm"] == "sparsyfed")
    assert sum(row["operations"] for row in each["round"]["by_part"]) == pytest.approx(
      each["round"]["operations"]
    )
  assert sparse["round"]["operations"] > plain["round"]["operations"]
  assert made["largest"]["sparsyfed"] == {
    "fits": 2,
    "fails": None,
    "is_all": True,
    "is_exact": True,
  }
  for line in ("all 2 clients that a chip has in a round fit", "## What this is not", "thresholds"):
    assert line in text


def test_a_trial_that_ends_the_compiler_ends_the_search_alone(capsys):
  class Ended:
    def ask(self, request, seconds):
      if not request.is_whole:
        raise PlanError("the compiler ended with exit code -9")
      return point(1, 10, most=4, chips=1, data="digits")

  chosen = options.Options("cpu:1")
  made = plan.make_plan(Ended(), targets.parse("cpu:1"), chosen, TINY, ["fedavg"])
  assert made["largest"]["fedavg"]["fits"] == 1 and not made["largest"]["fedavg"]["is_exact"]
  assert "exit code -9" in capsys.readouterr().err


def test_a_worker_refuses_is_stopped_and_tells_why_it_ended():
  with Worker(targets.parse("cpu:1")) as asked:
    refused = asked.ask(Request([*TINY, "--dataset=npz:nowhere.npz"], "", ""))
    assert "no such file" in refused["refusal"]
    process = asked._running.process
    assert asked.ask(Request(TINY, "", ""), seconds=0) is None
    assert process.poll() is not None
    with pytest.raises(PlanError, match="exit code 1: TypeError: .*num_test"):
      asked.ask(Request(TINY, "", "", ["not a shape"]))


def compiled_for(target, *arguments, algorithm="sparsyfed", chunk="4"):
  with Worker(targets.parse(target)) as asked:
    answer = asked.ask(Request([*TINY, *arguments], algorithm, chunk))
  assert "refusal" not in answer, answer
  return answer


@pytest.mark.skipif(not targets._is_installed("libtpu"), reason="needs the extra plan-tpu")
def test_a_tpu_tells_cycles_and_refuses_what_is_too_large():
  answer = compiled_for("v5e:1x1")
  assert answer["round"]["cycles"] > 0 and fits(answer, targets.parse("v5e:1x1").chip.memory_bytes)
  shape = examples.told(["30000", "512", "512", "3"], 10)
  with Worker(targets.parse("v5e:1x1")) as asked:
    refused = asked.ask(Request([*TINY, "--batch_size=500"], "fedavg", "4", shape))
  assert "too_large" in refused and refused["needed_bytes"] > 16e9


@pytest.mark.skipif(
  not targets._is_installed("jax_plugins.xla_cuda12"), reason="needs the extra plan-gpu"
)
def test_a_gpu_tells_kernels():
  answer = compiled_for("h100:1")
  assert answer["round"]["operations"] > 50 and not answer["round"]["cycles"]
  assert fits(answer, targets.usable_bytes(targets.parse("h100:1"))[0])


def test_the_commands_of_the_page_are_right(request):
  text = (request.config.rootpath / "docs" / "plan.md").read_text().replace("\\\n", "")
  commands = re.findall(r"-m experiments\.plan (.*)", text)
  assert len(commands) == 3
  for command in commands:
    chosen, rest = options.read(shlex.split(command))
    assert plan.check(chosen, flag_files.expand(rest), targets.parse(chosen.target))


def test_devices_of_a_cpu_target_are_those_there_are():
  assert list(targets.devices_of(targets.parse("cpu:1"))) == jax.devices("cpu")[:1]


def test_a_run_is_held_against_its_plan(tmp_path, capsys):
  point = {
    **{"algorithm": "fedavg", "clients_per_chunk": 2, "compile_seconds": 12.0},
    "bytes": {"data": 10, "state": 20, "memories": 0, "padding": 0, "temporaries": 70},
    "round": {"operations": 1234.0, "cycles": 0},
    "examples": {"input_shape": [8, 8], "train_examples": 100},
  }
  point["bytes"] |= {"results": 0, "code": 0}
  plan, run = tmp_path / "plan", tmp_path / "run"
  plan.mkdir()
  run.mkdir()
  facts = {"flags": [*TINY, "--rounds=700"], "chips": 1}
  (plan / "plan.json").write_text(json.dumps({"platform": "gpu", "points": [point]} | facts))
  summary = {"algorithm": "fedavg", "seconds_per_round": 0.25, "compile_seconds": 3.0}
  (run / "summary.json").write_text(json.dumps(summary | {"process_peak_device_bytes": 150}))
  own = worker.config_of(Request([*TINY, "--rounds=4", "--dataset=npz:a.npz"], "fedavg", ""))
  data = {"clients_per_chunk": 2, "devices": 1, **point["examples"]}

  def check(changed=(), **more):
    config = own._asdict() | {"data": data | dict(changed)} | more
    config |= dict.fromkeys(flags.ignored(own))
    (run / "config.json").write_text(json.dumps(config | more))
    checking.main([str(plan), str(run)])

  check()
  row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
  assert row == ["fedavg", "2", "100 B", "150 B", "1.50", "1,234", "", "0.25 s", "3 s", "12 s"]
  with pytest.raises(SystemExit, match="fedavg with 5 clients side by side is not in the plan"):
    check({"clients_per_chunk": 5})
  with pytest.raises(SystemExit, match="run: --batch_size is 32, and 16 in the plan: nothing to"):
    check(batch_size=32)
  with pytest.raises(SystemExit, match="its number of chips is 8, and 1 in the plan"):
    check({"devices": 8})
  with pytest.raises(SystemExit, match="train_examples of its data is 60, and 100 in the plan"):
    check({"train_examples": 60})
  with pytest.raises(SystemExit, match="error: name the folder of a plan"):
    checking.main([str(plan)])
  del point["examples"]  # as in those of before, some of which are in experiments/results
  (plan / "plan.json").write_text(json.dumps({"platform": "gpu", "points": [point]} | facts))
  with pytest.raises(SystemExit, match="error: the plan does not tell of its data, .*made anew"):
    check()


def test_bit_patterns_are_no_numbers_of_trips():
  text = PROGRAM.replace("%c = s32[]{:T(128)} constant(5)", "%c = u32[] constant(4294967295)")
  assert text != PROGRAM
  times = {each.instruction.name: each.times for each in hlo.walk(hlo.parse(text), {}).counted}
  assert times["gather"] == 1
