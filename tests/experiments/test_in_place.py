"""Examples in the files of others: streamed and converted, never held as a whole."""

import io
import json
import pathlib
import signal
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest
from absl import flags as absl_flags
from jax.sharding import Mesh

from experiments import convert, flags, train
from experiments.run.build import build
from sparsyfed_jax.data import mapped, sources
from sparsyfed_jax.data.lists import group
from sparsyfed_jax.data.reading import READING
from sparsyfed_jax.data.rows import Rows
from sparsyfed_jax.fed import streaming
from sparsyfed_jax.fed.cohort import federation_of
from sparsyfed_jax.fed.devices import AXIS
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.io.writers import read_metrics

pa = pytest.importorskip("pyarrow", reason="needs pip install '.[readers]'")
PIL = pytest.importorskip("PIL.Image", reason="needs pip install '.[readers]'")
pq = pytest.importorskip("pyarrow.parquet")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def png(image):
  file = io.BytesIO()
  PIL.fromarray(image).save(file, "PNG")
  return {"bytes": file.getvalue(), "path": None}


def save(folder, parts, batch=16):
  """Writes splits as `datasets` does, of columns."""
  folder.mkdir()
  (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
  for split, columns in parts.items():
    (folder / split).mkdir()
    own = pa.table(columns)
    with pa.OSFile(str(folder / split / "0.arrow"), "wb") as file:
      with pa.ipc.new_stream(file, own.schema) as stream:
        stream.write_table(own, max_chunksize=batch)
    (folder / split / "state.json").write_text('{"_data_files": [{"filename": "0.arrow"}]}')


def flat_images(x):
  return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), int(np.prod(x.shape[1:])))


@pytest.fixture(params=["png", "numbers", "parquet"])
def small(request, tmp_path):
  parts = {}
  for split, n in (("train", 60), ("test", 20)):
    x = RNG.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    seen = flat_images(x) if request.param == "numbers" else [png(image) for image in x]
    sizes = [20, 11, 9, 8, 6, 5, 1] if split == "train" else [n]
    owners = np.repeat(np.arange(len(sizes)), sizes)
    # In an order in which a client's examples are in several batches.
    owners = owners[RNG.permutation(n)]
    parts[split] = {"image": seen, "label": np.arange(n) % 3, "client_id": owners}
  if request.param != "parquet":
    save(tmp_path / "set", parts)
  for split, columns in parts.items() if request.param == "parquet" else ():
    (tmp_path / "set").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), tmp_path / "set" / f"{split}.parquet", row_group_size=16)
  return tmp_path / "set"


def run(directory, config):
  directory.mkdir()
  config = flags.resolve(config)
  experiment = build(config)
  train.run(config, experiment, directory)
  rows = read_metrics(directory / "metrics.jsonl")
  assert isinstance(experiment.federation.x, Rows) == (config.data_placement == "streamed")
  digest = {"digest": experiment.facts["examples_sha256"]}
  return [digest | {name: row[name] for name in row if "seconds" not in name} for row in rows]


def test_files_of_hugging_face_stream_what_memory_gives(small, tmp_path):
  config = flags.DEFAULTS._replace(
    dataset=f"hf:{small}", partition="natural", model="mlp", algorithm="fedavg", rounds=3,
    clients_per_round=4, eval_every=2, local_epochs=1,
  )  # fmt: skip
  rows = [
    run(tmp_path / placement, config._replace(data_placement=placement))
    for placement in ("replicated", "streamed", "sharded")
  ]
  assert rows[0] == rows[1] and rows[0][0]["train_loss"] > 0
  assert rows[0][-1]["test_accuracy"] == rows[2][-1]["test_accuracy"]


LARGE = (4000, 10_000)  # examples, and bytes of each


