"""Runs on a virtual clock: tables and traces, what goes on from a checkpoint, what is refused."""

import json
import re

import jax
import numpy as np
import pytest

from experiments import flags, train
from experiments.run import begun
from experiments.run import fleet as fleets
from experiments.run.build import build, check
from experiments.run.data import load
from experiments.run.failures import never_updated
from experiments.run.layer_shares import shares_of
from experiments.run.systems import num_selected
from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.fed.clock import Clock, look_up
from sparsyfed_jax.io.writers import read_metrics
from sparsyfed_jax.metrics.flops import client_flops
from tests.experiments.test_resume import assert_same_run, keep_rounds

TABLE = """profile,share,gflops,down_mbps,up_mbps,compute_watts,radio_watts
slow,0.5,0.001,0.08,0.008,2,1
fast,0.5,0.01,0.8,0.08,4,0
"""
PLAIN = flags.DEFAULTS._replace(
  model="mlp",
  rounds=6,
  eval_every=2,
  checkpoint_every=2,
  num_clients=20,
  clients_per_round=4,
  local_epochs=1,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  (folder / "devices.csv").write_text(TABLE)
  lines = [f"{client},0,{5 + 3 * client}" for client in range(0, 20, 2)]
  (folder / "trace.csv").write_text("\n".join(["client,from,to", *lines]))
  return folder


@pytest.fixture(scope="module")
def timed(files):
  return PLAIN._replace(
    device_profiles=str(files / "devices.csv"),
    availability=str(files / "trace.csv"),
    availability_period=300,
    over_selection=1.5,
    deadline=12.0,
    client_dropout=0.2,
  )


def run(directory, config):
  directory.mkdir(exist_ok=True)
  config = flags.resolve(config._replace(output_dir=str(directory)))
  flags.check(config)
  train.run(config, build(config), directory)
  return directory


def rows_of(directory):
  return read_metrics(directory / "metrics.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, timed):
  return run(tmp_path_factory.mktemp("whole") / "run", timed)


def test_rows_and_summary_tell_the_time(whole, timed):
  rows = rows_of(whole)
  assert num_selected(timed) == 6
  seconds = [row["round_virtual_seconds"] for row in rows]
  assert [row["virtual_seconds"] for row in rows] == pytest.approx(np.cumsum(seconds))
  assert all(row["energy"] > 0 for row in rows if row["clients"])
  summary = json.loads((whole / "summary.json").read_text())
  assert summary["virtual_seconds"] == rows[-1]["virtual_seconds"]
  assert summary["energy"] == sum(row["energy"] for row in rows)
  assert {row["unavailable_clients"] for row in rows} > {0}
  assert summary["late_clients"] == sum(row["late_clients"] for row in rows) > 0
  assert summary["virtual_seconds_to_target"] is None
  for row in rows:
    parts = "clients", "late_clients", "dropped_clients", "unavailable_clients", "excluded_clients"
    assert sum(row[name] for name in parts) == 6
    late = row["round_uplink_bytes"] - row["clients"] * row["uplink_bytes"]
    assert (late > 1) == (row["late_clients"] > 0)


def test_a_run_goes_on_at_the_second_at_which_it_stopped(whole, timed, tmp_path):
  stopped = run(tmp_path / "run", timed)
  keep_rounds(stopped, 4)
  config = flags.resolve(timed._replace(output_dir=str(stopped), resume=True))
  train.run(config, build(config), stopped)
  assert_same_run(stopped, whole, timed)


def test_a_run_does_not_go_on_with_other_devices(whole, timed, tmp_path):
  before = begun.read(whole)
  (tmp_path / "other.csv").write_text(TABLE.replace("0.01", "0.02"))
  changed = timed._replace(device_profiles=str(tmp_path / "other.csv"))
  experiment = build(flags.resolve(changed))
  with pytest.raises(
    flags.ConfigError, match="--device_profiles=.*: the clients' devices, or when"
  ):
    begun.check_data(before, changed, experiment.facts, whole)


def test_streamed_examples_give_the_same(whole, timed, tmp_path):
  streamed = rows_of(run(tmp_path / "run", timed._replace(data_placement="streamed")))
  for row, other in zip(rows_of(whole), streamed, strict=True):
    assert row.keys() == other.keys()
    for name in (name for name, value in row.items() if value is not None):
      assert other[name] == pytest.approx(row[name], rel=1e-5), name


def test_flops_of_the_clock_are_those_of_the_rows(tmp_path):
  config = flags.resolve(PLAIN._replace(device_profiles="phones"))
  flags.check(config)
  densities = np.array([0.3, 0.2, 0.7])
  for method in METHODS:
    own = flags.resolve(config._replace(algorithm=method))
    experiment = build(own)
    timing = fleets.make_timing(own, experiment.costs, experiment.layers)
    shares = shares_of(own, experiment.costs, experiment.layers, densities, 0.9)
    traced = jax.jit(timing.flops)(np.float32(densities), np.float32(0.9))
    assert float(traced) == pytest.approx(client_flops(experiment.costs, shares, 1), rel=1e-5)


def test_profiles_are_dealt_by_their_shares():
  shares, kinds = fleets.read_profiles("phones")
  made = fleets.make_fleet(PLAIN._replace(device_profiles="phones"), 1000, jax.random.key(0))
  counts = np.bincount(made.kind, minlength=len(shares))
  np.testing.assert_allclose(counts, 1000 * shares, atol=1)
  assert all(np.all(leaf > 0) for leaf in kinds)
  other = fleets.make_fleet(PLAIN._replace(device_profiles="phones"), 1000, jax.random.key(1))
  assert np.any(other.kind != made.kind)


def test_days_have_the_hours_asked_for():
  config = PLAIN._replace(device_profiles="phones", availability="daily", daily_hours=6.0)
  made = fleets.make_fleet(config, 500, jax.random.key(0))
  hours, numbers = jax.tree.map(np.asarray, made.hours), np.arange(500, dtype=np.int32)
  waits = [
    look_up(hours, Clock(np.int32(3600 * hour + 1800), np.float32(0)), numbers)[0]
    for hour in range(24)
  ]
  shares = (np.array(waits) == 0).mean(axis=1)
  assert shares.sum() == pytest.approx(6, abs=0.15)
  assert shares[1] > 0.8 and shares[12] == 0
  always = fleets.make_fleet(config._replace(daily_hours=24.0), 3, jax.random.key(0))
  assert always.hours.opens[:3].tolist() == [0, 0, 0]
  assert always.hours.closes[:3].tolist() == [86400] * 3


REFUSED = {
  "deadline": (dict(deadline=5.0), "--deadline=5.0: must be given with --device_profiles"),
  "over": (dict(over_selection=1.5), "--over_selection=1.5: must be 1 without --device_profiles"),
  "negative": (dict(device_profiles="phones", deadline=0.0), "--deadline=0.0: must be positive"),
  "under": (dict(device_profiles="phones", over_selection=0.5), "--over_selection=0.5: must be at"),
  "many": (dict(device_profiles="phones", over_selection=9.0), "--over_selection=9.0: must be sma"),
  "metrics": (dict(device_profiles="phones", metrics=False), "--device_profiles=phones: must be l"),
  "widths": (
    dict(device_profiles="phones", algorithm="heterofl"),
    "--device_profiles=phones: must be left out with --algorithm=heterofl",
  ),
  "hours": (dict(device_profiles="phones", daily_hours=25.0), "--daily_hours=25.0: must be at mos"),
  "period": (
    dict(device_profiles="phones", availability="daily", availability_period=60),
    "--availability_period=60: must be given with --availability=FILE.csv",
  ),
}


@pytest.mark.parametrize(("changes", "line"), REFUSED.values(), ids=REFUSED)
def test_flags_that_contradict_are_refused(changes, line):
  with pytest.raises(flags.ConfigError) as refusal:
    flags.check(PLAIN._replace(**changes))
  assert str(refusal.value).startswith(line) and "\n" not in str(refusal.value)


HEAD = TABLE.splitlines()[0]
TABLES = {
  "no such file": (None, "cannot be read: No such file"),
  "no column": ("profile,share,gflops,down_mbps\na,1,1,1\n", "lacks up_mbps"),
  "no profile": (HEAD, "must hold a profile at least"),
  "no number": (TABLE.replace("0.001", "x"), "line 2: gflops=x: must be a number"),
  "not finite": (TABLE.replace("0.8,0.08", "0.8,inf"), "line 3: up_mbps=inf: must be a number"),
  "no speed": (TABLE.replace("0.8,0.08", "0,8"), "line 3: down_mbps=0: must be positive"),
  "below 0 W": (TABLE.replace("4,0", "4,-1"), "line 3: radio_watts=-1: must be at least 0"),
  "shares": (TABLE.replace("fast,0.5", "fast,0.6"), "share: must be 1 over all profiles, is 1.1"),
  "twice": (TABLE.replace("fast", "slow"), "line 3: profile='slow': must be a name"),
  "short line": (TABLE.replace("4,0", "4"), "line 3: must have 7 columns"),
  "quotes": (TABLE.replace("fast", '"fast'), "must"),
}
TRACES = {
  "no such file": (None, "must be daily or the path of a CSV file, cannot be read"),
  "no column": ("client,from\n0,1\n", "lacks to"),
  "nothing": ("client,from,to\n", "must hold an interval at least"),
  "unknown client": (
    "client,from,to\n20,1,2\n",
    "line 2: client=20: must be a number from 0",
  ),
  "no client": ("client,from,to\nbob,1,2\n", "line 2: client=bob: must be a number from 0 to 19"),
  "backwards": ("client,from,to\n3,2,2\n", "client 3, from=2: must be at least 0 and below to=2"),
  "before 0": ("client,from,to\n3,-2,2\n", "client 3, from=-2: must be at least 0"),
  "no number": ("client,from,to\n3,nan,2\n", "line 2: from=nan: must be a number"),
  "overlap": (
    "client,from,to\n3,5,9\n1,0,9\n3,1,6\n",
    "line 2: client 3, from=5: must be at le",
  ),
  "long": ("client,from,to\n3,5,900\n", "to=900: must be at most --availability_period=300"),
}


@pytest.mark.parametrize(
  ("flag", "content", "line"),
  [("device_profiles", *case) for case in TABLES.values()]
  + [("availability", *case) for case in TRACES.values()],
  ids=[f"table, {name}" for name in TABLES] + [f"trace, {name}" for name in TRACES],
)
def test_files_that_are_wrong_are_refused_in_one_line(flag, content, line, timed, tmp_path):
  path = tmp_path / "file.csv"
  if content is not None:
    path.write_text(content)
  config = flags.resolve(timed._replace(**{flag: str(path)}))
  with pytest.raises(flags.ConfigError) as refusal:
    check(config, load(config))
  text = str(refusal.value)
  assert text.startswith(f"--{flag}={path}") and line in text and "\n" not in text


def test_more_clients_than_the_data_has_are_refused():
  config = flags.resolve(
    PLAIN._replace(device_profiles="phones", over_selection=30.0, num_clients=None)
  )
  with pytest.raises(flags.ConfigError, match="--over_selection=30.0: must be at most the 100"):
    check(config, load(config))


def test_a_method_whose_flops_cannot_be_traced_is_refused(monkeypatch):
  method = METHODS["topk"]
  rule = lambda options, hyper, name, is_first, density, target: None if density > 0.5 else None  # noqa: E731
  monkeypatch.setitem(METHODS, "topk", method._replace(layer_shares=rule))
  config = flags.resolve(PLAIN._replace(device_profiles="phones", algorithm="topk"))
  with pytest.raises(flags.ConfigError, match="--device_profiles: .* cannot be traced"):
    build(config)


def test_one_client_alone(files, tmp_path):
  config = PLAIN._replace(
    algorithm="fedavg",
    rounds=2,
    num_clients=1,
    clients_per_round=1,
    device_profiles=str(files / "devices.csv"),
    availability="daily",
  )
  rows = rows_of(run(tmp_path / "run", config))
  # At midnight some are there; this one may have to be waited for.
  assert all(row["clients"] + row["unavailable_clients"] == 1 for row in rows)
  assert rows[-1]["clients"] == 1


def test_the_masks_of_all_that_are_sampled_are_compared_those_that_are_late_too(files):
  def agreement(**changes):
    experiment = build(flags.resolve(PLAIN._replace(algorithm="topk", **changes)))
    simulation, keys = experiment.simulation, experiment.keys
    state = simulation.init(experiment.hyper, keys.init)
    return float(simulation.agree(state, experiment.federation, keys.rounds))

  profiles = dict(device_profiles=str(files / "devices.csv"), over_selection=1.5)
  all_late = agreement(**profiles, deadline=1e-6)
  assert 0 < all_late < 1 and all_late == agreement(clients_per_round=6) != agreement()


def test_a_run_of_which_all_are_late_says_so():
  row = dict(
    clients=0, dropped_clients=1, excluded_clients=0, late_clients=3, unavailable_clients=2
  )
  config = PLAIN._replace(device_profiles="phones", over_selection=1.5, deadline=1e-6)
  error = never_updated(config, [row] * 2)
  line = (
    "of 12 clients sampled 2 vanished .*, 6 were late .--deadline=1e-06.*, 4 were not available"
  )
  assert re.search(f"{line}, 0 sent .* 0 have no examples", str(error))
