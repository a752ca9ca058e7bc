"""The archive of Speech Commands as it is unpacked (Warden 2018, https://arxiv.org/abs/1804.03209).

`<word>/<speaker>_nohash_<n>.wav`, of which `testing_list.txt` and `validation_list.txt` name those
that are not trained on. Speakers are the clients; a speaker is in one of the three parts.
"""

import pathlib
import wave

import numpy as np

from sparsyfed_jax.data import audio, scaling
from sparsyfed_jax.data.dataset import DataError, Part
from sparsyfed_jax.data.readers import checks
from sparsyfed_jax.data.readers.record import Found, Reader
from sparsyfed_jax.data.reading import Reading
from sparsyfed_jax.data.rows import Rows

RATE = 8000  # samples a second of the examples, which last one second
_MARK = "_nohash_"
_LISTS = ("testing_list.txt", "validation_list.txt")


def read(path: pathlib.Path, reading: Reading, task: str) -> Found:
  """Reads the folder of the archive; raises DataError.

  All words are classes; noise is left out. The test set is that of `testing_list.txt`, and all
  clips in neither list are trained on. Each is cut or filled with zeros to one second, and then
  resampled to 8 kHz.
  """
  del reading, task
  checks.folder(path, "Speech Commands, <word>/<speaker>_nohash_<n>.wav, unpacked")
  words = sorted(own.name for own in path.iterdir() if own.is_dir() and own.name[0] not in "._")
  if len(words) < 2:
    raise DataError(f"{path}: holds {len(words)} folders of words, must hold 2 or more")
  testing, validation = (_listed(path / name, words) for name in _LISTS)
  files = [file for word in words for file in sorted((path / word).glob("*.wav"))]
  names = [f"{file.parent.name}/{file.name}" for file in files]
  for name, listed in zip(_LISTS, (testing, validation), strict=True):
    missing = sorted(listed - set(names))
    if missing:
      raise DataError(f"{path / missing[0]}: no such file, must be there as {name} lists it")
  parts = [
    [file for file, name in zip(files, names, strict=True) if keep(name)]
    for keep in (lambda name: name not in testing | validation, lambda name: name in testing)
  ]
  for noun, own in zip(("train on", "test on"), parts, strict=True):
    if not own:
      raise DataError(f"{path}: has no clip to {noun}, must have some beside its lists")
  train, test = (_part(own, words) for own in parts)
  return Found("speech_commands", train, test, classes=tuple(words), limits=scaling.AUDIO)


def _listed(file: pathlib.Path, words: list[str]) -> set[str]:
  with checks.parsing(file, "a list of <word>/<speaker>_nohash_<n>.wav, a line each"):
    lines = file.read_text(encoding="utf-8").split()
  for number, line in enumerate(lines, start=1):
    if line.partition("/")[0] not in words:
      raise DataError(f"{file}: line {number}: {line!r} must be <word>/<file> of a word's folder")
  return set(lines)


def _part(files: list[pathlib.Path], words: list[str]) -> Part:
  speakers = []
  for file in files:
    speaker, mark, _ = file.name.partition(_MARK)
    if not mark or not speaker:
      raise DataError(f"{file}: must be called <speaker>{_MARK}<n>.wav")
    speakers.append(speaker)

  def read(_: int, rows: np.ndarray) -> np.ndarray:
    return np.stack([_clip(files[row]) for row in rows])

  y = np.searchsorted(words, [file.parent.name for file in files])
  x = Rows([len(files)], (RATE,), np.int16, read)
  return Part(x, y.astype(np.int32), np.array(speakers))


def _clip(file: pathlib.Path) -> np.ndarray:
  right = "a whole WAV file of 16 bits and one channel"
  with checks.parsing(file, right):
    with wave.open(str(file)) as content:
      told = content.getparams()
      data = content.readframes(told.nframes)
  if (told.nchannels, told.sampwidth) != (1, 2):
    raise DataError(
      f"{file}: has {told.nchannels} channels of {8 * told.sampwidth} bits, must be {right}"
    )
  if len(data) != 2 * told.nframes or not told.nframes:
    raise DataError(f"{file}: holds {len(data) // 2} of {told.nframes} samples, must be {right}")
  waveform = np.frombuffer(data, "<i2").astype(np.int16)
  second = audio.pad_or_cut(waveform, told.framerate)
  return audio.pad_or_cut(audio.resample(second, told.framerate, RATE), RATE)


READER = Reader("speech", read, extra="readers")