@pytest.fixture(scope="module")
def large(tmp_path_factory):
  """40 MB, 10 examples a client, whose owners are in no order."""
  n, width = LARGE
  x = np.tile(RNG.integers(0, 256, (500, width), dtype=np.uint8), (n // 500, 1))
  parts = {}
  for split, rows in (("train", n), ("test", 50)):
    owners = RNG.permutation(np.arange(rows) // 10)
    parts[split] = {"x": flat_images(x[:rows]), "label": np.arange(rows) % 7, "client_id": owners}
  save(tmp_path_factory.mktemp("large") / "set", parts, batch=100)
  return parts["train"]["client_id"], tmp_path_factory.getbasetemp(), x


def path_of(large):
  return next(large[1].glob("large*")) / "set"


def resident(file):
  """Bytes of a mapped file that are in the memory of this process."""
  found, is_own = 0, False
  for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
    words = line.split()
    if "-" in words[0] and not words[0].endswith(":"):
      is_own = words[-1] == str(file)
    elif words[0] == "Rss:" and is_own:
      found += 1024 * int(words[1])
  return found


def peak_of(function):
  tracemalloc.start()
  try:
    found = function()
    return found, tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_a_stream_holds_two_rounds_and_the_index(large, monkeypatch):
  owners, _, x = large
  monkeypatch.setattr(mapped, "_BLOCK_BYTES", 2**19)
  reading = READING._replace(in_place=True)
  numbers = np.random.default_rng(0).permutation(400).astype(np.int32).reshape(50, 8)
  cohorts = Cohort(numbers, np.ones((50, 8), bool), np.ones((50, 8), np.float32), numbers)
  mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
  seen = []

  def stream():
    data = sources.load(f"hf:{path_of(large)}", KEY, reading=reading)
    host = federation_of(data.x_train, data.y_train, group(data.client_train, 400))
    for staged in streaming.stage(host, mesh, cohorts):
      seen.append(int(np.asarray(staged.federation.x).sum(dtype=np.int64)))

  _, peak = peak_of(stream)
  of_a_round = 80 * LARGE[1]
  index = LARGE[0] * 8 * 12  # labels, owners, and their lists as they are made
  assert peak < 2 * of_a_round + index + 2**21 < x.nbytes / 9
  expected = [x[np.isin(owners, own)].sum(dtype=np.int64) for own in numbers]
  assert seen == expected
  if sys.platform == "linux":
    assert resident(path_of(large) / "train" / "0.arrow") == 0


def convert_to(*arguments):
  table = absl_flags.FlagValues()
  flags.define(table)
  convert.main(flags.parse_with_names(["convert", *map(str, arguments)], table), table)


@pytest.mark.parametrize("form", ["folder", "npz"])
def test_a_conversion_holds_a_block(large, tmp_path, monkeypatch, form, capsys):
  monkeypatch.setattr(mapped, "_BLOCK_BYTES", 2**20)
  out = tmp_path / {"folder": "own", "npz": "own.npz"}[form]
  _, peak = peak_of(lambda: convert_to(f"hf:{path_of(large)}", out))
  capsys.readouterr()
  assert peak < 6 * 10**6
  expected, found = (sources.load(name, KEY) for name in (f"hf:{path_of(large)}", f"{form}:{out}"))
  for name, value in expected._asdict().items():
    if name != "name":
      np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


@pytest.mark.parametrize("form", ["folder", "npz"])
def test_a_conversion_that_is_killed_leaves_nothing_that_looks_whole(large, tmp_path, form):
  out = tmp_path / {"folder": "own", "npz": "own.npz"}[form]
  code = (
    "import os, signal, sys\n"
    "from experiments import convert, flags\n"
    "from sparsyfed_jax.io import arrays\n"
    "from absl import flags as absl_flags\n"
    "write = arrays.blocks\n"
    "def some(array):\n"
    "  for i, block in enumerate(write(array)):\n"
    "    yield block[:100]\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
    "arrays.blocks = some\n"
    "table = absl_flags.FlagValues()\n"
    "flags.define(table)\n"
    "convert.main(flags.parse_with_names(sys.argv, table), table)\n"
  )
  done = subprocess.run([sys.executable, "-c", code, f"hf:{path_of(large)}", str(out)])
  assert done.returncode == -signal.SIGKILL and not out.exists()
  (left,) = tmp_path.iterdir()
  assert left.name.startswith(".own") and not (left / "dataset.json").exists()
