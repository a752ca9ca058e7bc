"""What a plan says: plan.md, of the facts in plan.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bench.rows import markdown
from experiments.plan.search import fits, total_bytes
from experiments.terminal import format_bytes, format_seconds
from sparsyfed_jax.algorithms import METHODS

MEMORY = {
  "data": "data, with the test set",
  "state": "state of the server",
  "memories": "memories of clients",
  "padding": "padding of these",
  "temporaries": "temporaries",
  "results": "results",
  "code": "code",
}
NOT_TOLD = (
  "Nothing was run. Memory is what the compiler plans for, which holds for TPUs; on GPUs the"
  " workspace of convolutions and the CUDA context come on top.",
  "Cycles are the compiler's own estimates of the instructions that have one; gathers, sorts, many"
  " copies and transfers have none. The sum is neither an upper nor a lower bound of the time:"
  " compare like with like, of one compiler.",
  "Kernels are counted, not timed. Loops whose length the data decides are counted as often as"
  " cohorts drawn from the clients' sizes need in the mean, and both branches of a condition.",
  "The host, what it sends, and other programs on the chip are left out.",
)
_PLACES = "--data_placement=sharded (a share on each chip) or streamed (examples stay on the host)"
_HELP = {
  "data": _PLACES,
  "memories": _PLACES,
  "padding": f"examples of fewer axes, or {_PLACES}",
  "state": "a smaller --model or a chip with more memory; every chip has all of it",
  "results": "a smaller --eval_every",
  "code": "a smaller --model",
}


def page(plan: Mapping[str, Any]) -> str:
  """Writes plan.md.

  Args:
    plan: the contents of plan.json.
  """
  lines = [f"# Plan for {plan['target']}", ""]
  lines += [
    f"{plan['chip']}, {plan['chips']} of them." if plan["chips"] > 1 else plan["chip"] + "."
  ]
  lines += [
    f"A run may use {format_bytes(plan['usable_bytes'])} of each ({plan['memory_source']}).",
    f"Flags: `{' '.join(plan['given'])}`." if plan["given"] else "Flags: the defaults.",
    f"Data: {plan['points'][0]['data']}. Compiled with {plan['compiler']}.",
    "",
    markdown(_overview(plan)),
    "## Memory of a chip",
    "",
    markdown(_memory(plan)),
  ]
  lines += [f"- {line}" for line in _verdicts(plan)] + [""]
  for point in plan["points"]:
    if "round" in point:
      lines += _of_round(point, plan)
  lines += ["## What this is not", "", *(f"- {line}" for line in NOT_TOLD)]
  return "\n".join(lines) + "\n"


def name_of(point: Mapping[str, Any]) -> str:
  """Names a point in tables and pictures."""
  algorithm = point["algorithm"]
  title = METHODS[algorithm].title if algorithm in METHODS else algorithm
  return f"{title}, {point['clients_per_chunk']} side by side"


def noun_of(plan: Mapping[str, Any]) -> str:
  """Names what is counted of a program: on a GPU each operation is a kernel."""
  return "kernels" if plan["platform"] == "gpu" else "operations"


def _overview(plan: Mapping[str, Any]) -> list[list[str]]:
  is_tpu = any(point.get("round", {}).get("cycles") for point in plan["points"])
  effort = ["cycles a round", f"ms at {plan['hertz'] / 1e9:g} GHz"] if is_tpu else []
  cells = [
    ["method", "clients side by side", "memory", "fits", *effort]
    + [f"{noun_of(plan)} a round", "collectives a round", "compilation"]
  ]
  for point in sorted([*plan["points"], *plan["tried"]], key=lambda each: each["algorithm"]):
    total, found = total_bytes(point), point.get("round", {})
    row = [_title(point), str(point["clients_per_chunk"])]
    row += [_needs(point, total), "yes" if fits(point, plan["usable_bytes"]) else "no"]
    if is_tpu:
      cycles = found.get("cycles")
      row += [f"{cycles:,.0f}", f"{1e3 * cycles / plan['hertz']:.3g}"] if cycles else ["", ""]
    row.append(f"{found['operations']:,.0f}" if found else "")
    row.append(_collectives(found) if found else "")
    row.append(format_seconds(point["compile_seconds"]) if "compile_seconds" in point else "")
    cells.append(row)
  return cells


def _title(point: Mapping[str, Any]) -> str:
  return name_of(point).rpartition(",")[0]


def _needs(point: Mapping[str, Any], total: int | None) -> str:
  if total is not None:
    return format_bytes(total)
  needed = point.get("needed_bytes")
  return f"over {format_bytes(needed)}" if needed else "too much"


def _collectives(found: Mapping[str, Any]) -> str:
  listed = [
    f"{each['count']:g} {kind} ({format_bytes(each['bytes'])})"
    for kind, each in found["collectives"].items()
  ]
  return ", ".join(listed) or "none"


def _memory(plan: Mapping[str, Any]) -> list[list[str]]:
  points = plan["points"]
  cells = [["part", "of", *(name_of(point) for point in points)]]
  for key, title in MEMORY.items():
    row = [format_bytes(point["bytes"][key]) if key in point["bytes"] else "" for point in points]
    cells.append([title, "a round", *row])
  if any("evaluation" in point for point in points):
    row = [
      format_bytes(sum(point["evaluation"]["bytes"].values())) if "evaluation" in point else ""
      for point in points
    ]
    cells.append(["all but the first three", "an evaluation", *row])
  cells.append(["together", "the larger", *(_needs(each, total_bytes(each)) for each in points)])
  return cells


def _verdicts(plan: Mapping[str, Any]) -> list[str]:
  """Says of each method how many clients fit side by side, and what would help where none do."""
  lines = []
  for point in plan["points"]:
    if not fits(point, plan["usable_bytes"]):
      lines.append(f"{name_of(point)}: does not fit. {advice(point)}")
  for algorithm, found in plan["largest"].items():
    title = METHODS[algorithm].title if algorithm in METHODS else algorithm
    most = plan["most_per_chip"]
    if found["is_all"]:
      lines.append(f"{title}: all {most} clients that a chip has in a round fit side by side.")
    elif found["is_exact"]:
      lines.append(
        f"{title}: --clients_per_chunk={found['fits']} is the largest that fits;"
        f" {found['fails']} does not."
        if found["fits"]
        else f"{title}: not even one client at a time fits."
      )
    else:
      beyond = f" and {found['fails']} does not" if found["fails"] else ""
      lines.append(
        f"{title}: {found['fits']} clients side by side fit{beyond}; --search_seconds was not"
        f" enough to look at more of up to {most}."
      )
  return lines


def advice(point: Mapping[str, Any]) -> str:
  """Names the largest part of a point that does not fit, and the flags that make it smaller."""
  sizes = point["bytes"]
  if "too_large" in point and "temporaries" not in sizes:
    known = sum(sizes.values())
    sizes = {**sizes, "temporaries": max(point.get("needed_bytes", 0) - known, known + 1)}
  largest = max(sizes, key=lambda name: sizes[name])
  if largest != "temporaries":
    return f"The largest part are {MEMORY[largest]}, which {_HELP[largest]} would make smaller."
  fewer = [f"a --clients_per_chunk below {point['clients_per_chunk']}"]
  ways = (fewer if point["clients_per_chunk"] > 1 else []) + [
    "a smaller --batch_size",
    "--compute_dtype=bfloat16",
  ]
  return (
    f"The largest part are temporaries, which {', '.join(ways[:-1])} or {ways[-1]} would make"
    " smaller."
  )


def _of_round(point: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
  found = point["round"]
  noun = noun_of(plan)
  lines = [f"## A round: {name_of(point)}", ""]
  for key, title in (("by_part", "part"), ("by_operation", "operation")):
    lines.append(markdown(_shares(found[key], title, found["cycles"], noun), num_texts=1))
  notes = []
  if found["copies"]:
    notes.append(f"{found['copies']:,.0f} of the {found['operations']:,.0f} {noun} are copies.")
  if found["without_cycles"]:
    listed = ", ".join(
      f"{each['name']} ({each['operations']:,.0f})" for each in found["without_cycles"][:6]
    )
    notes.append(f"Without estimated cycles: {listed}.")
  steps = found["trips"].get("local_steps")
  if steps is not None:
    notes.append(f"Local steps of an epoch that a chunk takes in the mean: {steps:.3g}.")
  if found["assumed_once"]:
    notes.append(f"Loops of unknown length, counted once: {len(found['assumed_once'])}.")
  return [*lines, *notes, ""]


def _shares(
  rows: Sequence[Mapping[str, Any]], title: str, all_cycles: float, noun: str
) -> list[list[str]]:
  if not all_cycles:
    return [[title, noun], *([row["name"], f"{row['operations']:,.0f}"] for row in rows)]
  cells = [[title, "cycles", "share", noun]]
  for row in rows:
    share = f"{row['cycles'] / all_cycles:.1%}"
    cells.append([row["name"], f"{row['cycles']:,.0f}", share, f"{row['operations']:,.0f}"])
  return cells
