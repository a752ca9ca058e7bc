"""Writes a trained model for others: `python -m experiments.export RUN --format=safetensors`.

RUN is a run's directory, or a model file (.sfed). Formats: safetensors; torch (a state dict); onnx;
sfed (this project's: zeros left out, smallest); csr (a folder of SciPy's sparse matrices). What is
written is run in its own library, and must give the model's logits and keep its zeros. With --table
all formats are written to a temporary folder, and their sizes and speeds on this CPU are printed.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import app, logging
from absl import flags as absl_flags

from experiments import flags
from experiments.exports import formats, loading
from experiments.exports.network import ExportError
from experiments.exports.table import make_table, use_one_core
from sparsyfed_jax.io.model_places import WHICH


def main(argv: Sequence[str], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Loads the model, and writes it or the table."""
  try:
    run, output = check(argv, flag_values)
    if flag_values["table"].value:
      use_one_core()
    loaded = loading.load(run, str(flag_values["which"].value), flag_values["model"].value)
    if flag_values["table"].value:
      print(make_table(loaded), end="")
      return
    name, dtype = str(flag_values["format"].value), str(flag_values["dtype"].value)
    compression = str(flag_values["compression"].value)
    done = formats.export(
      loaded, name, output, dtype, None if compression == "none" else compression
    )
  except ExportError as error:
    flags.fail(error, code=1)
  except (ValueError, OSError) as error:
    flags.fail(error)
  rounding = f", rounding to {dtype} by {done.rounding:.2g}" if dtype != "float32" else ""
  print(
    f"{output}: {done.size / 1e3:.1f} kB, the model after round {loaded.round}; logits differ by"
    f" {done.difference:.2g} from JAX's{rounding}, zeros kept"
  )
  scale = f"(x - {loaded.signature.mean:g}) / {loaded.signature.std:g}"
  how = f"scaled {'inside' if name in ('onnx', 'sfed') else 'before'} as {scale}"
  if loaded.task == "next_token":
    how = f"tokens from 0 to {loaded.signature.num_classes - 1}"
  print(f"inputs {loaded.input_shape}, {how}")


def define(flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags."""
  absl_flags.DEFINE_string(
    "format", None, f"one of {', '.join(formats.FORMATS)}", flag_values=flag_values
  )
  absl_flags.DEFINE_string(
    "output", None, "file, or folder of csr, to write; default: model and the format's ending, in"
    " RUN", flag_values=flag_values
  )  # fmt: skip
  absl_flags.DEFINE_string(
    "which", "last", "last, or best: what --keep_best has kept", flag_values=flag_values
  )
  absl_flags.DEFINE_string(
    "dtype", "float32", "of values in safetensors and sfed: float32, bfloat16 or float16",
    flag_values=flag_values,
  )  # fmt: skip
  absl_flags.DEFINE_string(
    "compression", "none", "of sfed: none, or zstd (which its readers need then)",
    flag_values=flag_values,
  )  # fmt: skip
  absl_flags.DEFINE_string("model", None, loading.HELP, flag_values=flag_values)
  absl_flags.DEFINE_boolean(
    "overwrite", False, "replaces --output where it exists", flag_values=flag_values
  )
  absl_flags.DEFINE_boolean(
    "table", False, "prints sizes and speeds of all formats instead", flag_values=flag_values
  )


def check(
  argv: Sequence[str], flag_values: absl_flags.FlagValues
) -> tuple[pathlib.Path, pathlib.Path]:
  """Checks the arguments before anything is read.

  Returns:
    The run, and where its model is to go.

  Raises:
    ConfigError: naming the argument that cannot be obeyed.
  """
  given = {name: flag_values[name].value for name in ("format", "output", "dtype", "compression")}

  def require(is_met: bool, name: str, right: str) -> None:
    if not is_met:
      raise flags.ConfigError(f"--{name}={flag_values[name].value}: must be {right}")

  if len(argv) != 2:
    shown = " ".join(argv[1:]) or "left out"
    raise flags.ConfigError(f"RUN ({shown}): must be one folder, that of a run, or a model file")
  run = pathlib.Path(flags.folder(argv[1]))
  require(flag_values["which"].value in WHICH, "which", f"one of {', '.join(WHICH)}")
  if flag_values["table"].value:
    require(given["format"] is None, "format", "left out with --table, which has all of them")
    require(given["output"] is None, "output", "left out with --table, which is printed")
    return run, run
  require(given["format"] in formats.FORMATS, "format", f"one of {', '.join(formats.FORMATS)}")
  form = formats.FORMATS[str(given["format"])]
  require(given["dtype"] in formats.DTYPES, "dtype", f"one of {', '.join(formats.DTYPES)}")
  others = f"with --format={given['format']}"
  require(form.takes_dtype or given["dtype"] == "float32", "dtype", f"float32 {others}")
  require(given["compression"] in formats.COMPRESSIONS, "compression", "none or zstd")
  is_plain = given["compression"] == "none"
  require(form.takes_compression or is_plain, "compression", f"none {others}")
  return run, _check_output(run, form, given, bool(flag_values["overwrite"].value))


def _check_output(
  run: pathlib.Path, form: formats.Format, given: dict[str, str | None], overwrite: bool
) -> pathlib.Path:
  folder = run if run.is_dir() else run.parent
  default = folder / f"model-{given['format']}{form.suffix}"
  output = pathlib.Path(flags.folder(given["output"])) if given["output"] else default
  if not output.parent.is_dir():
    raise flags.ConfigError(f"--output={output}: must be in a folder that exists")
  written = [output] if form.has_description else [output, formats.description_path(output)]
  for place in written:
    if place.exists() and not overwrite:
      raise flags.ConfigError(
        f"--output={output}: {place} exists; must be another, or be given with --overwrite"
      )
  is_folder = given["format"] == "csr"
  if output.exists() and output.is_dir() != is_folder:
    right = "a folder" if is_folder else "a file"
    raise flags.ConfigError(f"--output={output}: must be {right}, as --format is")
  if is_folder and output.exists() and not (output / "description.json").exists():
    raise flags.ConfigError(f"--output={output}: is no export of this command; must be another")
  return output


if __name__ == "__main__":
  define()
  absl_flags.adopt_module_key_flags(sys.modules[__name__])  # for --help
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse_with_names)
