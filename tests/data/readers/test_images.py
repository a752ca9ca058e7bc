"""Folders of images: classes, clients and pixels as they were saved; one line for a bad one."""

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import sources
from sparsyfed_jax.data.readers import READERS, open_with
from tests.data.readers.places import check_in_place

PIL = pytest.importorskip("PIL.Image", reason="needs pip install '.[readers]'")
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SMALL = RNG.integers(0, 256, (24, 5, 4, 3), np.uint8)
WHO, KINDS = ("ann", "bob"), ("cat", "dog")
PLACES = ("train/{}/{}/1.png", "train/{}/{}/2.png")
FILES = [
  *(place.format(who, kind) for who in WHO for kind in KINDS for place in PLACES),
  *(f"test/{who}/{kind}/7.png" for who in ("ann", "eve") for kind in ("cat", "owl")),
]


def save(place, files, images=SMALL):
  for name, pixels in zip(files, images, strict=False):
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    PIL.fromarray(pixels).save(place / name)


@pytest.mark.parametrize("images", [SMALL, SMALL[..., 0]])
def test_clients_classes_and_pixels(tmp_path, images):
  save(tmp_path / "pets", FILES, images)
  (tmp_path / "pets/train/ann/cat/notes.txt").write_text("of no interest")
  opened = open_with(READERS["images"], str(tmp_path / "pets"), KEY)
  data = opened.dataset
  assert (opened.clients, data.num_clients) == (("ann", "bob", "eve"), 2)
  assert (data.name, data.classes) == ("pets", ("cat", "dog", "owl"))
  assert (data.x_train.dtype, data.mean, data.std) == (np.uint8, 127.5, 127.5)
  pixels = images if images.ndim == 4 else images[..., None]
  np.testing.assert_array_equal(np.concatenate([data.x_train, data.x_test]), pixels[:12])
  assert data.y_train.tolist() == [0, 0, 1, 1] * 2 and data.y_test.tolist() == [0, 2] * 2
  assert data.client_train.tolist() == [0] * 4 + [1] * 4
  assert data.client_test.tolist() == [0, 0, 2, 2]
  check_in_place(opened, "images", tmp_path / "pets")


def test_without_clients_and_without_a_test_set(tmp_path):
  save(tmp_path, [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(10)])
  data = sources.load(f"images:{tmp_path}", KEY)
  assert (data.num_clients, len(data.y_train), len(data.y_test)) == (0, 16, 4)
  check_in_place(open_with(READERS["images"], str(tmp_path), KEY), "images", tmp_path)
  found = {
    (bytes(x), label)
    for x, label in zip(
      np.concatenate([data.x_train, data.x_test]),
      np.concatenate([data.y_train, data.y_test]).tolist(),
      strict=True,
    )
  }
  assert found == {(bytes(x), i // 10) for i, x in enumerate(SMALL[:20])}


def test_other_sizes_are_resized_where_that_is_asked_for(tmp_path):
  save(tmp_path, FILES)
  PIL.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(tmp_path / FILES[1])
  reading = sources.READING._replace(image_size=(3, 2))
  data = sources.load(f"images:{tmp_path}", KEY, reading=reading)
  assert data.x_train.shape == (8, 3, 2, 3) and (data.x_train[1] == 7).all()


def remove(name):
  return lambda path: [file.unlink() for file in (path / name).glob("*.png")]


BROKEN = {
  "no folder": (lambda path: path.rename(path.with_name("x")), "no such folder, must be one of"),
  "no test": (lambda path: (path / "test").rename(path / "x"), "test: no such folder"),
  "no image": (remove("train/bob/dog"), "train/bob/dog: client 'bob': holds no image"),
  "a class beside clients": (
    lambda path: save(path, ["train/cat/1.png"]),
    "train/cat: is a class beside clients",
  ),
  "both": (lambda path: save(path, ["train/ann/1.png"]), "train/ann: holds both folders and"),
  "sizes": (
    lambda path: save(path, ["train/bob/cat/2.png"], [SMALL[0][:3]]),
    "bob/cat/2.png: is 3 x 4 and those before 5 x 4, .*--image_size=HEIGHT,WIDTH",
  ),
  "truncated": (
    lambda path: (path / FILES[3]).write_bytes((path / FILES[3]).read_bytes()[:60]),
    f"{FILES[3]}: cannot be read .*must be a whole image",
  ),
  "text": (
    lambda path: (path / FILES[0]).write_text("no image"),
    f"{FILES[0]}: cannot be read .*must be a whole image",
  ),
  "16 bits": (
    lambda path: PIL.fromarray(np.zeros((5, 4), np.uint16)).save(path / FILES[0]),
    f"{FILES[0]}: is an image of mode I;16, must be of 8 bits",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_for_a_bad_folder(tmp_path, name):
  path = tmp_path / "pets"
  save(path, FILES)
  break_it, message = BROKEN[name]
  break_it(path)
  with pytest.raises(sources.DataError, match=message) as caught:
    sources.load(f"images:{path}", KEY)
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)
