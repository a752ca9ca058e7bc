"""Hugging Face's folders: columns, classes, clients to the last example; one line for bad ones."""

import io
import json
import os

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import sources
from sparsyfed_jax.data.readers import READERS, open_with
from tests.data.readers.places import check_in_place

pa = pytest.importorskip("pyarrow", reason="needs pip install '.[readers]'")
PIL = pytest.importorskip("PIL.Image", reason="needs pip install '.[readers]'")
pq = pytest.importorskip("pyarrow.parquet")

KEY = jax.random.key(0)
NAMES = [*"0123456789", *"ABCDEF"]
FEATURES = {
  "image": {"_type": "Image"},
  "writer_id": {"dtype": "string", "_type": "Value"},
  "hsf_id": {"dtype": "int64", "_type": "Value"},
  "character": {"names": NAMES, "_type": "ClassLabel"},
}
SIZES = {"train": 11, "test": 4}


def pixels(split):
  return np.random.default_rng(len(split)).integers(0, 256, (SIZES[split], 7, 6, 3), np.uint8)


def encoded(image):
  file = io.BytesIO()
  PIL.fromarray(image).save(file, "PNG")
  return file.getvalue()


def columns(split):
  """What flwrlabs/femnist has."""
  n = SIZES[split]
  first = {"train": 0, "test": 2}[split]  # so that w4 only tests
  return {
    "image": [{"bytes": encoded(image), "path": None} for image in pixels(split)],
    "writer_id": [f"w{(first + i) % (4 + (split == 'test'))}" for i in range(n)],
    "hsf_id": [i % 2 for i in range(n)],
    "character": [(5 * i) % 16 for i in range(n)],
  }


def table(content, features=FEATURES):
  made = pa.table(content)
  if features is None:
    return made
  told = {name: own for name, own in features.items() if name in content}
  return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})})


