"""Plans a run on accelerators that are not there: `python -m experiments.plan --target=v5e:1x1`.

Compiles the programs of the run that the flags of experiments.train describe, for chips that nobody
here has, and says what they need: memory by part, how many clients fit side by side, collectives,
kernels or estimated cycles. Writes plan.json, plan.md and plan.png into --plan_dir.
"""

import datetime
import importlib.metadata
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from absl import flags as absl_flags
from absl import logging

from experiments import flag_files, flags
from experiments.plan import options, targets
from experiments.plan.asking import PlanError, Worker
from experiments.plan.options import Options
from experiments.plan.pages import name_of, page
from experiments.plan.pictures import plot_plan
from experiments.plan.search import find_largest, fits, total_bytes
from experiments.plan.worker import Request, config_of
from experiments.run.systems import num_selected
from experiments.terminal import format_bytes, format_seconds
from sparsyfed_jax.io.writers import create_run_dir, write_json

_COMPILERS = {"tpu": "libtpu", "gpu": "jax-cuda12-pjrt", "cpu": "jaxlib"}


def main(argv: Sequence[str]) -> None:
  """Plans what the flags say."""
  directory: pathlib.Path | None = None
  try:
    chosen, rest = options.read(argv[1:])
    options.shape_of(chosen)  # raises
    given = flag_files.expand(rest)
    target = targets.parse(chosen.target)
    algorithms = check(chosen, given, target)
    targets.require_compiler(target)
    directory = _open_directory(chosen, target)
    with Worker(target) as worker:
      plan = make_plan(worker, target, chosen, rest, algorithms)
  except (flags.ConfigError, absl_flags.Error, FileExistsError) as error:
    _remove_empty(directory)
    flags.fail(error)
  except PlanError as error:
    _remove_empty(directory)
    flags.fail(error, code=1)
  except KeyboardInterrupt:
    _remove_empty(directory)
    print("\ninterrupted; nothing was written", file=sys.stderr)
    sys.exit(130)
  text = page(plan)
  write_json(directory / "plan.json", plan)
  (directory / "plan.md").write_text(text, encoding="utf-8")
  plot_plan(plan, directory / "plan.png")
  print(text, end="")
  print(f"files in {directory}", file=sys.stderr)


def check(chosen: Options, given: Sequence[str], target: targets.Target) -> list[str]:
  """Checks the flags of the run with each method; returns the methods' names.

  Raises:
    ConfigError: a flag is wrong.
  """
  config = config_of(Request(given, "", ""))
  algorithms = list(chosen.compare) or [config.algorithm]
  for algorithm in algorithms:
    config = config_of(Request(given, algorithm, ""))
  num_chips = min(config.num_devices or target.num_chips, target.num_chips)
  most = -(-num_selected(config) // num_chips)
  for chunk in chosen.chunks:
    if not 1 <= chunk <= most:
      raise flags.ConfigError(
        f"--chunks={','.join(map(str, chosen.chunks))}: must be between 1 and {most}, the clients"
        " of a round on a chip"
      )
  return algorithms


def make_plan(
  worker: Worker,
  target: targets.Target,
  chosen: Options,
  rest: Sequence[str],
  algorithms: Sequence[str],
) -> dict[str, Any]:
  """Compiles all points of a plan, and says on stderr how it goes on.

  Args:
    worker: that compiles.
    target: for which.
    chosen: flags of the plan.
    rest: flags of the run, checked.
    algorithms: names of methods.

  Returns:
    The contents of plan.json.

  Raises:
    ConfigError: the data cannot be used, or a flag does not fit it.
    PlanError: the compiler ended by itself.
  """
  given = flag_files.expand(rest)
  usable, source = targets.usable_bytes(target)
  shape = options.shape_of(chosen)
  points: list[dict[str, Any]] = []
  tried: list[dict[str, Any]] = []
  largest = {}

  def ask(algorithm: str, chunk: str | int, seconds: float | None, is_whole: bool = False) -> Any:
    print(f"{algorithm}, --clients_per_chunk={chunk or 'auto'}: compiling", file=sys.stderr)
    try:
      answer = worker.ask(Request(given, algorithm, str(chunk), shape, is_whole), seconds)
    except PlanError as error:
      if is_whole:
        raise
      print(f"  {error}", file=sys.stderr)
      return None  # what was compiled before still counts
    if answer is None:
      print("  --search_seconds are over", file=sys.stderr)
    elif "refusal" in answer:
      raise flags.ConfigError(answer["refusal"])
    else:
      (points if is_whole else tried).append(answer)
      _say(answer, usable)
    return answer

  for algorithm in algorithms:
    own = [ask(algorithm, chunk, None, is_whole=True) for chunk in map(str, chosen.chunks or ("",))]
    if chosen.search_seconds:
      found = find_largest(partial(ask, algorithm), own, usable, chosen.search_seconds)
      largest[algorithm] = found._asdict() | {"is_exact": found.is_exact}
  return {
    "target": target.name,
    "chip": target.chip.title,
    "platform": target.chip.platform,
    "chips": points[0]["chips"],
    "hertz": target.chip.hertz,
    "usable_bytes": usable,
    "memory_source": source,
    "given": list(rest),
    "flags": list(given),
    "compiler": _compiler(target),
    "most_per_chip": points[0]["most_per_chip"],
    "search_seconds": chosen.search_seconds,
    "largest": largest,
    "points": points,
    "tried": tried,
  }


def _say(answer: Mapping[str, Any], usable: int) -> None:
  total, verdict = total_bytes(answer), "fits" if fits(answer, usable) else "does not fit"
  size = format_bytes(total) if total is not None else "too large"
  seconds = answer.get("compile_seconds")
  took = f", compiled in {format_seconds(seconds)}" if seconds is not None else ""
  room = format_bytes(usable)
  print(f"  {name_of(answer)}: {size} of {room}, {verdict}{took}", file=sys.stderr)


def _compiler(target: targets.Target) -> str:
  names = dict.fromkeys(("jax", _COMPILERS[target.chip.platform]))
  return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _open_directory(chosen: Options, target: targets.Target) -> pathlib.Path:
  if chosen.plan_dir:
    try:
      return create_run_dir(flags.folder(chosen.plan_dir))
    except FileExistsError as error:
      text = str(error).replace("--output_dir=", "--plan_dir=")
      raise FileExistsError(text) from None
    except OSError as error:
      raise flags.ConfigError(f"--plan_dir={chosen.plan_dir}: {error.strerror}") from error
  now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  name = re.sub("[^A-Za-z0-9]+", "-", target.name)
  return create_run_dir(pathlib.Path("plans") / f"{now}-{name}")


def _remove_empty(directory: pathlib.Path | None) -> None:
  if directory is not None and not any(directory.iterdir()):
    directory.rmdir()


if __name__ == "__main__":
  if {"--help", "-help", "-h", "--helpshort"} & set(sys.argv):
    print(f"{__doc__}\n{options.describe()}\n\n{flags.describe()}")
    sys.exit()
  logging.set_verbosity(logging.WARNING)
  jax.config.update("jax_platforms", "cpu")  # flags are checked here, and no device is opened
  flags.print_anywhere()
  main(sys.argv)
