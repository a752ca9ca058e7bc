"""The estimate of a client's memory against what the compiler takes."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

import experiments
from experiments.bench import workloads
from experiments.plan import targets
from sparsyfed_jax.algorithms import DENSE, OURS
from sparsyfed_jax.fed.memory import Target, choose_chunk, client_bytes
from tests import cases


def test_the_estimate_is_about_what_the_compiler_takes():
  name = "mlp"
  problem = cases.problem(name)
  batch_size, shape = 32, problem.federation.x.shape[1:]
  setup = cases.make_setup(problem.task, batch_size=batch_size)
  temporary = []
  for chunk in (2, 5):
    simulation = cases.simulation("fedavg", name, clients_per_chunk=chunk, batch_size=batch_size)
    state = jax.eval_shape(simulation.init, cases.hyper(), jax.random.key(0))
    key = jax.random.key(1)
    compiled = simulation.run.lower(state, problem.federation, key, jnp.int32(1)).compile()
    temporary.append(compiled.memory_analysis().temp_size_in_bytes)
  taken = (temporary[1] - temporary[0]) / 3
  estimate = client_bytes(setup, jax.ShapeDtypeStruct(shape, jnp.float32), "cpu")
  assert 0.8 * taken <= estimate <= 4 * taken


def test_a_million_clients_take_the_memory_of_thousands():
  simulation = cases.simulation("fedavg", "linear")
  state = jax.eval_shape(simulation.init, cases.hyper(), jax.random.key(0))
  temporary = []
  for num_clients in (10**4, 10**6):
    few = cases.problem("linear").federation
    of_all = {
      name: jax.ShapeDtypeStruct((num_clients,), getattr(few, name).dtype)
      for name in ("starts", "sizes", "density_scales")
    }
    examples = {
      name: jax.ShapeDtypeStruct((30 * num_clients, *leaf.shape[1:]), leaf.dtype)
      for name, leaf in few._asdict().items()
      if name in ("x", "y", "indices")
    }
    federation = few._replace(**of_all, **examples, slots=jax.ShapeDtypeStruct((1000,), jnp.int8))
    lowered = simulation.run.lower(state, federation, jax.random.key(1), jnp.int32(1))
    temporary.append(lowered.compile().memory_analysis().temp_size_in_bytes)
  assert temporary[1] < 1.05 * temporary[0] + 1000


def test_a_larger_batch_takes_more():
  task = cases.problem("cnn").task
  example = jax.ShapeDtypeStruct((6, 6, 1), jnp.float32)
  small, large = (
    client_bytes(cases.make_setup(task, batch_size=n), example, "cpu") for n in (4, 40)
  )
  assert 2 * small < large < 10 * small


RESULTS = pathlib.Path(experiments.__file__).parent / "results" / "accelerators.jsonl"
COMPILED = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", COMPILED, ids=lambda row: f"{row['workload']}-{row['target']}")
def test_the_estimate_is_about_what_accelerators_take(row):
  platform = targets.parse(row["target"]).chip.platform
  workload = workloads.choose(row["workload"], platform)
  setup = workloads.make_setup(workload, row["compute_dtype"])
  example = jax.ShapeDtypeStruct(workload.shape, workload.dtype)
  estimate = row["clients_per_chunk"] * client_bytes(setup, example, platform)
  assert row["temporary_bytes"] / 1.5 <= estimate <= 1.5 * row["temporary_bytes"]


def test_both_accelerators_were_compiled_for():
  found = {(row["target"], row["algorithm"]) for row in COMPILED}
  assert found >= {(target, name) for target in ("v5e:1x1", "h100:1") for name in (DENSE, OURS)}


# Bytes that XLA took for one client more on an H100, and for each of ten (of ResNet-18 of two) on a
# v5e, with FedAvg (jax 0.10.2, libtpu 0.0.52).
@pytest.mark.parametrize(
  ("workload", "dtype", "platform", "taken"),
  [
    ("mlp64", "float32", "gpu", 40e3),
    ("cnn32", "float32", "gpu", 13.1e6),
    ("cnn32", "float32", "tpu", 32.1e6),
    ("cnn32", "bfloat16", "tpu", 26.3e6),
    ("resnet18-c10", "bfloat16", "tpu", 148e6),
  ],
)
def test_the_estimate_is_about_what_one_client_more_takes(workload, dtype, platform, taken):
  chosen = workloads.choose(workload, platform)
  example = jax.ShapeDtypeStruct(chosen.shape, chosen.dtype)
  estimate = client_bytes(workloads.make_setup(chosen, dtype), example, platform)
  assert taken / 1.5 <= estimate <= 1.5 * taken


@pytest.mark.parametrize(
  ("model", "platform", "expected"),
  [
    ("mlp", "cpu", 10),
    ("cnn", "cpu", 1),
    ("mlp", "gpu", 10),
    ("cnn", "gpu", 10),
    ("mlp", "tpu", 10),
    ("cnn", "tpu", 1),
  ],
)
def test_clients_side_by_side_follow_the_target(model, platform, expected):
  problem = cases.problem(model)
  example = jax.ShapeDtypeStruct(problem.federation.x.shape[1:], jnp.float32)
  setup = cases.make_setup(problem.task)
  assert choose_chunk(setup, example, 10, Target(platform)) == expected
  one = client_bytes(setup, example, platform)
  assert choose_chunk(setup, example, 10, Target(platform, 2 * one)) == 1
  assert choose_chunk(setup, example, 10, Target(platform, 2 * 6 * one)) == min(expected, 5)


@pytest.mark.parametrize(("platform", "expected"), [("cpu", 125), ("gpu", 1000), ("tpu", 1000)])
def test_a_thousand_small_clients(platform, expected):
  problem = cases.problem("mlp")
  example = jax.ShapeDtypeStruct(problem.federation.x.shape[1:], jnp.float32)
  setup = cases.make_setup(problem.task)
  assert choose_chunk(setup, example, 1000, Target(platform)) == expected
