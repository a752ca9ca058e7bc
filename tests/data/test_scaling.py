"""Input ranges: by the values that a training set has; storage; layouts; what is pointed out."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from sparsyfed_jax.data import scaling, sources
from sparsyfed_jax.data.labels import outsiders
from sparsyfed_jax.data.remarks import remarks

KEY = jax.random.key(0)
DIGITS = load_digits().images  # 0 to 16
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (50, 8, 8, 1))
NORMAL = RNG.normal(size=(500, 20)).astype(np.float32)


class TestFindRange:
  @pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int64, np.float32])
  @pytest.mark.parametrize(
    "values, expected",
    [
      (DIGITS, (0, 16)),
      (DIGITS.clip(0, 15), (0, 16)),
      (BYTES // 8, (0, 31)),
    ],
  )
  def test_of_values_that_fit_any_dtype(self, dtype, values, expected):
    assert scaling.find_range(values.astype(dtype)) == expected

  @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32])
  @pytest.mark.parametrize("largest", [128, 200, 254, 255])
  def test_images_of_eight_bits_need_not_use_all_of_them(self, dtype, largest):
    assert scaling.find_range(BYTES.clip(3, largest).astype(dtype)) == (0, 255)

  @pytest.mark.parametrize(
    "x, expected",
    [
      (BYTES > 99, (0, 1)),
      ((BYTES > 99).astype(np.uint8), (0, 1)),
      (BYTES.astype(np.int8), (-128, 128)),
      ((300 * NORMAL).clip(-900, 400).astype(np.int16), (-900, 900)),
      (np.array([[-9000], [7000]], np.int16), (-32768, 32768)),  # waveforms
      (np.array([[-32_768], [32_767]], np.int64), (-32768, 32768)),
      (np.array([[-1], [0], [1]]), (-1, 1)),
      (BYTES // 4 - 32, (-32, 32)),  # -32 to 31
      (BYTES // 2 - 64, (-128, 128)),
      (np.array([[-40], [-10]]), (-40, -10)),
      (np.array([[1000], [1200]]), (1000, 1200)),
      (np.array([[7], [4095]], np.uint16), (7, 4095)),
      (np.array([[0], [50_000]], np.uint16), (0, 65535)),
      (np.array([[0], [2**63]], np.uint64), (0, 2.0**63)),
      (np.array([[5], [5]]), (4, 6)),
      (255 * RNG.random((50, 8)).astype(np.float32), (0, 255)),
      (50 + NORMAL, (float((50 + NORMAL).min()), float((50 + NORMAL).max()))),
    ],
  )
  def test_of_others(self, x, expected):
    assert scaling.find_range(x) == expected

  @pytest.mark.parametrize(
    "x",
    [
      NORMAL,
      NORMAL**3 / np.std(NORMAL**3),  # standardised, with values far out
      RNG.random((50, 8), np.float32),
      2 * RNG.random((50, 8), np.float32) - 1,
      (BYTES > 99).astype(np.float32),
      np.zeros((3, 2), np.float32),
    ],
  )
  def test_floats_that_look_normalised_are_left_as_they_are(self, x):
    assert scaling.find_range(x) is None
    assert scaling.mean_and_std(None) == (0.0, 1.0)

  def test_the_ends_become_minus_one_and_one(self):
    mean, std = scaling.mean_and_std((-3.0, 5.0))
    assert ((-3 - mean) / std, (5 - mean) / std) == (-1, 1)
    assert scaling.as_range(mean, std) == (-3, 5)
    assert scaling.mean_and_std(scaling.AUDIO) == (0.0, 32768.0)
    assert scaling.mean_and_std((0.0, 255.0)) == (127.5, 127.5)


@pytest.mark.parametrize(
  "values, dtype, stored",
  [
    ([0, 255], np.int64, np.uint8),
    ([0, 256], np.uint16, np.int16),
    ([-1, 255], np.int32, np.int16),
    ([0, 40_000], np.uint16, np.float32),
    ([0, 10**9], np.int64, np.float32),
    ([0, 1], np.int16, np.int16),
    ([0, 1], np.float64, np.float32),
  ],
)
def test_stored_as_small_as_training_and_test_values_fit(values, dtype, stored):
  train, test = scaling.narrow(np.array(values[:1], dtype), np.array(values[1:], dtype))
  assert train.dtype == test.dtype == stored
  assert [*train.tolist(), *test.tolist()] == values


@pytest.mark.parametrize(
  "shape, expected",
  [
    ((3, 32, 32), True),
    ((3, 218, 178), True),
    ((1, 28, 28), True),
    ((4, 64, 64), True),
    ((32, 32, 3), False),
    ((8, 8, 1), False),
    ((5, 5, 5), False),
    ((3, 3, 200), False),  # patches of many bands
    ((1, 1000, 22), False),  # a signal of 22 channels
    ((3, 32), False),
  ],
)
def test_what_looks_like_images_with_the_channels_first(shape, expected):
  assert scaling.looks_channels_first(shape) is expected


@pytest.mark.parametrize(
  "labels, expected",
  [
    (range(10), []),
    (range(1, 11), []),
    ([*range(21), 255], [255]),
    ([-1, 0, 1, 2], [-1]),
    ([-1, *range(5), 255], [-1, 255]),
    ([-1, 1], []),
    ([-1, 0, 1], []),
    ([0, 3, 17, 900_007], []),
    ([*range(10, 20), 255], []),
    (["-1", "0", "1", "2"], []),
  ],
)
def test_labels_that_stand_apart(labels, expected):
  assert outsiders(tuple(labels)) == expected


class TestRemarks:
  def look(self, tmp_path, **arrays):
    y = np.arange(40) % 4
    arrays = dict(x_train=BYTES[:40], y_train=y, x_test=BYTES[:40], y_test=y) | arrays
    np.savez(tmp_path / "a.npz", **arrays)
    return remarks(sources.npz(str(tmp_path / "a.npz"), KEY))

  def test_nothing_of_digits(self):
    assert remarks(sources.digits(KEY)) == []

  @pytest.mark.parametrize("x", [BYTES[:40], NORMAL[:40], BYTES[:40].reshape(40, -1)])
  def test_nothing_of_good_data(self, tmp_path, x):
    assert self.look(tmp_path, x_train=x, x_test=x) == []

  def test_a_void_label(self, tmp_path):
    y = np.array([0, 1, 2, 255] * 10)
    (line,) = self.look(tmp_path, y_train=y, y_test=y)
    assert line.startswith("the label 255 stands apart") and "(20 examples)" in line
    assert line.endswith("keep y != 255")

  def test_a_class_in_the_test_set_alone(self, tmp_path):
    (line,) = self.look(tmp_path, y_train=np.arange(40) % 3)
    assert line.startswith("3 of the 4 classes occurs in the test set alone (10 of 40 examples)")

  def test_training_and_test_values_of_two_scales(self, tmp_path):
    x = (BYTES[:40] / 255).astype(np.float32)
    (line,) = self.look(tmp_path, x_train=x, x_test=BYTES[:40].astype(np.float32))
    assert "x_train holds 0 to 1 and x_test 0 to 255" in line

  def test_a_table_of_features_in_many_units(self, tmp_path):
    x = RNG.random((40, 4)) * [1, 90, 3, 100_000]
    (line,) = self.look(tmp_path, x_train=x, x_test=x)
    assert line.startswith("the features of x_train differ in width") and "standardise" in line

  def test_a_value_far_out(self, tmp_path):
    x = BYTES[:40].copy()
    x[0, 0, 0, 0] = 10**6
    (line,) = self.look(tmp_path, x_train=x, x_test=x)
    assert "between 0 and 255, a small part of 0 to 1e+06; --input_range=0,255" in line

  def test_what_may_be_images_with_the_channel_first(self, tmp_path):
    x = np.broadcast_to(BYTES[:40, :1, :, :], (40, 1, 8, 9))
    (line,) = self.look(tmp_path, x_train=x, x_test=x)
    assert "1 high and 8 wide with 9 channels" in line and "x.transpose(0, 2, 3, 1)" in line

  def test_labels_that_are_numbers_to_be_predicted(self, tmp_path):
    y = 3 * np.arange(40) + 5
    (line,) = self.look(tmp_path, y_train=y, y_test=y)
    assert line.startswith("there are 40 classes for 40 training examples")