def save_to_disk(folder, own, shards=1):
  """Writes a split as `datasets` does: streams of Arrow, and what lists them."""
  folder.mkdir(parents=True)
  files = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
  for i, name in enumerate(files):
    ends = [own.num_rows * j // shards for j in (i, i + 1)]
    with pa.OSFile(str(folder / name), "wb") as file:
      with pa.ipc.new_stream(file, own.schema) as stream:
        stream.write_table(own.slice(ends[0], ends[1] - ends[0]), max_chunksize=2)
  listed = [{"filename": name} for name in files]
  (folder / "state.json").write_text(json.dumps({"_data_files": listed, "_split": folder.name}))


def save(path, form="disk", change=None):
  tables = {}
  for split in SIZES:
    content = columns(split)
    if change:
      change(split, content)
    tables[split] = table(content)
  if form == "disk":
    for split, own in tables.items():
      save_to_disk(path / split, own, shards={"train": 3, "test": 1}[split])
    (path / "dataset_dict.json").write_text(json.dumps({"splits": list(tables)}))
  else:
    (path / "data").mkdir(parents=True)
    for split, own in tables.items():
      shards = {"train": 2, "test": 1}[split]
      for i in range(shards):
        ends = [own.num_rows * j // shards for j in (i, i + 1)]
        file = path / "data" / f"{split}-{i:05}-of-{shards:05}.parquet"
        pq.write_table(own.slice(ends[0], ends[1] - ends[0]), file)
  return path


def check(opened):
  data = opened.dataset
  assert opened.clients == ("w0", "w1", "w2", "w3", "w4") and data.num_clients == 4
  assert data.classes == tuple(NAMES) and data.num_classes == 16
  assert (data.mean, data.std) == (127.5, 127.5)
  for split, x, y, owners in (
    ("train", data.x_train, data.y_train, data.client_train),
    ("test", data.x_test, data.y_test, data.client_test),
  ):
    expected = columns(split)
    np.testing.assert_array_equal(x, pixels(split))
    assert y.tolist() == expected["character"] and len(y) == SIZES[split]
    assert [opened.clients[i] for i in owners] == expected["writer_id"]


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_images_classes_and_clients(tmp_path, form):
  path = save(tmp_path / "femnist", form)
  check(open_with(READERS["hf"], str(path), KEY))
  reading = sources.READING._replace(client_column="hsf_id")
  opened = open_with(READERS["hf"], str(path), KEY, reading)
  assert opened.clients == (0, 1) and opened.dataset.client_test.tolist() == [0, 1, 0, 1]
  check_in_place(opened, "hf", path, reading)
  reading = reading._replace(image_size=(5, 4))
  check_in_place(open_with(READERS["hf"], str(path), KEY, reading), "hf", path, reading)


@pytest.mark.parametrize("names", ["{}.parquet", "default/{}/0000.parquet"])
def test_other_names_of_parquet_files(tmp_path, names):
  for split in SIZES:
    file = tmp_path / names.format(split)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(columns(split)), file)
  check(open_with(READERS["hf"], str(tmp_path), KEY))


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_what_datasets_itself_writes(tmp_path, form):
  datasets = pytest.importorskip("datasets", reason="writes the files")
  features = datasets.Features(
    image=datasets.Image(),
    writer_id=datasets.Value("string"),
    hsf_id=datasets.Value("int64"),
    character=datasets.ClassLabel(names=NAMES),
  )
  made = {
    split: datasets.Dataset.from_dict(
      columns(split) | {"image": list(pixels(split))}, features=features
    )
    for split in SIZES
  }
  if form == "disk":
    datasets.DatasetDict(made).save_to_disk(tmp_path / "set", num_shards={"train": 3, "test": 1})
  else:
    for split, own in made.items():
      own.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
  opened = open_with(READERS["hf"], str(tmp_path / "set"), KEY)
  check(opened)
  partitioners = pytest.importorskip("flwr_datasets.partitioner", reason="splits by client")
  partitioner = partitioners.NaturalIdPartitioner(partition_by="writer_id")
  partitioner.dataset = made["train"]
  for number in range(partitioner.num_partitions):
    part = partitioner.load_partition(number)
    mine = opened.dataset.client_train == opened.clients.index(part[0]["writer_id"])
    images = np.stack([np.asarray(image) for image in part["image"]])
    np.testing.assert_array_equal(opened.dataset.x_train[mine], images)


def test_one_split_of_lists_of_numbers(tmp_path):
  x = np.random.default_rng(0).normal(size=(10, 3, 2))
  content = {"x": x.tolist(), "label": ["no", "yes"] * 5}
  told = {"x": {"_type": "Array2D", "shape": [3, 2], "dtype": "float32"}}
  save_to_disk(tmp_path / "own", table(content, told))
  data = sources.load(f"hf:{tmp_path}/own", KEY)
  assert data.x_train.shape == (8, 3, 2, 1) and data.classes == ("no", "yes")
  both = np.concatenate([data.x_train, data.x_test])[..., 0]
  np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(x.astype(np.float32), axis=0))
  pq.write_table(table(content, None), tmp_path / "own.parquet")
  again = sources.load(f"hf:{tmp_path}/own.parquet", KEY)
  np.testing.assert_array_equal(again.x_test, data.x_test)
  for name in ("own", "own.parquet"):
    check_in_place(open_with(READERS["hf"], f"{tmp_path}/{name}", KEY), "hf", tmp_path / name)


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_pieces_without_rows_are_passed_over(tmp_path, form):
  content = table({"x": [[i, 2 * i] for i in range(10)], "y": [0, 1] * 5}, None)
  parts, folder = [content.slice(0, 0), content.slice(0, 4), content.slice(4)], tmp_path / "own"
  if form == "disk":
    save_to_disk(folder, content)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
      with pa.ipc.new_stream(file, content.schema) as stream:
        for part in parts:
          for batch in part.to_batches() or [pa.RecordBatch.from_pylist([], content.schema)]:
            stream.write_batch(batch)
  for i, part in enumerate(parts) if form == "parquet" else ():
    folder.mkdir(exist_ok=True)
    pq.write_table(part, folder / f"train-{i:05}-of-00003.parquet")
  data = check_in_place(open_with(READERS["hf"], str(folder), KEY), "hf", folder)
  both = np.concatenate([data.x_train[:], data.x_test[:]])
  assert sorted(both.tolist()) == content["x"].to_pylist()


