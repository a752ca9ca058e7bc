"""Predicts new examples: `python -m experiments.predict RUN --input=x.npz --output=y.npz`.

RUN is a run's directory, or a model file (.sfed). The input holds `x`, (n, *shape) numbers on the
scale of the data that the model was trained on, or one array of any name. The output has `classes`,
(n,) the labels, and `probabilities`, (n, num_classes), in the order of `labels`. Where several
labels are told at once, `classes` are (n, num_labels) of 0 and 1, of tokens those that follow each,
(n, length). Of a regression there are `numbers` alone.
"""

import io
import pathlib
import sys
import zipfile
from collections.abc import Sequence

import jax
import numpy as np
from absl import app, logging
from absl import flags as absl_flags

from experiments import flags
from experiments.exports import loading
from sparsyfed_jax.io.model_places import WHICH
from sparsyfed_jax.io.writers import replace_file
from sparsyfed_jax.loaded import Loaded

_SLACK = 0.5  # of the width of what was seen in training, by which inputs may exceed it
_LEAST = 0.02  # of that width, which inputs use at least


def main(argv: Sequence[str], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Predicts what the flags say."""
  try:
    run, source, output = check(argv, flag_values)
    loaded = loading.load(run, str(flag_values["which"].value), flag_values["model"].value)
    x = read_examples(source)
    check_examples(loaded, x, f"--input={source}", bool(flag_values["any_range"].value))
    content = predictions(loaded, x)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **content)
    replace_file(output, file.getvalue())
  except (ValueError, OSError) as error:
    flags.fail(error)
  print(f"{output}: predictions of {len(x)} examples; {describe(loaded)}")


def predictions(loaded: Loaded, x: np.ndarray) -> dict[str, np.ndarray]:
  """Computes what the output holds."""
  found = loaded.predict(x)
  if loaded.task == "regression":
    return {"numbers": np.asarray(found)}
  labels = np.asarray(loaded.classes if loaded.classes else range(found.shape[-1]))
  if loaded.task == "multi_label":
    shares = np.asarray(jax.nn.sigmoid(found))
    named = np.asarray(found > 0).astype(int)  # of tiny logits the share is 0.5
    return {"classes": named, "probabilities": shares, "labels": labels}
  probabilities = np.asarray(jax.nn.softmax(found, axis=-1))
  classes = labels[np.argmax(probabilities, axis=-1)]
  return {"classes": classes, "probabilities": probabilities, "labels": labels}


def describe(loaded: Loaded) -> str:
  """Says what a model was trained on."""
  told = loaded.description
  seen = loaded.seen_range
  span = f", values {seen[0]:g} to {seen[1]:g}" if seen else ""
  return (
    f"the model was trained on {told.get('dataset', 'data that is not named')}, examples of shape"
    f" {loaded.input_shape}{span}, for {loaded.round} rounds of"
    f" {told.get('algorithm', 'a method that is not named')}"
  )


def read_examples(path: pathlib.Path) -> np.ndarray:
  """Reads `x` of an npz, or the one array in it; raises ConfigError where it has none."""
  try:
    with open(path, "rb") as source:
      file = np.load(source, allow_pickle=False)
      if not isinstance(file, np.lib.npyio.NpzFile):
        raise flags.ConfigError(f"--input={path}: must be an npz, is a single array")
      names = file.files
      if "x" not in names and len(names) != 1:
        held = ", ".join(names) or "nothing"
        raise flags.ConfigError(f"--input={path}: must hold an array `x`, holds {held}")
      x: np.ndarray = file["x" if "x" in names else names[0]]
  except flags.ConfigError:
    raise
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    # NumPy takes every file that it does not know for a pickle, and advises to load that.
    fault = str(error) if zipfile.is_zipfile(path) else "is another kind of file, or damaged"
    raise flags.ConfigError(f"--input={path}: must be an npz of numbers ({fault})") from error
  return x


def check_examples(loaded: Loaded, x: np.ndarray, what: str, any_range: bool) -> None:
  """Refuses examples of another shape or scale; raises ConfigError."""
  if x.ndim == 0 or x.shape[1:] != loaded.input_shape or not len(x):
    shape = ", ".join(["n", *map(str, loaded.input_shape)])
    raise flags.ConfigError(f"{what}: x has shape {x.shape}, must be ({shape}); {describe(loaded)}")
  if x.dtype.kind not in "buif" or not np.all(np.isfinite(x)):
    raise flags.ConfigError(f"{what}: x must be of finite numbers, is of {x.dtype}")
  seen = loaded.seen_range
  if seen is None or seen[0] == seen[1] or any_range or loaded.task == "next_token":
    return
  low, high = seen
  width, least, most = high - low, float(x.min()), float(x.max())
  is_beyond = least < low - _SLACK * width or most > high + _SLACK * width
  if is_beyond or most - least < _LEAST * width:
    raise flags.ConfigError(
      f"{what}: x has values from {least:g} to {most:g}, must be on the scale of {low:g} to"
      f" {high:g}, or --any_range be given; {describe(loaded)}"
    )


def define(flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags."""
  define_string = absl_flags.DEFINE_string
  define_string("input", None, "npz with the examples, `x`", flag_values=flag_values)
  define_string("output", None, "npz to write", flag_values=flag_values)
  define_string(
    "which", "last", "last, or best: what --keep_best has kept", flag_values=flag_values
  )
  define_string("model", None, loading.HELP, flag_values=flag_values)
  absl_flags.DEFINE_boolean(
    "overwrite", False, "replaces --output where it exists", flag_values=flag_values
  )
  absl_flags.DEFINE_boolean(
    "any_range",
    False,
    "takes examples on another scale than that of the training data",
    flag_values=flag_values,
  )


def check(
  argv: Sequence[str], flag_values: absl_flags.FlagValues
) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
  """Checks the arguments before anything is read; returns the run, the input and the output.

  Raises:
    ConfigError: naming the argument that cannot be obeyed.
  """
  if len(argv) != 2:
    shown = " ".join(argv[1:]) or "left out"
    raise flags.ConfigError(f"RUN ({shown}): must be one folder, that of a run, or a model file")
  places = {}
  for name in ("input", "output"):
    value = flag_values[name].value
    if not value:
      raise flags.ConfigError(f"--{name}: must be given, an npz")
    places[name] = pathlib.Path(flags.folder(value))
  source, output = places["input"], places["output"]
  which = flag_values["which"].value
  if which not in WHICH:
    raise flags.ConfigError(f"--which={which}: must be one of {', '.join(WHICH)}")
  if not source.is_file():
    raise flags.ConfigError(f"--input={source}: must be a file that exists")
  if output.suffix != ".npz" or not output.parent.is_dir():
    raise flags.ConfigError(f"--output={output}: must be an .npz in a folder that exists")
  if output.exists() and not flag_values["overwrite"].value:
    raise flags.ConfigError(
      f"--output={output}: exists; must be another file, or be given with --overwrite"
    )
  return pathlib.Path(flags.folder(argv[1])), source, output


if __name__ == "__main__":
  define()
  absl_flags.adopt_module_key_flags(sys.modules[__name__])  # for --help
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse_with_names)
