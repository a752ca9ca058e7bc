"""Runs whose clients predict with models of their own."""

import json

import jax
import numpy as np
import pytest

import sparsyfed_jax as sf
from experiments import flags
from experiments.run.build import build
from experiments.run.clients import lists_of
from experiments.run.data import load
from sparsyfed_jax.io.writers import read_metrics
from tests import cases
from tests.experiments import test_sweep
from tests.experiments.test_resume import SMALL, final_state, run

OWN = SMALL._replace(
  algorithm="spafl",
  client_lr=0.1,
  eval_every=4,
  shift_round=2,
  shift_dirichlet_alpha=0.1,
  client_eval=True,
)


def summary_of(directory):
  return json.loads((directory / "summary.json").read_text())


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  directory = tmp_path_factory.mktemp("own") / "run"
  run(directory, OWN)
  return directory


def test_each_client_is_evaluated_by_its_model_on_its_examples(own):
  experiment, state = build(flags.resolve(OWN)), final_state(own, OWN)
  read, download = experiment.algorithm.client_model, experiment.algorithm.broadcast(state.server)
  data, owners = load(flags.resolve(OWN)), experiment.test_owners.after
  plain = sf.classification(experiment.model, data)
  everything = sf.types.Batch(data.x_test, data.y_test, np.ones(len(data.y_test), bool))
  accuracies = []
  for number in range(OWN.num_clients):
    memory = jax.tree.map(lambda leaf, n=number: leaf[n], state.memories)
    hits = np.asarray(plain.score_each(read(download, memory), everything).total)
    accuracies.append(hits[owners == number].mean())
  summary, last = summary_of(own), read_metrics(own / "metrics.jsonl")[-1]
  assert summary["client_accuracies"] == pytest.approx(accuracies)
  assert last["client_accuracy_mean"] == pytest.approx(np.mean(accuracies))
  # The server's model has seen nothing.
  assert last["client_accuracy_mean"] > last["test_accuracy"] + 0.2
  assert summary["has_client_models"] and "is_chance" not in summary
  assert summary["dense_bytes"] > 50 * summary["downlink_bytes_per_client_round"]


def test_it_does_not_matter_where_clients_models_lie(tmp_path, own):
  streamed = OWN._replace(data_placement="streamed")
  run(tmp_path / "run", streamed)
  expected, found = summary_of(own), summary_of(tmp_path / "run")
  assert found["client_accuracies"] == pytest.approx(expected["client_accuracies"], abs=1e-6)


def test_side_by_side_each_run_has_its_own_clients(tmp_path):
  arguments = "--algorithm=spafl", "--client_lr=0.1", "--seed=0,1", "--client_eval=true"
  found = {}
  for mode in ("sequential", "vmap"):
    table = test_sweep.run(tmp_path / mode, *arguments, mode=mode)
    places = [test_sweep.place(tmp_path / mode, f"seed={seed}") for seed in (0, 1)]
    found[mode] = [summary_of(place)["client_accuracies"] for place in places]
  first, second = (np.mean(accuracies) for accuracies in found["vmap"])
  assert table.endswith(
    f"- clients predict with models of their own seed=0: {first:.4f} on average\n"
    f"- clients predict with models of their own seed=1: {second:.4f} on average\n"
  )
  for one, other in zip(*found.values(), strict=True):
    assert one == pytest.approx(other, abs=1e-6)
  assert found["vmap"][0] != found["vmap"][1]


def test_a_run_that_evaluates_no_client_says_what_it_evaluates():
  for changes, count in ((dict(client_eval=False), 1), (dict(), 0), (dict(algorithm="topk"), 0)):
    remarks = build(flags.resolve(OWN._replace(**changes))).remarks
    assert sum("--algorithm=spafl predict with models of their own" in one for one in remarks) == (
      count
    )


def test_lists_of_test_examples():
  owners = np.int32([2, 0, 2, 7, 2, 0])  # 7 takes part in no round
  expected = [[1, 5, 6], [6, 6, 6], [0, 2, 4], [6, 6, 6]]
  cases.assert_same_bits(lists_of(owners, 4), np.int32(expected))
  assert lists_of(np.int32([5]), 2).tolist() == [[1], [1]]