def test_more_files_of_parquet_than_a_process_may_open(tmp_path):
  resource = pytest.importorskip("resource", reason="needs limits of a process")
  for i in range(60):
    content = table({"x": [[i, 2 * i]] * 3, "y": [0, 1, 0]}, None)
    pq.write_table(content, tmp_path / f"train-{i:05}-of-00060.parquet")
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  with open(os.devnull) as next_one:
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one.fileno() + 30, limits[1]))
  try:
    data = check_in_place(open_with(READERS["hf"], str(tmp_path), KEY), "hf", tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
  assert len(data.y_train) + len(data.y_test) == 180


def test_lists_of_no_lists_are_told_of(tmp_path):
  x = pa.array([[]] * 10, pa.list_(pa.list_(pa.float64())))
  save_to_disk(tmp_path / "own", table({"x": x, "y": [0, 1] * 5}, None))
  with pytest.raises(sources.DataError, match=r"x_train: has shape \(8, 0, 0\), is empty"):
    sources.load(f"hf:{tmp_path}/own", KEY)


@pytest.mark.parametrize(
  "kind", [pa.list_(pa.uint8(), 6), pa.list_(pa.float64()), pa.large_list(pa.bool_())]
)
@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_lists_are_read_where_they_are(tmp_path, kind, form):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (50, 6))
  x = x > 100 if kind.value_type == pa.bool_() else x
  content = {"x": pa.array(x.tolist(), kind), "y": (x[:, 0] % 3).tolist()}
  content["user"] = [f"u{i % 7}" for i in range(50)]
  path = tmp_path / "own"
  if form == "disk":
    save_to_disk(path, table(content, None), shards=2)
  else:
    path = path.with_suffix(".parquet")
    pq.write_table(table(content, None), path, row_group_size=8)
  opened = open_with(READERS["hf"], str(path), KEY)
  data = check_in_place(opened, "hf", path)
  both = np.concatenate([data.x_train[:], data.x_test[:]])
  assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, x.tolist()))
  assert data.num_clients == 7 and data.x_train.dtype != np.float64


def test_several_labels_an_example_and_numbers_to_predict(tmp_path):
  x = np.arange(20).reshape(10, 2)
  content = {"x": x.tolist(), "y": (x % 3 > 1).tolist(), "z": (x[:, 0] / 7).tolist()}
  save_to_disk(tmp_path / "own", table(content, None))

  def load(column, task):
    reading = sources.READING._replace(label_column=column, example_column="x")
    return sources.load(f"hf:{tmp_path}/own", KEY, task=task, reading=reading)

  data = load("y", "multi_label")
  assert (data.y_train == (data.x_train % 3 > 1)).all() and data.y_train.dtype == bool
  data = load("z", "regression")
  np.testing.assert_array_equal(data.y_train, np.float32(data.x_train[:, 0] / 7))
  with pytest.raises(sources.DataError, match=r"y_train: has shape \(8, 2\)"):
    load("y", "")


