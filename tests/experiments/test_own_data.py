"""The same digits, saved in the ways that people save images and labels, learn equally well."""

from functools import cache

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments import flags
from experiments.run.build import build
from experiments.run.programs import compile_programs, inputs_of
from sparsyfed_jax.data import sources

PIXELS, LABELS = load_digits().images[..., None], load_digits().target
BYTES = np.rint(PIXELS * 255 / 16)
CONFIG = flags.resolve(
  flags.DEFAULTS._replace(
    model="mlp", algorithm="fedavg", num_clients=20, rounds=10, eval_every=10, client_lr=0.1,
    metrics=False, compilation_cache_dir="",
  )
)  # fmt: skip
FORMS = {
  "digits": None,
  "uint8 to 16": PIXELS.astype(np.uint8),
  "int64 to 16": PIXELS.astype(np.int64),
  "float64 to 16": PIXELS,
  "uint8": BYTES.astype(np.uint8),
  "int16 to 255": BYTES.astype(np.int16),
  "float32 to 255": BYTES.astype(np.float32),
  "int8": (BYTES - 128).astype(np.int8),
  "uint16": (PIXELS * 4095).astype(np.uint16),
  "bool": PIXELS > 4,
  "uint8 masks": (PIXELS > 4).astype(np.uint8),
}


@cache
def accuracy(dataset):
  experiment = build(CONFIG._replace(dataset=dataset))
  programs, inputs = compile_programs(experiment), inputs_of(experiment)
  state, _ = programs.run(programs.init(inputs), inputs, CONFIG.rounds)
  return float(programs.evaluate(state, inputs)["test_accuracy"])


def save(directory, x=PIXELS, y=LABELS):
  np.savez(directory / "digits.npz", x=x, y=y)
  return f"npz:{directory}/digits.npz"


def seen(data):
  """What a model sees of the training examples."""
  return (data.x_train.astype(np.float32) - data.mean) / data.std


@pytest.mark.parametrize("form", FORMS)
def test_a_model_sees_the_same_digits_in_any_dtype(tmp_path, form):
  key = jax.random.key(0)
  data = sources.digits(key) if form == "digits" else sources.load(save(tmp_path, FORMS[form]), key)
  values = seen(data)
  assert (values.min(), values.max()) == (-1, pytest.approx(1, abs=0.01))
  if "bool" not in form and "masks" not in form:
    np.testing.assert_allclose(values, seen(sources.digits(key)), atol=0.01)
  assert data.x_train.itemsize <= 4


@pytest.mark.parametrize(
  "form",
  ["uint8 to 16", "int16 to 255", pytest.param("float32 to 255", marks=pytest.mark.slow)],
)
def test_pixels_in_any_dtype_and_range_are_learned_as_well(tmp_path, form):
  assert accuracy("digits") > 0.92
  assert accuracy(save(tmp_path, FORMS[form])) == pytest.approx(accuracy("digits"), abs=0.01)


@pytest.mark.slow
def test_masks_of_noughts_and_ones_are_learned(tmp_path):
  assert accuracy(save(tmp_path, FORMS["uint8 masks"])) > 0.85


def test_labels_of_any_numbers_are_learned_and_kept(tmp_path):
  labels = np.where(LABELS == 9, 2_000_000_000, LABELS * 100_001 + 1)
  dataset = save(tmp_path, PIXELS.astype(np.uint8), labels)
  assert accuracy(dataset) == accuracy("digits")
  facts = build(CONFIG._replace(dataset=dataset)).facts
  assert facts["num_classes"] == 10
  assert facts["classes"] == (*range(1, 900_000, 100_001), 2_000_000_000)
