"""Makes one page of a folder of runs: `python -m experiments.report RUNS --out=report.html`.

RUNS is a run's directory, a sweep's, or any folder that holds some at any depth. The page holds its
tables and pictures itself: it needs no network and no script, and can be sent as one file.
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import app, logging
from absl import flags as absl_flags

from experiments import flags
from experiments.report import page, runs

_HEAD = 1000  # bytes of a page in which its mark is


def main(argv: Sequence[str], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Reads the runs and writes the page."""
  out = pathlib.Path(flags.folder(str(flag_values["out"].value)))
  try:
    root = check(argv, out, bool(flag_values["overwrite"].value))
    report = runs.read(root)
  except (flags.ConfigError, OSError, ValueError) as error:
    flags.fail(error)
  # As typed, after the name of the program.
  text = page.make(report, shlex.join(["python", "-m", "experiments.report", *sys.argv[1:]]))
  content = text.encode(errors="replace")  # names of files, say, may be no text
  try:
    out.write_bytes(content)
  except OSError as error:
    flags.fail(flags.ConfigError(f"--out={out}: {error.strerror}"))
  for run in report.runs:
    if run.state == runs.DAMAGED:
      print(f"warning: {run.note}", file=sys.stderr)
  for path, reason in report.skipped.items():
    print(f"warning: {root / path}: {reason}", file=sys.stderr)
  print(f"{len(report.runs)} runs in {out}, {len(content) / 1e6:.1f} MB")


def define(flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags."""
  absl_flags.DEFINE_string("out", "report.html", "the page to write", flag_values=flag_values)
  absl_flags.DEFINE_boolean(
    "overwrite",
    False,
    "replaces --out whatever it is; without, only a page that this command wrote",
    flag_values=flag_values,
  )


def check(argv: Sequence[str], out: pathlib.Path, overwrite: bool) -> pathlib.Path:
  """Checks the arguments before anything is read.

  Returns:
    The folder of the runs.

  Raises:
    ConfigError: naming the argument that cannot be obeyed.
  """
  if len(argv) != 2:
    given = " ".join(argv[1:]) or "left out"
    raise flags.ConfigError(f"RUNS ({given}): must be one folder, that of the runs")
  root = pathlib.Path(flags.folder(argv[1]))
  if not root.is_dir():
    raise flags.ConfigError(f"RUNS={root}: must be a folder that exists")
  if not out.parent.is_dir():
    raise flags.ConfigError(f"--out={out}: must be in a folder that exists")
  if out.is_dir():
    raise flags.ConfigError(f"--out={out}: must be a file, and is a folder")
  if out.exists() and not overwrite:
    with open(out, "rb") as file:
      is_ours = page.MARK.encode() in file.read(_HEAD)
    if not is_ours:
      raise flags.ConfigError(
        f"--out={out}: exists and is no page of this command; must be another file, or be given"
        " with --overwrite"
      )
  return root


if __name__ == "__main__":
  define()
  absl_flags.adopt_module_key_flags(sys.modules[__name__])  # for --help
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse_with_names)
