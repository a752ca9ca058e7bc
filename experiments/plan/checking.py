"""Holds a plan against runs on the chip: `python -m experiments.plan.checking PLAN RUN...`.

PLAN is the folder of a plan that was written before, each RUN one of `experiments.train` with the
plan's flags on the chip that it was made for; it may take other rounds and read like data from
elsewhere. Prints a table: memory as planned and at its peak, kernels or cycles as planned beside
the seconds of a round, and the times of compiling.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from experiments import flags
from experiments.bench.rows import markdown
from experiments.plan.search import total_bytes
from experiments.plan.worker import Request, config_of
from experiments.run import begun
from experiments.terminal import format_bytes

HEADER = [
  *("method", "clients side by side", "memory planned", "at its peak", "ratio"),
  *("kernels a round", "cycles a round", "a round took", "compilation there", "here"),
]

# Flags that a run may have otherwise than its plan: it is as large, and a round is the same.
_MAY_DIFFER = frozenset(flags.WITHOUT_EFFECT) - {"data_placement"} | {
  *("dataset", "rounds", "eval_every", "keep_best", "seed")
}


def main(arguments: Sequence[str]) -> None:
  """Prints the table, or ends with one line that says what is wrong."""
  if len(arguments) < 2:
    sys.exit("error: name the folder of a plan, and of runs: experiments.plan.checking PLAN RUN...")
  try:
    plan = _read(pathlib.Path(arguments[0]) / "plan.json")
    rows = [row_of(plan, pathlib.Path(place)) for place in arguments[1:]]
  except (OSError, ValueError, absl_flags.Error) as error:
    sys.exit(f"error: {error}")
  print(markdown([HEADER, *rows]), end="")


def row_of(plan: Mapping[str, Any], run: pathlib.Path) -> list[str]:
  """Makes the row of a run.

  Args:
    plan: the contents of plan.json.
    run: the run's folder.

  Raises:
    OSError: the run has no summary yet.
    ValueError: the plan has no point of the run's method and number of clients side by side, or is
      of other flags, chips or data.
  """
  summary, config = _read(run / "summary.json"), _read(run / "config.json")
  chunk = config["data"]["clients_per_chunk"]
  points = [
    point
    for point in plan["points"]
    if (point["algorithm"], point["clients_per_chunk"]) == (summary["algorithm"], chunk)
  ]
  if not points or (planned := total_bytes(points[0])) is None:
    raise ValueError(
      f"{run}: {summary['algorithm']} with {chunk} clients side by side is not in the plan"
    )
  _check_alike(plan, points[0], config, run)
  peak, found = summary.get("process_peak_device_bytes"), points[0].get("round", {})
  return [
    summary["algorithm"],
    str(chunk),
    format_bytes(planned),
    format_bytes(peak) if peak else "unknown",
    f"{peak / planned:.2f}" if peak else "",
    f"{found['operations']:,.0f}" if plan["platform"] == "gpu" and found else "",
    f"{found['cycles']:,.0f}" if found.get("cycles") else "",
    f"{summary['seconds_per_round']:.3g} s",
    f"{summary['compile_seconds']:.3g} s",
    f"{points[0]['compile_seconds']:.3g} s",
  ]


def _check_alike(
  plan: Mapping[str, Any], point: Mapping[str, Any], config: Mapping[str, Any], run: pathlib.Path
) -> None:
  """Raises ValueError, naming the first of the flags, the chips and the data that differs."""
  if "examples" not in point:
    raise ValueError("the plan does not tell of its data, as older ones: it must be made anew")
  # Some flags follow from the number of rounds.
  made_for = config_of(
    Request([*plan["flags"], f"--rounds={config['rounds']}"], point["algorithm"], "")
  )
  planned = json.loads(json.dumps(begun.recorded_flags(made_for)))
  pairs = {
    f"--{name}": (planned[name], config[name])
    for name in sorted(planned, key=lambda name: name in flags.DERIVED)
    if name not in _MAY_DIFFER and name in config
    if (name, planned[name]) != ("partition", None)  # which the data tells
  }
  pairs["its number of chips"] = plan["chips"], config["data"]["devices"]
  pairs |= {
    f"{name} of its data": (value, config["data"][name])
    for name, value in point["examples"].items()
  }
  for what, (value, found) in pairs.items():
    if value != found:
      raise ValueError(f"{run}: {what} is {found}, and {value} in the plan: nothing to compare")


def _read(path: pathlib.Path) -> Any:
  return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
  main(sys.argv[1:])