@pytest.mark.parametrize("is_windows", [False, True])
def test_text(tmp_path, is_windows):
  who = ["ann", "bob", "bob"]
  texts = ["to be or", "my lord,", "or not  "]
  content = {"character_id": who, "x": texts, "y": ["n", "I", "t"]}
  if not is_windows:
    content = {"character_id": who, "text": texts}
  for split in ("train", "test"):
    save_to_disk(tmp_path / split, table(content, None))
  (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  reading = sources.READING._replace(client_column="character_id", sequence_length=4)
  data = sources.load(f"hf:{tmp_path}", KEY, task="next_token", reading=reading)
  assert (data.kind, data.num_clients) == ("next_token", 2)
  if is_windows:
    assert data.client_train.tolist() == [0, 1, 1]
    assert [data.classes[i] for i in data.y_train[:, -1]] == ["n", "I", "t"]
  else:
    assert data.client_train.tolist() == [0, 0, 1, 1, 1, 1]
    rows = zip(data.x_test, data.y_test, strict=True)
    seen = ["".join(data.classes[i] for i in x[y >= 0]) for x, y in rows]
    assert seen == ["to b", "e o", "my l", "ord", "or n", "ot "]


def change(column, row, value, only="train"):
  def broken(path):
    def put(split, content):
      if split == only and row is None:
        content[column] = value
      elif split == only:
        content[column][row] = value

    remove(path)
    save(path, change=put)

  return broken


def remove(path):
  for file in sorted(path.rglob("*"), reverse=True):
    file.unlink() if file.is_file() else file.rmdir()
  path.rmdir()


def drop(column, only="train"):
  def broken(path):
    def put(split, content):
      if split == only:
        del content[column]

    remove(path)
    save(path, change=put)

  return broken


def cut(path, batches=False):
  file = path / "train" / "data-00000-of-00003.arrow"
  content = file.read_bytes()
  file.write_bytes(content[:-8] if batches else content[: len(content) // 2])


SMALL = {"bytes": encoded(np.zeros((3, 3, 3), np.uint8)), "path": None}
BROKEN = {
  "no folder": (lambda path: path.rename(path.with_name("x")), "no such folder, must be one of"),
  "nothing": (
    lambda path: [file.unlink() for file in path.rglob("*") if file.is_file()],
    "holds neither state.json nor",
  ),
  "no state": (
    lambda path: (path / "train/state.json").unlink(),
    "train/state.json: no such file, must be that of save_to_disk",
  ),
  "no shard": (
    lambda path: (path / "train/data-00001-of-00003.arrow").unlink(),
    "data-00001-of-00003.arrow: no such file, must be a whole stream of Arrow",
  ),
  "truncated": (cut, "data-00000-of-00003.arrow: has no end of a stream of Arrow"),
  "cut at a batch": (lambda path: cut(path, True), "data-00000-of-00003.arrow: has no end"),
  "another file": (
    lambda path: (path / "train/data-00000-of-00003.arrow").write_bytes(
      b"x" * 90 + b"\xff\xff\xff\xff\0\0\0\0"
    ),
    "data-00000-of-00003.arrow: cannot be read .*must be a whole stream",
  ),
  "no label": (drop("character"), "no column is surely the label, .*--label_column of image"),
  "no label in the test": (drop("character", "test"), "test: character is missing"),
  "a label out of range": (
    change("character", 4, 16),
    "train: client 'w0': character: example 4: is the label 16, must be 0 to 15",
  ),
  "no image": (
    change("image", 5, {"bytes": None, "path": "gone.png"}),
    "train: client 'w1': image: example 5: holds no bytes",
  ),
  "a bad image": (
    change("image", 5, {"bytes": b"no image", "path": None}),
    "train: client 'w1': image: example 5: cannot be read .*must be a whole image",
  ),
  "sizes": (
    change("image", 5, SMALL),
    "train: client 'w1': image: example 5: is 3 x 3 and those before 7 x 6",
  ),
  "sizes of the test": (
    change("image", 1, SMALL, "test"),
    "test: client 'w3': image: example 1: is 3 x 3 and those before 7 x 6",
  ),
  "no client": (change("writer_id", 3, None), "train: writer_id: example 3 is null"),
  "ragged": (
    change("image", None, [[0.0, 1.0]] * 10 + [[0.0]]),
    "train: image: example 10 is of another size than example 0",
  ),
  "no whole parquet": (
    lambda path: (remove(path), next(save(path, "parquet").rglob("train-00001*")).unlink()),
    "train: has 1 of 2 files train-",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_for_a_bad_folder(tmp_path, name):
  path = save(tmp_path / "femnist")
  break_it, message = BROKEN[name]
  break_it(path)
  with pytest.raises(sources.DataError, match=message) as caught:
    sources.load(f"hf:{path}", KEY)
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)
