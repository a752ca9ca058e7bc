"""The archive of Speech Commands: official lists, speakers, and what is heard; bad files."""

import os
import pathlib
import wave

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import audio, sources
from sparsyfed_jax.data.readers import READERS, open_with
from tests.data.readers.places import check_in_place

pytest.importorskip("scipy", reason="resampling needs pip install '.[readers]'")
KEY = jax.random.key(0)
REAL = os.environ.get("SPEECH_COMMANDS")
CLIPS = {  # file: samples
  "up/0a_nohash_0.wav": 16000,
  "up/0a_nohash_1.wav": 12000,
  "up/1b_nohash_0.wav": 17000,
  "down/1b_nohash_0.wav": 16000,
  "down/2c_nohash_0.wav": 16000,
  "down/3d_nohash_0.wav": 16000,
  "up/3d_nohash_0.wav": 16000,
  "_background_noise_/noise.wav": 50000,
}


def sound(name, samples):
  rng = np.random.default_rng(sum(name.encode()))
  return np.int16(9000 * np.sin(np.arange(samples) * rng.uniform(0.01, 0.1)))


def save(file, samples, rate=16000, channels=1, width=2):
  file.parent.mkdir(parents=True, exist_ok=True)
  with wave.open(str(file), "wb") as target:
    target.setparams((channels, width, rate, 0, "NONE", ""))
    target.writeframes(samples.tobytes())


@pytest.fixture
def archive(tmp_path):
  path = tmp_path / "speech_commands_v0.02"
  for name, samples in CLIPS.items():
    save(path / name, sound(name, samples))
  (path / "testing_list.txt").write_text("down/3d_nohash_0.wav\nup/3d_nohash_0.wav\n")
  (path / "validation_list.txt").write_text("down/2c_nohash_0.wav\n")
  (path / "LICENSE").write_text("")
  return path


def test_words_lists_speakers_and_sound(archive):
  opened = open_with(READERS["speech"], str(archive), KEY)
  data = opened.dataset
  assert (data.name, data.classes) == ("speech_commands", ("down", "up"))
  assert (opened.clients, data.num_clients) == (("0a", "1b", "3d"), 2)
  names = ["down/1b_nohash_0.wav", *list(CLIPS)[:3]]
  assert data.y_train.tolist() == [0, 1, 1, 1] and data.client_train.tolist() == [1, 0, 0, 1]
  assert data.y_test.tolist() == [0, 1] and data.client_test.tolist() == [2, 2]
  assert data.x_train.shape == (4, 8000) and data.x_train.dtype == np.int16
  assert (data.mean, data.std) == (0, 32768)
  for x, name in zip(data.x_train, names, strict=True):
    clip = np.zeros(16000, np.int16)
    heard = sound(name, CLIPS[name])[:16000]
    clip[: len(heard)] = heard  # first of one second, then resampled
    np.testing.assert_array_equal(x, audio.resample(clip, 16000, 8000))
  check_in_place(opened, "speech", archive)


BROKEN = {
  "no folder": (lambda path: path.rename(path.with_name("x")), "no such folder, must be one of"),
  "no list": (
    lambda path: (path / "testing_list.txt").unlink(),
    "testing_list.txt: no such file, must be a list of",
  ),
  "a clip is missing": (
    lambda path: (path / "up/3d_nohash_0.wav").unlink(),
    "up/3d_nohash_0.wav: no such file, must be there as testing_list.txt lists it",
  ),
  "a bad list": (
    lambda path: (path / "validation_list.txt").write_text("left/1_nohash_0.wav"),
    "validation_list.txt: line 1: 'left/1_nohash_0.wav' must be <word>/<file>",
  ),
  "truncated": (
    lambda path: (path / "up/0a_nohash_1.wav").write_bytes(
      (path / "up/0a_nohash_1.wav").read_bytes()[:5000]
    ),
    "up/0a_nohash_1.wav: holds 2478 of 12000 samples, must be a whole WAV file",
  ),
  "no audio": (
    lambda path: (path / "up/0a_nohash_1.wav").write_text("RIFF"),
    "up/0a_nohash_1.wav: cannot be read .*must be a whole WAV file",
  ),
  "two channels": (
    lambda path: save(path / "up/0a_nohash_1.wav", np.zeros(8, np.int16), channels=2),
    "up/0a_nohash_1.wav: has 2 channels of 16 bits",
  ),
  "8 bits": (
    lambda path: save(path / "up/0a_nohash_1.wav", np.zeros(8, np.uint8), width=1),
    "up/0a_nohash_1.wav: has 1 channels of 8 bits",
  ),
  "no speaker": (
    lambda path: save(path / "up/anybody.wav", np.zeros(8, np.int16)),
    "up/anybody.wav: must be called <speaker>_nohash_<n>.wav",
  ),
  "one word": (
    lambda path: (path / "down").rename(path / "_down"),
    "holds 1 folders of words, must hold 2 or more",
  ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_for_a_bad_archive(archive, name):
  break_it, message = BROKEN[name]
  break_it(archive)
  with pytest.raises(sources.DataError, match=message) as caught:
    sources.load(f"speech:{archive}", KEY)
  assert "\n" not in str(caught.value) and str(archive) in str(caught.value)


@pytest.mark.skipif(not REAL, reason="SPEECH_COMMANDS names no folder of the real archive")
def test_the_real_archive():
  path = pathlib.Path(REAL)
  data = sources.load(f"speech:{path}", KEY)
  listed = {
    name: set((path / f"{name}_list.txt").read_text().split()) for name in ("testing", "validation")
  }
  clips = {f"{file.parent.name}/{file.name}" for file in path.glob("[!_]*/*.wav")}
  trained = clips - listed["testing"] - listed["validation"]
  assert data.num_classes == len({name.split("/")[0] for name in clips})
  assert (len(data.y_test), len(data.y_train)) == (len(listed["testing"]), len(trained))
  speakers = {name.split("/")[1].split("_nohash_")[0] for name in trained}
  assert data.num_clients == len(speakers)
