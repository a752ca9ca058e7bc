"""Holds a plan against runs on the chip: `python -m experiments.plan.checking PLAN RUN...`.

PLAN is the folder of a plan that was written before, each RUN one of `experiments.train` with the
plan's flags on the chip that it was made for. Prints a table: memory as planned and at its peak,
kernels or cycles as planned beside the seconds of a round, and the times of compiling.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bench.rows import markdown
from experiments.plan.search import total_bytes
from experiments.terminal import format_bytes

HEADER = [
  *("method", "clients side by side", "memory planned", "at its peak", "ratio"),
  *("kernels a round", "cycles a round", "a round took", "compilation there", "here"),
]


def main(arguments: Sequence[str]) -> None:
  """Prints the table, or ends with one line that says what is wrong."""
  if len(arguments) < 2:
    sys.exit("error: name the folder of a plan, and of runs: experiments.plan.checking PLAN RUN...")
  try:
    plan = _read(pathlib.Path(arguments[0]) / "plan.json")
    rows = [row_of(plan, pathlib.Path(place)) for place in arguments[1:]]
  except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")
  print(markdown([HEADER, *rows]), end="")


def row_of(plan: Mapping[str, Any], run: pathlib.Path) -> list[str]:
  """Makes the row of a run.

  Args:
    plan: the contents of plan.json.
    run: the run's folder.

  Raises:
    OSError: the run has no summary yet.
    ValueError: the plan has no point of the run's method and number of clients side by side.
  """
  summary = _read(run / "summary.json")
  chunk = _read(run / "config.json")["data"]["clients_per_chunk"]
  points = [
    point
    for point in plan["points"]
    if (point["algorithm"], point["clients_per_chunk"]) == (summary["algorithm"], chunk)
  ]
  if not points or (planned := total_bytes(points[0])) is None:
    raise ValueError(
      f"{run}: {summary['algorithm']} with {chunk} clients side by side is not in the plan"
    )
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


def _read(path: pathlib.Path) -> Any:
  return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
  main(sys.argv[1:])
