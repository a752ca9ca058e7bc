"""Audio clips: another sample rate, one length."""

import math

import numpy as np


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
  """Resamples a clip through a low-pass filter, so that what the new rate cannot hold is removed.

  Args:
    waveform: (n,) int16.
    from_rate: its samples a second, 1 or more.
    to_rate: samples a second of the result, 1 or more.

  Returns:
    (ceil(n * to_rate / from_rate),) int16; where the filter overshoots, the ends of its range.
  """
  if from_rate == to_rate or not len(waveform):
    return waveform
  from scipy.signal import resample_poly  # slow to import

  common = math.gcd(from_rate, to_rate)
  smooth = resample_poly(waveform.astype(np.float64), to_rate // common, from_rate // common)
  limits = np.iinfo(np.int16)
  return np.rint(smooth).clip(limits.min, limits.max).astype(np.int16)


def pad_or_cut(waveform: np.ndarray, length: int) -> np.ndarray:
  """Cuts the end of a clip (n,) off or fills it with zeros; (length,) of the same dtype."""
  return np.pad(waveform[:length], (0, max(0, length - len(waveform))))
