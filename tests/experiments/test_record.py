"""What a run measures besides training, and what happens when its data changes."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import flags, train
from experiments.run import rows as rows_module
from experiments.run.build import build, check
from experiments.run.clients import client_scores, client_spread
from experiments.run.data import load
from experiments.run.layer_shares import shares_of
from sparsyfed_jax.io.writers import read_metrics
from sparsyfed_jax.metrics.flops import LayerCost
from sparsyfed_jax.types import Mean
from sparsyfed_jax.wire import codec
from tests import cases
from tests.experiments.test_resume import assert_same_run, keep_rounds
from tests.experiments.test_train import write_npz

PLAIN = flags.DEFAULTS._replace(
  model="mlp",
  algorithm="topk",
  rounds=8,
  eval_every=3,
  checkpoint_every=2,
  num_clients=20,
  clients_per_round=4,
  local_epochs=1,
)
SHIFT_ROUND = 4
MEASURED = PLAIN._replace(
  shift_round=SHIFT_ROUND,
  shift_dirichlet_alpha=0.1,
  client_eval=True,
  mask_metrics_every=3,
  target_accuracy=0.15,
)


def run(directory, config):
  directory.mkdir(exist_ok=True)
  config = flags.resolve(config._replace(output_dir=str(directory)))
  train.run(config, build(config), directory)
  return directory


def rows_of(directory):
  return read_metrics(directory / "metrics.jsonl")


def summary_of(directory):
  return json.loads((directory / "summary.json").read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  return run(tmp_path_factory.mktemp("measured") / "run", MEASURED)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  return run(tmp_path_factory.mktemp("plain") / "run", PLAIN)


def columns(rows, *names):
  return [[row[name] for name in names] for row in rows]


def test_measuring_changes_nothing_and_a_shift_only_what_follows(measured, plain):
  names = "train_loss", "prunable_sparsity", "uplink_bytes", "mask_iou"
  before, after = slice(0, SHIFT_ROUND), slice(SHIFT_ROUND, None)
  for part, is_same in ((before, True), (after, False)):
    pair = [columns(rows_of(directory)[part], *names) for directory in (measured, plain)]
    assert (pair[0] == pair[1]) == is_same


def test_without_metrics_the_run_is_the_same(tmp_path, plain):
  without = run(tmp_path / "run", PLAIN._replace(metrics=False))
  names = "train_loss", "test_loss", "clients", "examples", "client_lr"
  assert columns(rows_of(without), *names) == columns(rows_of(plain), *names)
  assert all(row["uplink_bytes"] is None for row in rows_of(without))
  assert summary_of(without)["global_sparsity"] is None


@pytest.mark.parametrize("last_round", [2, SHIFT_ROUND, 6])
def test_a_run_resumes_on_either_side_of_a_shift(tmp_path, measured, last_round):
  place = tmp_path / "run"
  shutil.copytree(measured, place)
  keep_rounds(place, last_round)
  run(place, MEASURED._replace(resume=True))
  assert_same_run(place, measured, MEASURED)
  similarity = "mask_similarity.json"
  assert (place / similarity).read_text() == (measured / similarity).read_text()


def test_bytes_add_up(measured):
  rows, summary = rows_of(measured), summary_of(measured)
  total = 0
  for row in rows:
    assert row["round_uplink_bytes"] == 4 * row["uplink_bytes"]
    assert row["round_downlink_bytes"] == 4 * row["downlink_bytes"]
    total += row["round_uplink_bytes"] + row["round_downlink_bytes"]
    assert row["cumulative_bytes"] == total
  assert summary["total_bytes"] == total
  accurate = [row for row in rows if (row["test_accuracy"] or 0) >= 0.15]
  assert accurate[0]["round"] < 8  # or the next line would not tell the first from the last
  assert summary["bytes_to_target"] == accurate[0]["cumulative_bytes"]
  assert summary["rounds_to_target"] == accurate[0]["round"]


def test_what_a_second_stage_leaves_is_measured_and_changes_nothing(tmp_path, plain):
  pytest.importorskip("zstandard")
  directory = run(tmp_path / "run", PLAIN._replace(wire_codec="zstd"))
  rows, summary = rows_of(directory), summary_of(directory)
  names = "train_loss", "uplink_bytes", "downlink_bytes", "cumulative_bytes", "test_accuracy"
  assert columns(rows, *names) == columns(rows_of(plain), *names)
  sampled = [row for row in rows if row["measured_uplink_bytes"] is not None]
  assert sampled == [row for row in rows if row["test_accuracy"] is not None] != []
  for way in ("uplink", "downlink"):
    plain_bytes, measured_bytes = (
      sum(row[f"{kind}_{way}_bytes"] for row in sampled) for kind in ("plain", "measured")
    )
    assert summary[f"measured_{way}_share"] == measured_bytes / plain_bytes != 1
  # The model after a round is what the next one's clients receive.
  following = {row["round"] - 1: row["downlink_bytes"] for row in rows}
  for row in sampled:
    assert row["plain_downlink_bytes"] == following.get(row["round"], row["plain_downlink_bytes"])


def test_levels_that_clients_memories_cannot_follow_are_refused():
  config = flags.resolve(PLAIN._replace(algorithm="scaffold", wire_dtype="int8"))
  with pytest.raises(flags.ConfigError, match="--wire_dtype=int8: must be float32, bfloat16 or"):
    build(config)


def test_who_vanished_had_received_the_model(tmp_path):
  config = PLAIN._replace(rounds=3, client_dropout=0.5, seed=2)
  rows = rows_of(run(tmp_path / "run", config))
  assert 0 < sum(row["dropped_clients"] for row in rows) < 3 * PLAIN.clients_per_round
  for row in rows:
    assert row["round_downlink_bytes"] == 4 * row["downlink_bytes"]
    assert type(row["round_uplink_bytes"]) is int
    assert row["round_uplink_bytes"] == pytest.approx(row["clients"] * row["uplink_bytes"])


def final_experiment(config):
  return build(flags.resolve(config))


def restore(directory, experiment):
  from sparsyfed_jax.io import checkpoint

  like = jax.eval_shape(experiment.simulation.init, experiment.hyper, experiment.keys.init)
  return checkpoint.restore(directory, like)


def test_the_final_model_is_what_the_files_say(measured):
  experiment = final_experiment(MEASURED)
  state = restore(measured, experiment)
  rows, summary = rows_of(measured), summary_of(measured)
  params = jax.device_get(state.server.variables["params"])

  flat = cases.flat_kernels(params)
  assert rows[-1]["prunable_sparsity"] == pytest.approx(np.mean(flat == 0), abs=1e-6)
  by_layer = [float(np.mean(leaf != 0)) for leaf in cases.kernels(params).values()]
  assert rows[-1]["layer_density"] == pytest.approx(by_layer, abs=1e-6)
  assert list(summary["layer_densities"]) == summary["layers"] == ["Dense_0", "Dense_1", "Dense_2"]
  # Nobody is sent this model any more; it costs what the next round's download would.
  assert len(codec.encode(jax.device_get(state.server.variables))) < rows[0]["downlink_bytes"]

  # The examples of the second phase's owners, right or wrong, one by one.
  each = experiment.simulation.score_each(state, experiment.x_test, experiment.y_test)
  hits = np.asarray(each.total)
  assert np.all(np.asarray(each.weight) == 1)
  assert rows[-1]["test_accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
  owners = experiment.test_owners.after
  accuracies = [hits[owners == i].mean() for i in range(20)]
  assert summary["client_accuracies"] == pytest.approx(accuracies)
  assert rows[-1]["client_accuracy_mean"] == pytest.approx(np.mean(accuracies))
  assert rows[-1]["client_accuracy_std"] == pytest.approx(np.std(accuracies))
  assert rows[-1]["client_accuracy_min"] == min(accuracies)
  assert not np.array_equal(owners, experiment.test_owners.before)
  assert [row["round"] for row in rows if row["client_accuracy_mean"] is not None] == [3, 6, 8]


def test_masks_are_kept_and_compared_now_and_then(measured):
  rows = rows_of(measured)
  assert [row["round"] for row in rows if row["client_mask_iou"] is not None] == [3, 6]
  assert all(0 < row["client_mask_iou"] < 1 for row in rows if row["client_mask_iou"])
  found = json.loads((measured / "mask_similarity.json").read_text())
  assert found["rounds"] == [3, 6]
  masks = [np.unpackbits(np.load(measured / "masks" / f"round-00000{i}.npy")) for i in (3, 6)]
  iou = np.sum(masks[0] & masks[1]) / np.sum(masks[0] | masks[1])
  assert found["iou"] == [[1, pytest.approx(iou)], [pytest.approx(iou), 1]]
  assert masks[1].sum() == round(
    sum(d * n for d, n in zip(rows[5]["layer_density"], LAYER_SIZES, strict=True))
  )


LAYER_SIZES = [64 * 128, 128 * 64, 64 * 10]


def test_recovery_is_in_the_summary(measured):
  summary, rows = summary_of(measured), rows_of(measured)
  assert summary["shift_round"] == SHIFT_ROUND
  assert summary["accuracy_before_shift"] == rows[2]["test_accuracy"]
  assert summary["lowest_accuracy_after_shift"] == min(rows[i]["test_accuracy"] for i in (5, 7))


def test_work_is_that_of_dense_training_for_topk(measured):
  summary = summary_of(measured)
  assert summary["client_flops_per_round"] == pytest.approx(summary["dense_client_flops_per_round"])
  examples = sum(row["examples"] for row in rows_of(measured)) / (8 * 4)
  # Three products of each layer, but two of the first, whose input has no gradient.
  expected = 2 * examples * (2 * LAYER_SIZES[0] + 3 * (LAYER_SIZES[1] + LAYER_SIZES[2]))
  assert summary["client_flops_per_round"] == pytest.approx(expected)
  assert [row["layer"] for row in summary["flops_by_layer"]] == summary["layers"]


COSTS = [LayerCost(name, 10, 10, 10) for name in "abc"]


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    (dict(algorithm="sparsyfed"), [0.1, 0.2, 0.3]),
    (dict(algorithm="sparsyfed", reparam_exclude="b"), [0.1, 1, 0.3]),
    (dict(algorithm="sparsyfed", beta=1.0), [1, 1, 1]),
    (dict(algorithm="zerofl"), [1, 0.25, 0.25]),
    (dict(algorithm="zerofl", zerofl_exclude="c"), [1, 0.25, 1]),
    (dict(algorithm="feddst", reparam_exclude="b"), [0.1, 0.2, 0.3]),
    (dict(algorithm="fedavg"), [1, 1, 1]),
  ],
)
def test_layers_that_a_method_leaves_plain_are_dense(changes, expected):
  shares = shares_of(PLAIN._replace(**changes), COSTS, "abc", [0.1, 0.2, 0.3], 0.75)
  assert [shares[name].forward for name in "abc"] == pytest.approx(expected)


def test_activations_may_be_kept_denser_than_weights():
  config = PLAIN._replace(algorithm="sparsyfed", activation_floor=0.25)
  shares = shares_of(config, COSTS, "abc", [0.1, 0.2, 0.3], 0.75)
  assert [shares[name].weight_gradient for name in "abc"] == pytest.approx([0.25, 0.25, 0.3])


def test_natural_clients_have_their_own_test_examples(tmp_path):
  rng = np.random.default_rng(0)
  clients = np.arange(60) % 5
  of_test = np.arange(30) % 4  # the fifth has none
  arrays = dict(
    x=None,
    y=None,
    x_train=rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8),
    y_train=rng.integers(0, 3, 60),
    x_test=rng.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8),
    y_test=rng.integers(0, 3, 30),
    client_train=clients,
    client_test=of_test,
  )
  dataset = write_npz(tmp_path / "data.npz", **arrays)
  config = PLAIN._replace(
    dataset=dataset, partition="natural", num_clients=None, rounds=2, client_eval=True
  )
  np.testing.assert_array_equal(final_experiment(config).test_owners.before, of_test)


def test_bytes_of_many_clients_are_counted_to_the_byte():
  parts = np.stack([np.full(3, 25_010_027 >> shift & 2047, np.uint32) for shift in (0, 11, 22)], 1)
  columns = {
    "examples": np.uint32([[2047, 2047, 3], [0, 0, 0], [2, 0, 0]]),
    "round_uplink_bytes": parts * np.uint32([[7], [0], [1]]),
    "clients": np.float32([7, 0, 1]),
    "downlink_bytes": np.uint32([25_010_027, 25_010_029, 4_000_000_001]),
  }
  found = rows_module._on_host(columns)
  assert found["round_uplink_bytes"].tolist() == [7 * 25_010_027, 0, 25_010_027]
  np.testing.assert_array_equal(found["uplink_bytes"], [25_010_027, np.nan, 25_010_027])
  assert found["downlink_bytes"].tolist() == [25_010_027, 25_010_029, 4_000_000_001]
  assert found["examples"].tolist() == [2**24 - 1, 0, 2]


def test_spread_by_hand():
  hits = np.array([True, False, True, True, False])
  owners = np.array([4, 4, 0, 4, 2])
  accuracies = client_scores(Mean(hits, np.ones(5)), owners, num_clients=7)
  assert accuracies == [1, None, 0, None, pytest.approx(2 / 3), None, None]
  spread = client_spread(accuracies)
  assert spread["client_accuracy_mean"] == pytest.approx(5 / 9)
  assert spread["client_accuracy_min"] == 0
  assert spread["client_accuracy_p10"] == pytest.approx(2 / 15)  # a fifth of the way up


@pytest.mark.parametrize("kind", ["clients", "labels"])
def test_other_kinds_of_shift(kind):
  config = MEASURED._replace(rounds=5, shift_kind=kind, mask_metrics_every=0)
  experiment = final_experiment(config)
  before, after = experiment.federation, experiment.shifted
  lists = [
    {int(i) for number in range(len(f.sizes)) for i in cases.list_of(f, number)}
    for f in (before, after)
  ]
  if kind == "clients":
    assert not lists[0] & lists[1] and len(lists[0] | lists[1]) == len(before.y)
  else:
    counts = [np.bincount(np.asarray(before.y)[sorted(found)]) for found in lists]
    assert np.corrcoef(*counts)[0, 1] < -0.9


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    # Others would take over what clients keep.
    (dict(shift_kind="clients", algorithm="scaffold"), "--shift_kind=clients: must be resplit or"),
    (
      dict(shift_kind="clients", algorithm="sparsyfed", upload="changes_with_feedback"),
      "--shift_kind=clients: must be",
    ),
    # The server's mean over all clients would keep a part of what they had before, for good.
    (dict(partition="power_law", algorithm="scaffold"), "--shift_round=3: must leave each client"),
    (dict(partition="power_law", algorithm="scaffold", client_weighting="uniform"), ""),
    (dict(algorithm="scaffold"), ""),
    (dict(shift_kind="clients"), ""),
  ],
)
def test_a_shift_that_clients_memories_cannot_follow_is_refused(changes, message):
  config = PLAIN._replace(rounds=5, shift_round=3, **changes)
  config = flags.resolve(config._replace(shift_dirichlet_alpha=None))
  for refuse in (build, lambda config: check(config, load(config))):
    if not message:
      refuse(config)
      continue
    with pytest.raises(flags.ConfigError, match=message):
      refuse(config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(shift_round=8), r"--shift_round=8: must be at least 1 and below --rounds=8"),
    (dict(shift_seed=3), r"--shift_seed=3: must be left out without --shift_round"),
    (dict(shift_round=3, partition="natural"), "--shift_round=3: must be left out"),
    (dict(shift_round=3, partition="iid", shift_dirichlet_alpha=0.1), "--shift_dirichlet_alpha"),
    (dict(shift_round=3, shift_kind="x"), "--shift_kind=x: must be one of resplit"),
    (dict(wire_dtype="int16"), "--wire_dtype=int16"),
    (dict(wire_feedback=True), "--wire_feedback=True: must be left out without --wire_dtype=int8"),
    (dict(wire_codec="gzip"), "--wire_codec=gzip: must be one of plain, zstd"),
    (dict(wire_codec="zstd", metrics=False), "--wire_codec=zstd: must be plain without --metrics"),
    (dict(wire_codec="zstd", data_placement="sharded"), "--wire_codec=zstd: must be plain with"),
    (dict(target_accuracy=90.0), "--target_accuracy=90.0: must be positive and at most 1"),
    (dict(mask_metrics_every=2, data_placement="sharded"), "--mask_metrics_every=2"),
    (dict(mask_metrics_clients=1), "--mask_metrics_clients=1"),
    (dict(trackers=("x",)), "--trackers=x"),
  ],
)
def test_flags_that_cannot_be_obeyed(changes, message):
  with pytest.raises(flags.ConfigError, match=message):
    flags.check(PLAIN._replace(**changes))


def test_more_clients_than_test_examples(tmp_path):
  config = PLAIN._replace(num_clients=400, client_eval=True)
  with pytest.raises(flags.ConfigError, match="--client_eval: needs a test example for each"):
    final_experiment(config)
