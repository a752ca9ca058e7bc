"""Audio: a tone stays the tone it is, what the new rate cannot hold is gone, one length."""

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import audio, sources


def tone(frequency, rate, seconds=1.0, amplitude=10000):
  time = np.arange(int(rate * seconds)) / rate
  return np.rint(amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.int16)


def energy(waveform):
  """Mean square without the ends, where the filter meets the silence around the clip."""
  edge = len(waveform) // 20
  return np.mean(np.square(waveform[edge:-edge].astype(float)))


class TestResample:
  @pytest.mark.parametrize("from_rate", [4000, 11025, 16000, 44100, 48000])
  def test_a_tone_stays_the_same(self, from_rate):
    result = audio.resample(tone(440, from_rate), from_rate, 8000)
    assert result.shape == (8000,) and result.dtype == np.int16
    inner = slice(400, -400)
    np.testing.assert_allclose(result[inner], tone(440, 8000)[inner], atol=100)

  @pytest.mark.parametrize("frequency", [5000, 6000, 7900])
  def test_what_the_new_rate_cannot_hold_is_removed(self, frequency):
    loud = tone(frequency, 16000)
    assert energy(audio.resample(loud, 16000, 8000)) < 1e-4 * energy(loud)
    assert energy(loud[::2]) > 0.9 * energy(loud)  # leaving samples out would fold it down instead

  def test_a_low_tone_keeps_its_energy_beside_a_high_one(self):
    mixed = tone(1000, 16000) + tone(6000, 16000)
    assert energy(audio.resample(mixed, 16000, 8000)) == pytest.approx(10000**2 / 2, rel=0.01)

  @pytest.mark.parametrize("length, expected", [(0, 0), (1, 1), (2, 1), (15999, 8000), (9, 5)])
  def test_length(self, length, expected):
    assert audio.resample(np.ones(length, np.int16), 16000, 8000).shape == (expected,)

  def test_the_same_rate_changes_nothing(self):
    waveform = tone(440, 8000)
    np.testing.assert_array_equal(audio.resample(waveform, 8000, 8000), waveform)

  def test_overshoot_is_cut_off_and_does_not_wrap(self):
    square = np.where(np.arange(16000) // 40 % 2, 32767, -32768).astype(np.int16)
    result = audio.resample(square, 16000, 8000)
    assert result.max() == 32767 and result.min() == -32768
    flips = np.abs(np.diff(result.astype(int))) > 40000
    assert flips.sum() < 2 * 400  # 400 true edges; each overshoot that wrapped would add two


class TestPadOrCut:
  @pytest.mark.parametrize(
    "length, expected", [(2, [1, 2]), (3, [1, 2, 3]), (5, [1, 2, 3, 0, 0]), (0, [])]
  )
  def test_values(self, length, expected):
    result = audio.pad_or_cut(np.array([1, 2, 3], np.int16), length)
    assert result.tolist() == expected and result.dtype == np.int16

  def test_nothing_becomes_silence(self):
    assert audio.pad_or_cut(np.zeros(0, np.int16), 3).tolist() == [0, 0, 0]


class TestNpz:
  @pytest.mark.parametrize("dtype, std", [(np.int16, 32768.0), (np.float32, 32768.0)])
  def test_waveforms_are_taken_as_they_are(self, tmp_path, dtype, std):
    x = np.stack([tone(100 * (i + 1), 8000) for i in range(5)]).astype(dtype)
    np.savez(tmp_path / "clips.npz", x=x, y=np.arange(5) % 2)
    data = sources.load(f"npz:{tmp_path}/clips.npz", jax.random.key(0))
    assert data.x_train.shape == (4, 8000) and data.x_train.dtype == dtype
    assert (data.mean, data.std) == (0.0, std)
